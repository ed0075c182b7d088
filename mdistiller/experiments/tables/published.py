"""The numbers that are published for the newer methods, each with its protocol.

Source: tests/golden/METHODS.md. All are top-1 on CIFAR-100 in percent, keyed by rows and pairs
as in :mod:`~.authors`; what that page does not say is None here, and "not said" in a report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

# The order of the columns of Table 3, by the names of the files in configs/cifar100.
TABLE3_PAIRS = ("res56_res20", "res32x4_res8x4", "wrn40_2_wrn40_1", "vgg13_vgg8")

USUAL_EPOCHS = 240
OWN, COPIED = "its authors", "another paper"


@dataclass(frozen=True)
class Number:
    """One published number and how it was obtained.

    Attributes:
        source: whose table it stands in.
        by: :data:`OWN` for the method's authors; :data:`COPIED` where it stands in another paper's
            table, which has copied it or trained again.
        epochs: of the training; None: not said.
        views: of each image in a step.
        selected: which epoch is reported.
        log: top-1 of the best and of the last epoch in the authors' public log; None: none seen.
        reread: whether the source was read for the page, not only notes on it.
        note: what else keeps it from being compared with others.
    """

    top1: float
    source: str
    by: str = OWN
    epochs: int | None = USUAL_EPOCHS
    views: int = 1
    selected: str = "best"
    log: tuple[float | None, float | None] | None = None
    reread: bool = True
    note: str = ""

    @property
    def protocol(self) -> tuple[str, ...]:
        """In words: epochs, views, epoch reported, whose table, who measured, what else."""
        epochs = "not said" if self.epochs is None else str(self.epochs)
        measured = self.by if self.by == OWN else f"{self.by}; copied or trained again: not said"
        source = self.source if self.reread else f"{self.source} (from notes on it)"
        notes = [self.note] if self.note else []
        if self.log is not None:
            best, last = ("not given" if x is None else f"{x:.2f}" for x in self.log)
            notes.append(f"public log: best {best}, last {last}")
        return (epochs, str(self.views), self.selected, source, measured, "; ".join(notes))

    @property
    def mark(self) -> str:
        """In words what is not the usual budget: 240 epochs, one view."""
        parts = []
        if self.epochs not in (None, USUAL_EPOCHS):
            parts.append(f"{self.epochs} epochs")
        if self.views > 1:
            parts.append(f"{self.views} views")
        return ", ".join(parts)


PROTOCOL = ("epochs", "views", "epoch reported", "table", "measured by", "remark")

# Rows of published numbers that Table 3 does not train.
UNTRAINED = {"ctkd_ls": "CTKD + LS (not trained here)"}

# Best and last epoch of a pair's public log.
Logs = Sequence[tuple[float | None, float | None] | None]


def _row(
    usual: Number, *top1: float | None, logs: Logs = (None,) * 4, **others: Number
) -> Mapping[str, Number]:
    """A row of numbers, as ``usual``; ``others`` say it for single pairs."""
    return {
        pair: replace(others.get(pair, usual), top1=x, log=log)
        for pair, x, log in zip(TABLE3_PAIRS, top1, logs, strict=True)
        if x is not None
    }


_README = Number(0, "authors' README")
_LSKD = Number(0, "LSKD's README")
_IN_LSKD = Number(0, "LSKD's table", COPIED, reread=False)
_MLKD_NOTE = "learning rate 0.025, decays at 150, 180, 210; second view: RandAugment"
_MLKD = Number(0, "published with MLKD", epochs=480, views=2, note=_MLKD_NOTE)
_DIST_NOTE = "± {}; the last batch of an epoch is dropped"
_EXTRA = "extra parameters: the student ends in a projector and its teacher's classifier"

PUBLISHED: Mapping[str, Mapping[str, Number]] = {
    "kd": _row(
        Number(0, "the row that most papers copy", COPIED, note="CE 0.1, KD 0.9, temperature 4"),
        *(70.66, 73.33, 73.54, 72.98),
    ),
    "dist": _row(
        _README,
        *(71.75, 76.31, 74.43, 73.89),
        res56_res20=replace(_README, note=_DIST_NOTE.format("0.30")),
        res32x4_res8x4=replace(_README, note=_DIST_NOTE.format("0.19")),
        wrn40_2_wrn40_1=replace(_README, note=_DIST_NOTE.format("0.24")),
        vgg13_vgg8=Number(0, "TTM's README", COPIED),
    ),
    "kd_ls": _row(
        _LSKD,
        *(71.43, 76.62, 74.37, 74.36),
        logs=((71.53, 71.37), (76.66, 76.28), (74.56, 74.20), (74.69, 74.50)),
    ),
    "dkd_ls": _row(
        _LSKD,
        *(72.32, 77.01, 74.89, 74.81),
        logs=((72.24, 71.82), (77.14, 76.93), (74.93, 74.60), (74.69, 74.53)),
    ),
    "ctkd_ls": _row(
        replace(_LSKD, note="the logs' range of temperatures is not the script's"),
        *(71.34, 76.67, 74.58, 74.47),
        logs=((71.29, None), (76.63, None), (74.85, None), (74.64, None)),
    ),
    "mlkd": _row(_MLKD, 72.19, 77.08, 75.35, 75.18),
    "mlkd_ls": _row(
        replace(_LSKD, epochs=480, views=2, note=_MLKD_NOTE),
        *(72.33, 78.28, 75.56, 75.22),
        logs=(None, (78.28, 78.17), (75.46, 74.97), (75.18, 74.79)),
        vgg13_vgg8=replace(_LSKD, epochs=480, views=2, note=_MLKD_NOTE.replace("0.025", "0.01")),
    ),
    "nkd": _row(
        Number(0, "LDRLD's table", COPIED, epochs=None, reread=False), 71.18, 76.35, None, 74.86
    ),
    "ttm": _row(_README, 71.83, 76.17, 74.32, 74.33),
    "wttm": _row(_README, 71.92, 76.06, 74.58, 74.44),
    "ctkd": _row(
        _README,
        *(71.19, 73.39, 73.93, 73.52),
        res32x4_res8x4=replace(_IN_LSKD, reread=True),
    ),
    "catkd": _row(_IN_LSKD, 71.62, 76.91, 74.82, 74.65),
    "simkd": _row(
        replace(_IN_LSKD, note=_EXTRA),
        *(71.05, 78.08, 74.53, 74.89),
        res32x4_res8x4=replace(_README, note=f"{_EXTRA}; its own plain student has 73.09"),
    ),
    "rld": _row(Number(0, "paper", reread=False), 72.00, 76.64, 74.88, 74.93),
    "eakd": _row(
        Number(0, "paper", epochs=None, reread=False, note="on top of a KD of 73.33"),
        *(None, 75.46, None, None),
    ),
}
