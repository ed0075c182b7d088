"""Records of runs and of what was asked for, in files that outlive the machine that trained them.

A folder of records holds two files of JSON lines, to which lines are only ever added:

``runs.jsonl``, a line for every run that ended:

| key | content |
|---|---|
| ``id`` | hash of ``config`` (:func:`mdistiller.config.identity_of`) |
| ``state`` | ``done`` or ``failed`` |
| ``config`` | every setting that the result depends on; files by last folder and name |
| ``result`` | ``result.json``: accuracies, seconds, device, versions, commit |
| ``failure`` | of a failed run: ``exit_code``, ``tail`` (the end of its log), ``finished`` |
| ``epochs`` | ``metrics.jsonl`` in six significant digits |
| ``weights`` | with LOG.WEIGHTS: those of every step, in single precision exactly |
| ``teacher`` | ``network``, ``file``, ``top1`` in percent, ``sha256`` of the file |
| ``machine`` | ``cpu``, ``instructions``, ``processors``, ``threads``, ``system``, ``torch`` |
| ``recorded`` | ``at`` (UTC), ``commit`` |
| ``table`` | for which table it was trained; none of a comparison |
| ``command`` | the command line, as it was given |

``queries.jsonl``, a line for every table that was asked for (:class:`Query`). Which runs stand in
which cell is found by asking (:func:`~.query.places`); a run that several tables want is one run.

Of what is unknown a line has no key. No line has an absolute path.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from mdistiller.config import Config, used_groups
from mdistiller.config.names import affects_result, hash_of, relevant

TEACHER_FILE = "DISTILLER.TEACHER_CKPT"
# Files of which what they hold counts, not where they lie.
_FILES = (TEACHER_FILE, "REPLAY.FILE")


@dataclass(frozen=True)
class Record:
    """One run; see this module's docstring."""

    id: str
    state: str
    config: dict[str, Any] = field(repr=False)
    result: dict[str, Any] = field(default_factory=dict, repr=False)
    failure: dict[str, Any] = field(default_factory=dict, repr=False)
    epochs: Sequence[dict[str, Any]] = field(default=(), repr=False)
    weights: Sequence[dict[str, Any]] = field(default=(), repr=False)
    teacher: dict[str, Any] = field(default_factory=dict, repr=False)
    machine: dict[str, Any] = field(default_factory=dict, repr=False)
    recorded: dict[str, Any] = field(default_factory=dict, repr=False)
    table: str = ""
    command: Sequence[str] = field(default=(), repr=False)

    @property
    def dataset(self) -> str:
        return self.config["DATASET.TYPE"]

    @property
    def seed(self) -> int:
        return self.config["EXPERIMENT.SEED"]

    @property
    def outcome(self) -> str:
        """What two records of one and the same training have in common: every number."""
        result = {k: v for k, v in self.result.items() if k != "name"}
        return json.dumps([self.id, self.state, result, self.failure, list(self.epochs)])


@dataclass(frozen=True)
class Query:
    """A table that was asked for.

    Attributes:
        table, dataset, pairs, methods: as for :func:`~.tables.build_table`.
        trials: per cell; None: the table's own number.
        epochs, teacher_epochs: instead of the configurations', the decay stages in proportion.
        overrides: KEY VALUE ... of every student, without those that change no result.
        teachers: each teacher's file by its network, last folder and name.
        command: the command line, as it was given.
    """

    table: str
    dataset: str = "cifar100"
    pairs: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    trials: int | None = None
    epochs: int | None = None
    teacher_epochs: int | None = None
    overrides: tuple[str, ...] = ()
    teachers: dict[str, str] = field(default_factory=dict, hash=False)
    command: tuple[str, ...] = field(default=(), compare=False)

    @property
    def settings(self) -> dict[str, Any]:
        """What all runs of the table have in common beside their cells, the teacher left out."""
        pairs = dict(zip(self.overrides[0::2], self.overrides[1::2], strict=True))
        pairs.pop(TEACHER_FILE, None)
        given = {"--epochs": self.epochs, "--teacher-epochs": self.teacher_epochs}
        return pairs | {key: str(value) for key, value in given.items() if value is not None}

    @property
    def settings_id(self) -> str:
        """Six hexadecimal digits for :attr:`settings`."""
        return hash_of(self.settings)[:6]


def settings_of(cfg: Config) -> dict[str, Any]:
    """Every setting that a run's result depends on, by dotted key."""
    return relevant(used_groups(cfg).leaves())


# ---- no absolute paths -----------------------------------------------------------------------


def without_places(overrides: Sequence[str]) -> tuple[str, ...]:
    """Overrides KEY VALUE ... without those that change no result, paths made portable."""
    pairs = zip(overrides[0::2], overrides[1::2], strict=True)
    return tuple(
        word
        for key, value in pairs
        if affects_result(key) or key in _FILES
        for word in (key, portable(value))
    )


def portable(word: str) -> str:
    """An absolute path as seen from the current folder, or by its last folder and name."""
    path = PurePosixPath(word)
    if not path.is_absolute():
        return word
    here = PurePosixPath(Path.cwd())
    return str(path.relative_to(here)) if path.is_relative_to(here) else "/".join(path.parts[-2:])
