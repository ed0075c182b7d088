"""Which runs of a plan read their teacher's answers from a file, and whether making it pays."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mdistiller.config import load_cfg
from mdistiller.dataset import get_dataset
from mdistiller.distillers import distiller_dict
from mdistiller.engine.caching.answers import KEY, LAST_MAP, array_loader, source_of
from mdistiller.engine.caching.file import CacheFile, open_or_create
from mdistiller.errors import ConfigError, DataError

from .estimate import trained_share
from .job import Job

FOLDER = "teacher_caches"

# What decides on a file, beside the last map; the seed where the teacher's weights are made of it.
_DECIDES = (
    *("DATASET.TYPE", "DATASET.IMAGE_SIZE", "DISTILLER.TEACHER", "DISTILLER.TEACHER_CKPT"),
    *("DISTILLER.TEACHER_MEAN", "DISTILLER.TEACHER_STD"),
    *("DISTILLER.TEACHER_SIZE", "DISTILLER.FEATURES.TEACHER"),
    *("SOLVER.AMP", "SOLVER.FOLD_TEACHER", "SOLVER.CHANNELS_LAST"),
)


@dataclass(frozen=True)
class Use:
    """One file, and the runs that would read it.

    Attributes:
        path: of the file.
        cfg: of the first of the runs.
        runs: how many.
        epochs: the most that one of them has left.
        passes: of the teacher over the whole training set, without the file.
        cost: passes that making the file takes, or what is left of it.
    """

    path: Path
    cfg: Any
    runs: int
    epochs: int
    passes: float
    cost: float

    @property
    def pays(self) -> bool:
        return self.passes > self.cost

    @property
    def words(self) -> str:
        """One line on what it saves."""
        teacher = self.cfg.DISTILLER.TEACHER
        begin = f"teacher cache of {teacher}: {self.runs} runs of {self.epochs} epochs"
        if self.pays:
            saved = round(self.passes - self.cost)
            return f"{begin}, {saved} teacher passes saved of {self.passes:.0f} ({self.path})"
        return (
            f"{begin}, none: they show it the images {self.passes:.0f} times, and making it takes "
            f"{self.cost:.0f} passes"
        )


class Caches:
    """The files of teachers' answers of one plan.

    Args:
        prefix: folder of all results.
        dtype: of new files; None to make none.
    """

    def __init__(self, prefix: str, dtype: str | None) -> None:
        self._folder, self._dtype = Path(prefix) / FOLDER, dtype
        self._variants: dict[str, int] = {}
        self._made: set[Path] = set()
        self.uses: dict[Path, Use] = {}

    def assign(self, groups: Iterable[Sequence[Job]], fleet_size: int, make: bool) -> list[Job]:
        """The jobs, each with the file that it reads, if it reads one.

        A run that has begun goes on as it began, whatever is asked for now.

        Args:
            groups: runs that one process may train side by side, with one teacher.
            fleet_size: as for ``plan_fleets``.
            make: create the files, empty; who needs one first fills it.
        """
        jobs: list[Job] = []
        wanting: dict[Path, list[tuple[int, Job]]] = {}
        for number, group in enumerate(groups):
            for job in group:
                if job.is_resumable():
                    jobs.append(_as_it_began(job))
                    continue
                jobs.append(job)
                if self._dtype and (path := self._file_for(job.cfg)):
                    wanting.setdefault(path, []).append((number, job))
        chosen: dict[str, Path] = {}
        for path, members in wanting.items():
            if path not in self.uses or not self.uses[path].pays:
                self.uses[path] = self._use(path, members, fleet_size)
            if self.uses[path].pays:
                chosen |= {job.id: path for _, job in members}
                if make and path not in self._made:
                    self._create(path, members[0][1].cfg)
        return [_reading(job, str(chosen[job.id])) if job.id in chosen else job for job in jobs]

    def _file_for(self, cfg: Any) -> Path | None:
        """Where the answers lie that a run could read; None if it can read none."""
        name = cfg.DISTILLER.TYPE
        if name == "NONE" or cfg.DISTILLER.TEACHER_CACHE or not distiller_dict[name].reads_cache:
            return None
        if not self._variants_of(cfg):
            return None
        leaves = cfg.leaves()
        settings = {key: leaves[key] for key in _DECIDES}
        settings["map"] = LAST_MAP in distiller_dict[name].reads_cache
        settings["dtype"] = self._dtype
        if cfg.DISTILLER.TEACHER_FAULT == "random":
            settings["seed"] = cfg.EXPERIMENT.SEED
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        return self._folder / f"{cfg.DATASET.TYPE}-{cfg.DISTILLER.TEACHER}-{digest}.cache"

    def _variants_of(self, cfg: Any) -> int:
        """Of each image of a data set; 0 if they are not few or the data are not there."""
        name = cfg.DATASET.TYPE
        if name not in self._variants:
            try:
                self._variants[name] = array_loader(cfg, get_dataset(cfg)[0]).variants
            except (ConfigError, DataError):
                self._variants[name] = 0
        return self._variants[name]

    def _use(self, path: Path, members: list[tuple[int, Job]], fleet_size: int) -> Use:
        by_group: dict[int, list[float]] = {}
        for group, job in members:
            seen = trained_share(job.cfg) * job.cfg.SOLVER.EPOCHS
            by_group.setdefault(group, []).append(seen)
        passes = 0.0
        for epochs in by_group.values():
            # A process shows an image to the teacher once for all of its runs.
            processes = -(-len(epochs) // (fleet_size or len(epochs)))
            passes += sum(sorted(epochs)[-processes:]) if fleet_size != 1 else sum(epochs)
        cfg, cost = members[0][1].cfg, 1.0
        if path.exists():
            file = CacheFile(path)
            cost = file.missing / file.header.blocks
            file.close()
        return Use(
            path=path,
            cfg=cfg,
            runs=len(members),
            epochs=max(job.cfg.SOLVER.EPOCHS for _, job in members),
            passes=passes,
            cost=cost * self._variants_of(cfg),
        )

    def _create(self, path: Path, cfg: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        open_or_create(path, source_of(cfg, self._dtype or "fp32").header).close()
        self._made.add(path)


def _as_it_began(job: Job) -> Job:
    began = load_cfg(job.folder / "config.yaml").DISTILLER.TEACHER_CACHE
    return _reading(job, began) if began else job


def _reading(job: Job, path: str) -> Job:
    return replace(job, opts=(*job.opts, KEY, path))
