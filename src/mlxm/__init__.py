"""Find, download, run and serve MLX models."""

__version__ = "0.1.0"
