"""The settings with which the newer methods' authors train, and the numbers they publish.

Sources and remarks: tests/golden/METHODS.md. ``tools/make_configs.py`` writes these settings as
YAML files; a table may put the numbers beside what was measured here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Short name of a pair in file names -> (teacher, student).
PAIRS = {
    "res56_res20": ("resnet56", "resnet20"),
    "res32x4_res8x4": ("resnet32x4", "resnet8x4"),
    "wrn40_2_wrn40_1": ("wrn_40_2", "wrn_40_1"),
    "vgg13_vgg8": ("vgg13", "vgg8"),
}

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Published:
    """Top-1 on CIFAR-100 in percent by pair, and how it was obtained.

    Attributes:
        top1: by the pairs of :data:`PAIRS` that are reported.
        epochs: of the training.
        views: of each image in a step.
        selected: which epoch is reported.
        source: whose table the numbers are from.
        note: what else keeps the numbers from being compared with others.
    """

    top1: Mapping[str, float]
    source: str
    epochs: int = 240
    views: int = 1
    selected: str = "best"
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A method as its authors train it.

    Attributes:
        distiller: DISTILLER.TYPE.
        title: in words, for the first line of a file.
        common: settings for all pairs, by dotted key.
        by_pair: settings for one pair.
        twin: settings of the cross-batch form beside those of the plain one.
        small: settings for digits and glyphs, where ``common`` does not fit.
        published: None where no number for these pairs has been seen.
    """

    distiller: str
    title: str
    common: Settings = field(default_factory=dict)
    by_pair: Mapping[str, Settings] = field(default_factory=dict)
    twin: Settings = field(default_factory=dict)
    small: Settings = field(default_factory=dict)
    published: Published | None = None

    def settings(self, pair: str) -> dict[str, Any]:
        """Those on CIFAR-100, by dotted key."""
        return {**self.common, **self.by_pair.get(pair, {})}

    def small_settings(self) -> dict[str, Any]:
        """Those on the data sets for two cores."""
        return {**self.common, **self.small}


def _numbers(*top1: float | None) -> dict[str, float]:
    return {pair: x for pair, x in zip(PAIRS, top1, strict=True) if x is not None}


def _by_pair(*settings: Settings) -> dict[str, Settings]:
    return dict(zip(PAIRS, settings, strict=True))


def _kd_ls(temperature: float, weight: float) -> Settings:
    return {"KD.TEMPERATURE": temperature, "KD.LOSS.KD_WEIGHT": weight}


def _dkd_ls(temperature: float, weight: float, beta: float) -> Settings:
    # Both parts are multiplied by the weight.
    return {"DKD.T": temperature, "DKD.ALPHA": weight, "DKD.BETA": weight * beta}


_LS = {"DISTILLER.LOGIT_STANDARDIZATION": True}
_MLKD = {"DATASET.STRONG_VIEW": True, "SOLVER.EPOCHS": 480, "SOLVER.LR": 0.025}
_MLKD_SMALL = {"SOLVER.EPOCHS": 10, "SOLVER.LR": 0.025}
_DKD_BETA = (2.0, 8.0, 6.0, 6.0)
_TWO_VIEWS: dict[str, Any] = {"epochs": 480, "views": 2, "note": "480 epochs, two views"}
_LSKD = "LSKD's README"
_LSKD_TABLE = "LSKD's table, copied"

