"""The helpers that mdistiller's users know, under the names by which they know them."""

from mdistiller.console import log_msg
from mdistiller.models.checkpoints import read_checkpoint as load_checkpoint

from .meters import AverageMeter, accuracy, validate
from .optim import adjust_learning_rate
from .rundir.checkpoint import save_checkpoint

__all__ = [
    "AverageMeter",
    "accuracy",
    "adjust_learning_rate",
    "load_checkpoint",
    "log_msg",
    "save_checkpoint",
    "validate",
]
