"""Trains the insurance study (docs/study-2.md): teachers, learning rates, then trial by trial.

Every run is a folder of its own below --out, as tools/train.py leaves it; runs of a setting and
trial share a process, a teacher and their batches. What is done is left alone and what was stopped
goes on where it was, so that the same command continues the study; it stops at SIGINT or SIGTERM.

example:
  python benchmarks/insurance.py glyphs --data data --out output/insurance --trials 3
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import _common  # noqa: F401  (puts the checkout on the path)

from mdistiller.cli import exit_on_error
from mdistiller.dataset import get_dataset, load_teacher
from mdistiller.device import resolve_device
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.run import run_training
from mdistiller.engine.rundir.records import read_metrics
from mdistiller.engine.teacher import evaluate
from mdistiller.errors import InterruptedRun, MdistillerError
from mdistiller.experiments.fleet.fleet import Fleet, Member, fleet_settings
from mdistiller.experiments.tables import insurance as study
from mdistiller.experiments.tables.insurance import Run

RATES_FILE = "learning_rates.json"
HELD_OUT_FILE = "held_out.json"


class Study:
    """The runs of one task below a folder.

    Args:
        data: DATASET.ROOT; the set of the teacher of other fonts is in its subfolder other_fonts.
        out: of all tasks' runs.
    """

    def __init__(self, task: str, data: Path, out: Path) -> None:
        self.task, self.data, self.out = task, data, out

    # ---- where things are --------------------------------------------------------------------

    def folder(self, name: str) -> Path:
        return self.out / self.task / name

    def result(self, name: str) -> dict[str, Any] | None:
        """``result.json`` of a run; None while it is not done."""
        file = self.folder(name) / "result.json"
        return json.loads(file.read_text()) if file.exists() else None

    def rates(self) -> dict[str, float]:
        """The chosen learning rates.

        Raises:
            MdistillerError: they have not been chosen yet.
        """
        file = self.out / self.task / RATES_FILE
        if not file.exists():
            raise MdistillerError(f"{file}: not there yet; run --stage rates first")
        return json.loads(file.read_text())

    def config(self, run: Run) -> Any:
        opts = [*run.opts, *self._places(run.name, self.data)]
        teacher = self.folder(f"teacher-{run.setting.teacher}") / "student_latest"
        opts += ["DISTILLER.TEACHER_CKPT", str(teacher)]
        if run.arm.source:
            opts += self._mean_weights(run)
        return load_cfg(run.file, opts)

    def _places(self, name: str, data: Path) -> list[str]:
        places = ["LOG.PREFIX", str(self.out), "EXPERIMENT.PROJECT", self.task]
        return [*places, "EXPERIMENT.NAME", name, "DATASET.ROOT", str(data)]

    def _mean_weights(self, run: Run) -> list[object]:
        """KD's loss weights times the means of A and B over the steps of the source."""
        source = study.ARMS[run.arm.source]
        other = Run(run.task, run.setting, source, run.trial, run.lr)
        epochs = read_metrics(self.folder(other.name))
        steps = sum(e["steps"] for e in epochs)
        a, b = (
            sum(e["crossbatch"][key] * e["steps"] for e in epochs) / steps for key in ("ce", "kd")
        )
        ce, kd = source.ce_weight * a, source.kd_weight * run.setting.scale * b
        return ["KD.LOSS.CE_WEIGHT", float(f"{ce:.6g}"), "KD.LOSS.KD_WEIGHT", float(f"{kd:.6g}")]

    # ---- training ----------------------------------------------------------------------------

    def train_teacher(self, key: str) -> None:
        name = f"teacher-{key}"
        if self.result(name):
            return
        data = self.data / "other_fonts" if key == "fonts" else self.data
        opts = ["DISTILLER.STUDENT", study.TEACHER, *study.TEACHERS[key][self.task]]
        cfg = load_cfg(f"configs/{self.task}/teacher.yaml", [*opts, *self._places(name, data)])
        run_training(cfg, resume=True)

    def train(self, runs: Sequence[Run]) -> None:
        """Runs of one setting and trial, those side by side that can be.

        Raises:
            InterruptedRun: a signal came.
            MdistillerError: runs failed; the others are trained.
        """
        plain = [r for r in runs if not r.arm.source]
        for wave in (plain, [r for r in runs if r.arm.source]):
            missing = [r for r in wave if self.result(r.name) is None]
            if missing:
                self.train_teacher(missing[0].setting.teacher)
            for fleet in _fleets((r, self.config(r)) for r in missing):
                self._train_fleet(fleet)

    def _train_fleet(self, fleet: list[tuple[Run, Any]]) -> None:
        began = time.monotonic(), time.process_time()
        members = {Member(cfg, resume=True): run for run, cfg in fleet}
        Fleet(list(members)).train()
        wall, cpu = time.monotonic() - began[0], time.process_time() - began[1]
        for member, run in members.items():
            top1 = f"{member.result['last_top1']:.2f}" if member.result else f"{member.error}"
            print(f"== {run.task} {run.name}: {top1}", flush=True)
        print(f"== {len(fleet)} runs in {wall:.0f} s, {cpu:.0f} s of CPU time", flush=True)
        for member, run in members.items():
            if member.result and run.arm.held_out == "select" and run.trial != study.SELECTION:
                self._look_at_held_out(run, member.cfg)
        failed = [run.name for member, run in members.items() if member.error is not None]
        if failed:
            raise MdistillerError(f"failed: {', '.join(failed)}")

    def _look_at_held_out(self, run: Run, trained: Any) -> None:
        """Write the student's accuracy on the held-out images, by which it may be chosen."""
        cfg = trained.clone()
        cfg.defrost()
        cfg.DATASET.VALIDATE = "auto"
        _, held_out, _, classes = get_dataset(cfg)
        weights = self.folder(run.name) / "student_latest"
        student = load_teacher(self.task, study.STUDENT, classes, str(weights))
        top1, _, _ = evaluate(student, held_out, resolve_device(cfg.SOLVER.DEVICE))
        (self.folder(run.name) / HELD_OUT_FILE).write_text(json.dumps({"top1": top1}))

    def choose_rates(self) -> None:
        """Train the selection and write down each family's best rate, of two equal the lower."""
        file = self.out / self.task / RATES_FILE
        if file.exists():
            return
        runs = study.selection_runs(self.task)
        self.train(runs)
        best: dict[str, tuple[float, float]] = {}
        for run in runs:
            found = (self.result(run.name)["last_top1"], -run.lr)
            best[run.arm.family] = max(found, best.get(run.arm.family, found))
        file.write_text(json.dumps({family: -lr for family, (_, lr) in best.items()}, indent=1))


