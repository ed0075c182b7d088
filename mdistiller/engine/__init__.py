"""Configuration and training."""

from mdistiller.config.registry import MethodRegistry

from .batch import Batch, StepResult
from .trainers.balancing import (
    DistillDecayTrainer,
    GradientCosineTrainer,
    GradNormTrainer,
    UncertaintyTrainer,
)
from .trainers.base import BaseTrainer
from .trainers.crossbatch import CrossBatchTrainer
from .trainers.dot import CRDDOTTrainer, CRDTrainer, DistillationOrientedTrainer, DOTTrainer
from .trainers.fading import ConfidenceGateTrainer, LinearFadeTrainer
from .trainers.multitask import MultitaskTrainer
from .trainers.replay import ReplayTrainer
from .trainers.scalarized import ScalarizedTrainer
from .trainers.two_batch import TwoBatchTrainer

trainer_dict = MethodRegistry("trainer", "SOLVER.TRAINER", str.upper)
trainer_dict.update(
    base=BaseTrainer,
    crd=CRDTrainer,
    dot=DOTTrainer,
    crd_dot=CRDDOTTrainer,
    crossbatch=CrossBatchTrainer,
    multitask=MultitaskTrainer,
    gradnorm=GradNormTrainer,
    uncertainty=UncertaintyTrainer,
    gradient_cosine=GradientCosineTrainer,
    distill_decay=DistillDecayTrainer,
    linear_fade=LinearFadeTrainer,
    confidence_gate=ConfidenceGateTrainer,
    two_batch=TwoBatchTrainer,
    scalarized=ScalarizedTrainer,
    replay=ReplayTrainer,
)

__all__ = [
    "BaseTrainer",
    "Batch",
    "CRDDOTTrainer",
    "CRDTrainer",
    "CrossBatchTrainer",
    "DOTTrainer",
    "DistillDecayTrainer",
    "DistillationOrientedTrainer",
    "GradNormTrainer",
    "GradientCosineTrainer",
    "MultitaskTrainer",
    "ReplayTrainer",
    "StepResult",
    "UncertaintyTrainer",
    "trainer_dict",
]
