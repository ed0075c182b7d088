"""What a training runs on: processes, precision, determinism, signals, memory."""