def _fleets(runs: Iterable[tuple[Run, Any]]) -> list[list[tuple[Run, Any]]]:
    """Those together that share batches and teacher."""
    found: list[tuple[dict[str, Any], list[tuple[Run, Any]]]] = []
    for run, cfg in runs:
        settings = fleet_settings(cfg)
        fleet = next((members for known, members in found if known == settings), None)
        if fleet is None:
            fleet = []
            found.append((settings, fleet))
        fleet.append((run, cfg))
    return [members for _, members in found]


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=study.TASKS)
    parser.add_argument("--data", type=Path, default=Path("data"), help="DATASET.ROOT")
    parser.add_argument("--out", type=Path, default=Path("output/insurance"))
    parser.add_argument("--stage", choices=("teachers", "rates", "runs"), default="runs")
    parser.add_argument("--trials", type=int, default=study.TRIALS, help="so many, from the first")
    parser.add_argument("--settings", nargs="+", choices=study.SETTINGS, default=study.MAIN)
    parser.add_argument("--arms", nargs="+", choices=study.ARMS, default=study.KEY_ARMS)
    parser.add_argument("--dry-run", action="store_true", help="print the runs and whether done")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    whole = Study(args.task, args.data, args.out)
    if args.stage == "teachers":
        for key in dict.fromkeys(study.SETTINGS[s].teacher for s in args.settings):
            whole.train_teacher(key)
        return
    if args.stage == "rates":
        whole.choose_rates()
        return
    rates = dict.fromkeys(study.FAMILIES, 0.0) if args.dry_run else whole.rates()
    runs = list(study.runs(args.task, rates, args.settings, args.arms, range(args.trials)))
    if args.dry_run:
        done = [run for run in runs if whole.result(run.name)]
        for run in runs:
            print(f"{'done' if run in done else '    '} {run.task} {run.name}")
        print(f"{len(done)} of {len(runs)} runs are done")
        return
    for _, block in itertools.groupby(runs, lambda run: (run.trial, run.setting.key)):
        try:
            whole.train(list(block))
        except InterruptedRun:
            raise
        except MdistillerError as error:
            print(f"== {error}", flush=True)


if __name__ == "__main__":
    exit_on_error(main)()
