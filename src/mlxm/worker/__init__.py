"""The process that runs one model; started as `python -m mlxm.worker`, and only by `mlxm.pool`."""
