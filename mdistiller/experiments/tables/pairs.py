"""Pairs of teacher and student, and where the configuration of a pair lies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mdistiller.errors import UnknownNameError
from mdistiller.registry import nearest
from mdistiller.shipped import CONFIGS, find

if TYPE_CHECKING:
    from .layouts import Row

PAPERS_DATASET = "cifar100"


@dataclass(frozen=True)
class Pair:
    """A teacher and a student by their names in the registry; ``key`` as in file names."""

    key: str
    teacher: str
    student: str

    @property
    def label(self) -> str:
        return f"{self.teacher} → {self.student}"


PAIRS = {
    pair.key: pair
    for pair in (
        Pair("res101_res50", "ResNet101", "ResNet50"),
        Pair("res56_res20", "resnet56", "resnet20"),
        Pair("vgg13_vgg8", "vgg13", "vgg8"),
        Pair("res101_res34", "ResNet101", "ResNet34"),
        Pair("res110_res32x4", "resnet110", "resnet32x4"),
        Pair("res110_res56", "resnet110", "resnet56"),
        Pair("wrn40_2_wrn40_1", "wrn_40_2", "wrn_40_1"),
        Pair("res32x4_res8x4", "resnet32x4", "resnet8x4"),
        # For data sets that are to be trained on two processor cores.
        Pair("res20_res8", "resnet20", "resnet8"),
        Pair("wrn16_2_wrn16_1", "wrn_16_2", "wrn_16_1"),
    )
}
_TABLE1 = ("kd", "rkd", "at", "kdsvd", "pkt")
SMALL_PAIRS = ("res20_res8", "wrn16_2_wrn16_1")


def datasets(*names: str) -> list[str]:
    """CIFAR-100, then every data set whose folder of configs/ has a file for each of ``names``.

    Without names: for those of Table 1.
    """
    folders = (p.parent for p in CONFIGS.glob("*/teacher.yaml"))
    wanted = [f"{name}.yaml" for name in names or _TABLE1]
    small = sorted(f.name for f in folders if all((f / name).exists() for name in wanted))
    return [PAPERS_DATASET, *small]


def config_of(dataset: str, row: Row, pair: Pair, method: str) -> tuple[str, tuple[str, ...]]:
    """Configuration file and overrides of a row on a pair, whose method ``method`` is.

    CIFAR-100 has a file for every pair; the small data sets have one for every method, of which
    the networks are replaced.
    """
    crossbatch = row.variant == "crossbatch"
    prefix = "crossbatch_" if crossbatch else ""
    name = row.config or method.lower()
    if dataset == PAPERS_DATASET:
        folder = "crossbatch/" if crossbatch else "baseline/"
        stem = f"methods/{prefix}{name}" if row.config else f"{folder}{name}"
        return str(find(f"configs/{dataset}/{stem}_{pair.key}.yaml")), ()
    networks = ("DISTILLER.TEACHER", pair.teacher, "DISTILLER.STUDENT", pair.student)
    return str(find(f"configs/{dataset}/{prefix}{name}.yaml")), networks


def teacher_config(dataset: str, teacher: str) -> tuple[str, tuple[str, ...]]:
    """Configuration file and overrides that train the network ``teacher`` without a teacher."""
    if dataset == PAPERS_DATASET:
        return str(find(f"configs/{dataset}/teachers/{teacher}.yaml")), ()
    return str(find(f"configs/{dataset}/teacher.yaml")), ("DISTILLER.STUDENT", teacher)


def choose(kind: str, wanted: Iterable[str], valid: Iterable[str]) -> list[str]:
    """``wanted`` in the order of ``valid``, case ignored.

    Raises:
        UnknownNameError: one of them is not there; names the nearest one.
    """
    by_folded: dict[str, str] = {}
    for name in valid:
        by_folded.setdefault(name.casefold(), name)
    found = set()
    for name in wanted:
        if name.casefold() not in by_folded:
            guess = nearest(name, by_folded.values())
            hint = f"did you mean {guess!r}? " if guess else ""
            raise UnknownNameError(
                f"unknown {kind} {name!r}; {hint}valid names: {', '.join(by_folded.values())}"
            )
        found.add(by_folded[name.casefold()])
    return [name for name in by_folded.values() if name in found]
