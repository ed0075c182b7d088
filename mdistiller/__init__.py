"""Knowledge distillation with fixed and with cross-batch loss weighting."""

__version__ = "0.2.0"
