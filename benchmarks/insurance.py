"""Trains the insurance study (docs/study-2.md): teachers, learning rates, then trial by trial.

Every run is a folder of its own below --out, as tools/train.py leaves it; runs of a trial share a
process, and those with the same images and labels their teacher and batches. What is done is left
alone and what was stopped goes on where it was, so that the same command continues the study; it
stops at SIGINT or SIGTERM. With --stage record what is done is added to --records.

example:
  python benchmarks/insurance.py glyphs --data data --out output/insurance --trials 3
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import _common  # noqa: F401  (puts the checkout on the path)

from mdistiller.cli import exit_on_error
from mdistiller.dataset import get_dataset, load_teacher
from mdistiller.device import resolve_device
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.run import run_training
from mdistiller.engine.rundir.files import write_text
from mdistiller.engine.rundir.records import read_metrics
from mdistiller.engine.teacher import evaluate
from mdistiller.errors import InterruptedRun, MdistillerError
from mdistiller.experiments.fleet.fleet import Fleet, Member, fleet_settings
from mdistiller.experiments.job import Job
from mdistiller.experiments.make_record import record_of, sha256_of
from mdistiller.experiments.records import Record, append_runs, read_runs
from mdistiller.experiments.tables import insurance as study
from mdistiller.experiments.tables.insurance import Run

# In result.json, in percent.
HELD_OUT = "held_out_top1"

# Under which its runs are recorded.
TABLE = "insurance"


class Study:
    """The runs of one task below a folder, and those on record.

    Args:
        data: DATASET.ROOT; the set of the teacher of other fonts is in its subfolder other_fonts.
        out: of all tasks' runs; None to read those on record alone.
        records: a folder of records; what is on record is done.
    """

    def __init__(
        self, task: str, data: Path, out: Path | None, records: Path | None = None
    ) -> None:
        self.task, self.data, self.out, self.records = task, data, out, records
        runs = read_runs(records) if records else []
        ours = (run for run in runs if run.table == TABLE and run.state == "done")
        by_name = {run.result["name"]: run for run in ours}
        self._recorded = {k: v for k, v in by_name.items() if k.startswith(f"{task}/")}

    # ---- what is there -----------------------------------------------------------------------

    @property
    def recorded(self) -> Collection[Record]:
        """Of this task's runs those that are on record."""
        return self._recorded.values()

    def folder(self, name: str) -> Path:
        return self.out / self.task / name

    def result(self, name: str) -> dict[str, Any] | None:
        """``result.json`` of a run; None while it is not done."""
        if self.out is not None and (file := self.folder(name) / "result.json").exists():
            return json.loads(file.read_text(encoding="utf-8"))
        recorded = self._recorded.get(f"{self.task}/{name}")
        return recorded and recorded.result

    def epochs(self, name: str) -> Sequence[dict[str, Any]]:
        """``metrics.jsonl`` of a run that is done."""
        recorded = self._recorded.get(f"{self.task}/{name}")
        return recorded.epochs if recorded else read_metrics(self.folder(name))

    def rates(self) -> dict[str, float]:
        """Each family's best learning rate, of two equal ones the lower.

        Raises:
            MdistillerError: not all that are to choose from are trained.
        """
        best: dict[str, tuple[float, float]] = {}
        for run in study.selection_runs(self.task):
            result = self.result(run.name)
            if result is None:
                raise MdistillerError(f"{self.task} {run.name} is missing; run --stage rates first")
            found = (result["last_top1"], -run.lr)
            best[run.arm.family] = max(found, best.get(run.arm.family, found))
        return {family: -lr for family, (_, lr) in best.items()}

    def record(self) -> int:
        """Add all runs that are done to the records; returns how many were new."""
        files = sorted((self.out / self.task).glob("*/result.json"))
        jobs = (Job.from_folder(file.parent) for file in files)
        return append_runs(self.records, (record_of(job, "done", TABLE) for job in jobs))

    def config(self, run: Run) -> Any:
        opts = [*run.opts, *self._places(run.name, self.data)]
        teacher = self.folder(f"teacher-{run.teacher}") / "student_latest"
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
        other = Run(run.task, run.setting, source, run.trial, run.lr, run.pair)
        epochs = self.epochs(other.name)
        steps = sum(e["steps"] for e in epochs)
        a, b = (
            sum(e["crossbatch"][key] * e["steps"] for e in epochs) / steps for key in ("ce", "kd")
        )
        ce, kd = source.ce_weight * a, source.kd_weight * run.setting.scale * b
        return ["KD.LOSS.CE_WEIGHT", float(f"{ce:.6g}"), "KD.LOSS.KD_WEIGHT", float(f"{kd:.6g}")]

    # ---- training ----------------------------------------------------------------------------

    def train_teacher(self, key: str) -> None:
        """Train it unless it is below the folder, where what is on record has left no weights.

        Raises:
            MdistillerError: its weights are not those of the runs on record.
        """
        name = f"teacher-{key}"
        weights = self.folder(name) / "student_latest"
        if not (weights.with_name("result.json").exists() and weights.exists()):
            self._train_teacher(key, name)
        teachers = (run.teacher for run in self.recorded if run.teacher)
        known = {t.get("sha256") for t in teachers if t.get("file", "").startswith(f"{name}/")}
        if known and sha256_of(weights) not in known:
            raise MdistillerError(
                f"{weights} is another teacher than that of the runs on record, with which its "
                "students cannot be compared; leave --records out, for a study of its own"
            )

    def _train_teacher(self, key: str, name: str) -> None:
        data = self.data / "other_fonts" if key == "fonts" else self.data
        if key not in study.TEACHERS:
            raise MdistillerError(f"the study has no teacher {key} for this pair of networks")
        network, _, _ = study.PAIRS[key.partition("-")[0] if "-" in key else study.PAIR]
        opts = ["DISTILLER.STUDENT", network, *study.TEACHERS[key][self.task]]
        cfg = load_cfg(f"configs/{self.task}/teacher.yaml", [*opts, *self._places(name, data)])
        run_training(cfg, resume=True)

    def train(self, runs: Sequence[Run]) -> None:
        """Runs of one trial, those side by side that can be; what fails is told and left.

        Raises:
            InterruptedRun: a signal came.
        """
        plain = [r for r in runs if not r.arm.source]
        for wave in (plain, [r for r in runs if r.arm.source]):
            missing = [r for r in wave if self.result(r.name) is None]
            for teacher in dict.fromkeys(r.teacher for r in missing if r.arm.family != "ce"):
                self.train_teacher(teacher)
            for fleet in _fleets((r, self.config(r)) for r in missing):
                try:
                    self._train_fleet(fleet)
                except InterruptedRun:
                    raise
                except MdistillerError as error:
                    print(f"== {error}", flush=True)

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
        """Add the student's accuracy on the held-out images, by which it may be chosen."""
        cfg = trained.clone()
        cfg.defrost()
        cfg.DATASET.VALIDATE = "auto"
        _, held_out, _, classes = get_dataset(cfg)
        weights = self.folder(run.name) / "student_latest"
        student = load_teacher(self.task, cfg.DISTILLER.STUDENT, classes, str(weights))
        top1, _, _ = evaluate(student, held_out, resolve_device(cfg.SOLVER.DEVICE))
        result = {**self.result(run.name), HELD_OUT: top1}
        write_text(self.folder(run.name) / "result.json", json.dumps(result, indent=2) + "\n")


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


