"""The trainers that mdistiller's users know, under the names by which they know them."""

from .trainers.base import BaseTrainer
from .trainers.dot import CRDDOTTrainer as CRDDOT
from .trainers.dot import CRDTrainer
from .trainers.dot import DOTTrainer as DOT

__all__ = ["CRDDOT", "DOT", "BaseTrainer", "CRDTrainer"]
