"""Everything that touches MLX: it runs on the main thread of a worker process and nowhere else."""
