"""Trainers: how a batch's losses become one update. Importing this registers all of them."""

from .base import BaseTrainer
from .crossbatch import CrossBatchTrainer
from .dot import CRDDOTTrainer, CRDTrainer, DistillationOrientedTrainer, DOTTrainer
from .fading import ConfidenceGateTrainer, DistillDecayTrainer, LinearFadeTrainer
from .multitask import MultitaskTrainer
from .pair import GradientCosineTrainer, GradNormTrainer
from .registry import trainer_dict
from .replay import ReplayTrainer
from .scalarized import ScalarizedTrainer
from .two_batch import TwoBatchTrainer
from .weighted_sum import UncertaintyTrainer

__all__ = [
    "BaseTrainer",
    "CRDDOTTrainer",
    "CRDTrainer",
    "ConfidenceGateTrainer",
    "CrossBatchTrainer",
    "DOTTrainer",
    "DistillDecayTrainer",
    "DistillationOrientedTrainer",
    "GradNormTrainer",
    "GradientCosineTrainer",
    "LinearFadeTrainer",
    "MultitaskTrainer",
    "ReplayTrainer",
    "ScalarizedTrainer",
    "TwoBatchTrainer",
    "UncertaintyTrainer",
    "trainer_dict",
]
