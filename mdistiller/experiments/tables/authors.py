"""The settings with which the newer methods' authors train.

Sources and remarks: tests/golden/METHODS.md. ``tools/make_configs.py`` writes these settings as
YAML files, and Table 3 trains them; the numbers that are published stand in :mod:`~.published`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .published import TABLE3_PAIRS

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A method as its authors train it.

    Attributes:
        distiller: DISTILLER.TYPE.
        label: for tables.
        about: what to know beside, for the first line of a file.
        common: settings for all pairs, by dotted key.
        by_pair: settings for one pair.
        twin: settings of the cross-batch form beside those of the plain one.
        small: settings for digits and glyphs, where ``common`` does not fit.
    """

    distiller: str
    label: str
    about: str = ""
    common: Settings = field(default_factory=dict)
    by_pair: Mapping[str, Settings] = field(default_factory=dict)
    twin: Settings = field(default_factory=dict)
    small: Settings = field(default_factory=dict)

    @property
    def title(self) -> str:
        """In words, for the first line of a file."""
        return f"{self.label}: {self.about}" if self.about else self.label

    @property
    def two_views(self) -> bool:
        """Whether a step sees each image twice."""
        return bool(self.common.get("DATASET.STRONG_VIEW"))

    def settings(self, pair: str) -> dict[str, Any]:
        """Those on CIFAR-100, by dotted key."""
        return {**self.common, **self.by_pair.get(pair, {})}

    def small_settings(self) -> dict[str, Any]:
        """Those on the data sets for two cores."""
        return {**self.common, **self.small}


def _by_pair(*settings: Settings) -> dict[str, Settings]:
    return dict(zip(TABLE3_PAIRS, settings, strict=True))


def _kd_ls(temperature: float, weight: float) -> Settings:
    return {"KD.TEMPERATURE": temperature, "KD.LOSS.KD_WEIGHT": weight}


def _dkd_ls(temperature: float, weight: float, beta: float) -> Settings:
    # Both parts are multiplied by the weight.
    return {"DKD.T": temperature, "DKD.ALPHA": weight, "DKD.BETA": weight * beta}


_LS = {"DISTILLER.LOGIT_STANDARDIZATION": True}
_MLKD = {"DATASET.STRONG_VIEW": True, "SOLVER.EPOCHS": 480, "SOLVER.LR": 0.025}
_MLKD_SMALL = {"SOLVER.EPOCHS": 10, "SOLVER.LR": 0.025}
_DKD_BETA = (2.0, 8.0, 6.0, 6.0)

AUTHORS: dict[str, Row] = {
    "dist": Row(
        "DIST",
        "DIST",
        common={"DIST.TEMPERATURE": 4.0, "DIST.BETA": 1.0, "DIST.GAMMA": 1.0},
    ),
    "kd_ls": Row(
        "KD",
        "KD + LS",
        "logit standardisation (LSKD)",
        common={**_LS, "KD.LOSS.CE_WEIGHT": 0.1},
        by_pair=_by_pair(_kd_ls(2, 9.0), _kd_ls(2, 9.0), _kd_ls(2, 9.0), _kd_ls(3, 9.0)),
        small=_kd_ls(2, 9.0),
    ),
    "dkd_ls": Row(
        "DKD",
        "DKD + LS",
        "logit standardisation (LSKD)",
        common=_LS,
        by_pair=_by_pair(
            _dkd_ls(3, 18.0, 2.0),
            _dkd_ls(2, 9.0, 8.0),
            _dkd_ls(2, 12.0, 2.0),
            _dkd_ls(2, 15.0, 2.0),
        ),
        small={**_dkd_ls(2, 9.0, 2.0), "DKD.WARMUP": 2},
    ),
    "mlkd": Row(
        "MLKD",
        "MLKD",
        "two views",
        common={**_MLKD, "MLKD.TEMPERATURE": 4.0, "MLKD.KD_WEIGHT": 0.9},
        small=_MLKD_SMALL,
    ),
    "mlkd_ls": Row(
        "MLKD",
        "MLKD + LS",
        "logit standardisation (LSKD), two views",
        common={**_LS, **_MLKD, "MLKD.TEMPERATURE": 2.0, "MLKD.KD_WEIGHT": 9.0},
        by_pair={"vgg13_vgg8": {"MLKD.KD_WEIGHT": 6.0, "SOLVER.LR": 0.01}},
        small=_MLKD_SMALL,
    ),
    "nkd": Row(
        "NKD",
        "NKD",
        "its authors' settings for another pair",
        common={"NKD.TEMPERATURE": 3.0, "NKD.GAMMA": 3.5},
    ),
    "wsld": Row("WSLD", "WSLD", common={"WSLD.TEMPERATURE": 4.0, "WSLD.ALPHA": 2.25}),
    "ttm": Row(
        "TTM",
        "TTM",
        "its authors' settings for vgg13 and vgg8",
        common={"TTM.GAMMA": 0.1, "TTM.BETA": 45.0},
    ),
    "wttm": Row(
        "WTTM",
        "WTTM",
        "the settings of its authors' README for WTTM beside CRD",
        common={"WTTM.GAMMA": 0.2, "WTTM.BETA": 4.0},
    ),
    "ctkd": Row(
        "CTKD",
        "CTKD",
        common={"CTKD.T_START": 1.0, "CTKD.T_WIDTH": 20.0, "CTKD.REVERSAL_EPOCHS": 10},
        small={"CTKD.REVERSAL_EPOCHS": 4},
    ),
    "catkd": Row(
        "CATKD",
        "CAT-KD",
        common={"CATKD.RESOLUTION": 2, "CATKD.NORMALIZE": False},
        by_pair=_by_pair(*({"CATKD.CAT_WEIGHT": w} for w in (0.7, 15.0, 1.5, 4.5))),
        small={"CATKD.CAT_WEIGHT": 0.7},
    ),
    "simkd": Row(
        "SIMKD",
        "SimKD",
        "the student ends in its teacher's classifier",
        common={"SIMKD.FACTOR": 2},
        # A cross-entropy of weight 0 has no gradient that could be weighted.
        twin={"SIMKD.CE_WEIGHT": 1.0},
    ),
    "rld": Row(
        "RLD",
        "RLD",
        common={"RLD.ALPHA": 1.0, "RLD.BETA": 8.0, "RLD.ALPHA_TEMPERATURE": 4.0},
        small={"RLD.WARMUP": 2},
    ),
    "eakd": Row(
        "EAKD",
        "EA-KD over KD",
        common={"EAKD.TEMPERATURE": 4.0, "EAKD.BOUND": 100.0},
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
