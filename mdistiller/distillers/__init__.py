"""Distillers: a student, a teacher, and the losses between them."""

from mdistiller.registry import Registry

from ._base import Distiller, Vanilla
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
from .VID import VID

distiller_dict = Registry("distiller")
distiller_dict.update(
    NONE=Vanilla,
    KD=KD,
    AT=AT,
    OFD=OFD,
    RKD=RKD,
    FITNET=FitNet,
    KDSVD=KDSVD,
    CRD=CRD,
    NST=NST,
    PKT=PKT,
    SP=SP,
    VID=VID,
    REVIEWKD=ReviewKD,
    DKD=DKD,
)

# After the plain ones, whose order is mdistiller's.
from . import crossbatch_methods  # noqa: E402, F401

__all__ = ["CRD", "CrossBatchDistiller", "Distiller", "Vanilla", "distiller_dict"]
__all__ += ["AT", "DKD", "KD", "KDSVD", "NST", "OFD", "PKT", "RKD", "SP", "VID"]
__all__ += ["FitNet", "ReviewKD"]
