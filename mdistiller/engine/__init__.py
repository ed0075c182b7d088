"""Configuration and training."""

from mdistiller.registry import Registry

from .crossbatch import CrossBatchTrainer
from .dot import CRDDOTTrainer, CRDTrainer, DistillationOrientedTrainer, DOTTrainer
from .trainer import BaseTrainer, StepResult

trainer_dict = Registry("trainer")
trainer_dict.update(
    base=BaseTrainer,
    crd=CRDTrainer,
    dot=DOTTrainer,
    crd_dot=CRDDOTTrainer,
    crossbatch=CrossBatchTrainer,
)

__all__ = [
    "BaseTrainer",
    "CRDDOTTrainer",
    "CRDTrainer",
    "CrossBatchTrainer",
    "DOTTrainer",
    "DistillationOrientedTrainer",
    "StepResult",
    "trainer_dict",
]
