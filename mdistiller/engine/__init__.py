"""Training: the loop, its trainers, run folders, and how the networks compute."""

from . import trainers
from .batch import Batch, StepResult
from .trainers import *  # noqa: F403

__all__ = ["Batch", "StepResult"]
__all__ += trainers.__all__
