"""Distillers: a student, a teacher, and the losses between them.

A method is one file: a :class:`Distiller` with its ``settings``, registered under the name that
DISTILLER.TYPE takes. Its cross-batch form CROSSBATCH_<NAME> comes with it.
"""

from ._base import Distiller
from ._registry import distiller_dict
from .AT import AT
from .CRD import CRD
from .crossbatch import CrossBatchDistiller
from .DKD import DKD
from .FitNet import FitNet
from .KD import KD
from .KDSVD import KDSVD
from .NST import NST
from .OFD import OFD
from .PKT import PKT
from .ReviewKD import ReviewKD
from .RKD import RKD
from .SP import SP
from .Vanilla import Vanilla
from .VID import VID

__all__ = ["CRD", "CrossBatchDistiller", "Distiller", "Vanilla", "distiller_dict"]
__all__ += ["AT", "DKD", "KD", "KDSVD", "NST", "OFD", "PKT", "RKD", "SP", "VID"]
__all__ += ["FitNet", "ReviewKD"]
