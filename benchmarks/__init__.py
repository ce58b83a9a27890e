"""Measurements with gates: `python -m benchmarks.NAME [--json] [--quick]`, one module per subject."""
