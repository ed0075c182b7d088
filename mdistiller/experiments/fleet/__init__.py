"""Many trainings in one process, with one teacher and the same batches."""
