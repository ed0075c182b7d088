"""A run's folder: lock, files, checkpoints, records."""
