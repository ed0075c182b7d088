"""Distillers: a student, a teacher, and the losses between them.

A method is one file: a :class:`Distiller` with its ``settings``, registered under the name that
DISTILLER.TYPE takes. Its cross-batch form CROSSBATCH_<NAME> comes with it.
"""

from ._base import Distiller
from ._registry import distiller_dict
from .AT import AT
from .CATKD import CATKD
from .CRD import CRD
from .crossbatch import CrossBatchDistiller
from .CTKD import CTKD
from .DIST import DIST
from .DKD import DKD
from .EADKD import EADKD
from .EAKD import EAKD
from .FitNet import FitNet
from .KD import KD
from .KDSVD import KDSVD
from .MLKD import MLKD
from .NKD import NKD
from .NST import NST
from .OFD import OFD
from .PKT import PKT
from .PLD import PLD
from .ReviewKD import ReviewKD
from .RKD import RKD
from .RLD import RLD
from .SIMKD import SimKD
from .SP import SP
from .TTM import TTM
from .Vanilla import Vanilla
from .VID import VID
from .WSLD import WSLD
from .WTTM import WTTM

__all__ = ["CRD", "CrossBatchDistiller", "Distiller", "Vanilla", "distiller_dict"]
__all__ += ["AT", "DKD", "KD", "KDSVD", "NST", "OFD", "PKT", "RKD", "SP", "VID"]
__all__ += ["FitNet", "ReviewKD"]
__all__ += ["CATKD", "CTKD", "DIST", "EADKD", "EAKD", "MLKD", "NKD", "PLD", "RLD", "SimKD"]
__all__ += ["TTM", "WSLD", "WTTM"]