AUTHORS: dict[str, Row] = {
    "dist": Row(
        "DIST",
        "DIST",
        common={"DIST.TEMPERATURE": 4.0, "DIST.BETA": 1.0, "DIST.GAMMA": 1.0},
        published=Published(
            _numbers(71.75, 76.31, 74.43, 73.89), "authors' README; vgg: TTM's README"
        ),
    ),
    "kd_ls": Row(
        "KD",
        "KD with logit standardisation (LSKD)",
        common={**_LS, "KD.LOSS.CE_WEIGHT": 0.1},
        by_pair=_by_pair(_kd_ls(2, 9.0), _kd_ls(2, 9.0), _kd_ls(2, 9.0), _kd_ls(3, 9.0)),
        small=_kd_ls(2, 9.0),
        published=Published(_numbers(71.43, 76.62, 74.37, 74.36), _LSKD),
    ),
    "dkd_ls": Row(
        "DKD",
        "DKD with logit standardisation (LSKD)",
        common=_LS,
        by_pair=_by_pair(
            _dkd_ls(3, 18.0, 2.0),
            _dkd_ls(2, 9.0, 8.0),
            _dkd_ls(2, 12.0, 2.0),
            _dkd_ls(2, 15.0, 2.0),
        ),
        small={**_dkd_ls(2, 9.0, 2.0), "DKD.WARMUP": 2},
        published=Published(_numbers(72.32, 77.01, 74.89, 74.81), _LSKD),
    ),
    "mlkd": Row(
        "MLKD",
        "MLKD: two views, 480 epochs",
        common={**_MLKD, "MLKD.TEMPERATURE": 4.0, "MLKD.KD_WEIGHT": 0.9},
        small=_MLKD_SMALL,
        published=Published(_numbers(72.19, 77.08, 75.35, 75.18), "authors' paper", **_TWO_VIEWS),
    ),
    "mlkd_ls": Row(
        "MLKD",
        "MLKD with logit standardisation (LSKD): two views, 480 epochs",
        common={**_LS, **_MLKD, "MLKD.TEMPERATURE": 2.0, "MLKD.KD_WEIGHT": 9.0},
        by_pair={"vgg13_vgg8": {"MLKD.KD_WEIGHT": 6.0, "SOLVER.LR": 0.01}},
        small=_MLKD_SMALL,
        published=Published(_numbers(72.33, 78.28, 75.56, 75.22), _LSKD, **_TWO_VIEWS),
    ),
    "nkd": Row(
        "NKD",
        "NKD, with its authors' settings for another pair",
        common={"NKD.TEMPERATURE": 3.0, "NKD.GAMMA": 3.5},
        published=Published(_numbers(71.18, 76.35, None, 74.86), "LDRLD's table, copied"),
    ),
    "wsld": Row("WSLD", "WSLD", common={"WSLD.TEMPERATURE": 4.0, "WSLD.ALPHA": 2.25}),
    "ttm": Row(
        "TTM",
        "TTM, with its authors' settings for vgg13 and vgg8",
        common={"TTM.GAMMA": 0.1, "TTM.BETA": 45.0},
        published=Published(_numbers(71.83, 76.17, 74.32, 74.33), "authors' README"),
    ),
    "wttm": Row(
        "WTTM",
        "WTTM, with the settings of its authors' README for WTTM beside CRD",
        common={"WTTM.GAMMA": 0.2, "WTTM.BETA": 4.0},
        published=Published(_numbers(71.92, 76.06, 74.58, 74.44), "authors' README"),
    ),
    "ctkd": Row(
        "CTKD",
        "CTKD",
        common={"CTKD.T_START": 1.0, "CTKD.T_WIDTH": 20.0, "CTKD.REVERSAL_EPOCHS": 10},
        small={"CTKD.REVERSAL_EPOCHS": 4},
        published=Published(
            _numbers(71.19, 73.39, 73.93, 73.52), "authors' README; 32x4: LSKD's table"
        ),
    ),
    "catkd": Row(
        "CATKD",
        "CAT-KD",
        common={"CATKD.RESOLUTION": 2, "CATKD.NORMALIZE": False},
        by_pair=_by_pair(*({"CATKD.CAT_WEIGHT": w} for w in (0.7, 15.0, 1.5, 4.5))),
        small={"CATKD.CAT_WEIGHT": 0.7},
        published=Published(_numbers(71.62, 76.91, 74.82, 74.65), _LSKD_TABLE),
    ),
    "simkd": Row(
        "SIMKD",
        "SimKD: the student ends in its teacher's classifier",
        common={"SIMKD.FACTOR": 2},
        # A cross-entropy of weight 0 has no gradient that could be weighted.
        twin={"SIMKD.CE_WEIGHT": 1.0},
        published=Published(
            _numbers(71.05, 78.08, 74.53, 74.89),
            "LSKD's table, copied; 32x4: authors' README",
            note="extra parameters, a stronger student",
        ),
    ),
    "rld": Row(
        "RLD",
        "RLD",
        common={"RLD.ALPHA": 1.0, "RLD.BETA": 8.0, "RLD.ALPHA_TEMPERATURE": 4.0},
        small={"RLD.WARMUP": 2},
        published=Published(_numbers(72.00, 76.64, 74.88, 74.93), "paper, copied"),
    ),
    "eakd": Row(
        "EAKD",
        "EA-KD over KD",
        common={"EAKD.TEMPERATURE": 4.0, "EAKD.BOUND": 100.0},
        published=Published(_numbers(None, 75.46, None, None), "paper, copied"),
    ),
    "eadkd": Row(
        "EADKD",
        "EA-KD over DKD",
        common={"EADKD.TEMPERATURE": 4.0, "EADKD.BOUND": 100.0},
        by_pair=_by_pair(*({"EADKD.BETA": beta} for beta in _DKD_BETA)),
        small={"EADKD.BETA": 2.0, "EADKD.WARMUP": 2},
    ),
    "pld": Row("PLD", "PLD", common={"PLD.TEMPERATURE": 1.0}),
}
