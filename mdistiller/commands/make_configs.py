"""Write the configurations of the newer methods; see --help."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mdistiller.cli import exit_on_error
from mdistiller.experiments.tables.authors import AUTHORS, Row
from mdistiller.experiments.tables.pairs import PAIRS
from mdistiller.experiments.tables.published import TABLE3_PAIRS

SMALL = ("digits", "glyphs")
# Trainers that weight KD's losses on the data sets for two cores.
TRAINERS: dict[str, dict[str, Any]] = {
    "linear_fade": {"LINEAR_FADE.TO": 0.0},
    "confidence_gate": {"CONFIDENCE_GATE.THRESHOLD": 0.0},
    "two_batch": {"TWO_BATCH.METHOD": "MoDo", "TWO_BATCH.PARAMS": "gamma=0.1, rho=0.1"},
    "scalarized": {"SCALARIZED.METHOD": "FAMO"},
}
_TWIN = {
    "CROSSBATCH.READING": "align",
    "CROSSBATCH.ALPHA": 1.0,
    "CROSSBATCH.REFERENCE": "fresh",
}


def files() -> Iterator[tuple[str, str]]:
    """(path below configs/, text) of every file."""
    for name, row in AUTHORS.items():
        for pair in TABLE3_PAIRS:
            yield from _both(f"cifar100/methods/{{}}_{pair}.yaml", name, row, *_cifar(row, pair))
        for dataset in SMALL:
            yield from _both(f"{dataset}/{{}}.yaml", name, row, *_small(row, dataset))
    for trainer, settings in TRAINERS.items():
        for dataset in SMALL:
            tag = f"{trainer}_kd"
            tree = {"_BASE_": "kd.yaml", "EXPERIMENT.TAG": tag, "SOLVER.TRAINER": trainer}
            head = f"KD with the trainer {trainer}; all else as in kd.yaml"
            yield f"{dataset}/{tag}.yaml", _text(head, {**tree, **settings})


def _cifar(row: Row, pair: str) -> tuple[str, dict[str, Any], str]:
    teacher, student = PAIRS[pair].teacher, PAIRS[pair].student
    networks = {"DISTILLER.TEACHER": teacher, "DISTILLER.STUDENT": student}
    tree = {"_BASE_": "../_base.yaml", "EXPERIMENT.PROJECT": "cifar100_methods", **networks}
    suffix = "," + ",".join(_short(pair))
    settings = row.settings(pair)
    budget = f"{settings['SOLVER.EPOCHS']} epochs, " if "SOLVER.EPOCHS" in settings else ""
    return f"{budget}{teacher} -> {student}", {**tree, **settings}, suffix


def _small(row: Row, dataset: str) -> tuple[str, dict[str, Any], str]:
    tree = {
        "_BASE_": "_base.yaml",
        "DISTILLER.TEACHER": "resnet20",
        "DISTILLER.STUDENT": "resnet8",
        "DISTILLER.TEACHER_CKPT": f"output/{dataset}/teacher/student_latest",
    }
    settings = row.small_settings()
    for key in ("SOLVER.EPOCHS",):  # that of _base.yaml
        settings.pop(key, None)
    head = "resnet20 -> resnet8; train teacher.yaml first"
    return head, {**tree, **settings}, ""


def _both(
    path: str, name: str, row: Row, networks: str, tree: dict[str, Any], suffix: str
) -> Iterator[tuple[str, str]]:
    """A method's file and its cross-batch twin's."""
    plain = {"EXPERIMENT.TAG": name + suffix, "DISTILLER.TYPE": row.distiller}
    yield path.format(name), _text(f"{row.title}, {networks}", {**tree, **plain})
    twin = {
        "_BASE_": Path(path.format(name)).name,
        "EXPERIMENT.TAG": f"crossbatch_{name}{suffix}",
        "DISTILLER.TYPE": f"CROSSBATCH_{row.distiller}",
        "SOLVER.TRAINER": "crossbatch",
        **row.twin,
        **_TWIN,
    }
    head = f"Cross-batch weighting of {row.title}; all else as in {twin['_BASE_']}"
    yield path.format(f"crossbatch_{name}"), _text(head, twin)


def _short(pair: str) -> list[str]:
    """The two networks' names in a pair's."""
    return re.split("_(?=res|vgg|wrn)", pair)


def _text(head: str, flat: dict[str, Any]) -> str:
    """YAML of dotted keys, with the groups in the order of the other files."""
    tree: dict[str, Any] = {}
    order = ("_BASE_", "EXPERIMENT", "DATASET", "DISTILLER", "SOLVER")
    groups = [*order, *(k.partition(".")[0] for k in flat)]
    for key, value in sorted(flat.items(), key=lambda x: groups.index(x[0].partition(".")[0])):
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return f"# {head}\n{yaml.safe_dump(tree, sort_keys=False)}"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Write configs/ of the newer methods from their authors' settings "
        "(mdistiller/experiments/tables/authors.py).",
        epilog="example:\n  python tools/make_configs.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", default="configs", metavar="DIR", help="default: configs")
    return parser.parse_args(argv)


@exit_on_error
def main(argv: list[str] | None = None) -> None:
    """Write every file."""
    out, count = Path(parse_arguments(argv).out), 0
    for path, text in files():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_text(text, encoding="utf-8")
        count += 1
    print(f"{count} files below {out}")