STAGES = ("teachers", "rates", "runs", "record")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Of the command line, or of ``argv``; wrong ones end the process with status 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=study.TASKS)
    parser.add_argument("--data", type=Path, default=Path("data"), help="DATASET.ROOT")
    parser.add_argument("--out", type=Path, default=Path("output/insurance"))
    parser.add_argument("--records", type=Path, help="folder of records, e.g. results")
    parser.add_argument("--stage", choices=STAGES, default="runs")
    parser.add_argument("--trials", type=int, help="so many, from the first; default: all")
    parser.add_argument("--pair", choices=study.PAIRS, default=study.PAIR, help="of networks")
    parser.add_argument("--settings", nargs="+", choices=study.SETTINGS, default=study.MAIN)
    parser.add_argument("--arms", nargs="+", choices=study.ARMS, default=study.KEY_ARMS)
    parser.add_argument("--dry-run", action="store_true", help="print the runs and whether done")
    args = parser.parse_args(argv)
    if args.stage == "record" and not args.records:
        parser.error("--stage record needs --records")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Train, list or record what the arguments name."""
    args = parse_arguments(argv)
    whole = Study(args.task, args.data, args.out, args.records)
    if args.stage == "record":
        print(f"{whole.record()} new runs in {args.records}")
        return
    if args.stage == "teachers":
        for setting in args.settings:
            run = study.run_of(args.task, setting, "kd", 0, pair=args.pair)
            whole.train_teacher(run.teacher)
        return
    if args.stage == "rates":
        whole.train(study.selection_runs(args.task))
        print(whole.rates())
        return
    rates = dict.fromkeys(study.FAMILIES, 0.0) if args.dry_run else whole.rates()
    trials = range(args.trials or study.PAIRS[args.pair][2])
    runs = list(study.runs(args.task, rates, args.settings, args.arms, trials, args.pair))
    if args.dry_run:
        done = [run for run in runs if whole.result(run.name)]
        for run in runs:
            print(f"{'done' if run in done else '    '} {run.task} {run.name}")
        print(f"{len(done)} of {len(runs)} runs are done")
        return
    for _, of_trial in itertools.groupby(runs, lambda run: run.trial):
        whole.train(list(of_trial))


if __name__ == "__main__":
    exit_on_error(main)()
