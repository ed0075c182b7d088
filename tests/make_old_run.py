"""Wrote tests/golden/old_run/ at b53cf89: run folders that later code must go on with and report.

Not to be run again with later code, for then they would be later code's folders. Which files of
the runs are kept, and why no others, is in tests/golden/README.md.

  git worktree add ../old b53cf89 && python tests/make_old_run.py ../old
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
OLD_RUN = HERE / "golden" / "old_run"
WEIGHTS = HERE / "golden" / "trainers_weights.jsonl"
CONFIG = HERE / "golden" / "trainers.yaml"

TEACHER_OPTS = (
    *("DISTILLER.TYPE", "NONE", "SOLVER.BATCH_SIZE", 64, "SOLVER.EPOCHS", 6, "DATASET.SUBSET", 0),
    *("DATASET.HOLDOUT", 0, "SOLVER.LR_DECAY_STAGES", [4], "EXPERIMENT.NAME", "teacher"),
)
STUDENT_OPTS = ("DISTILLER.TEACHER_CKPT", "output/same_bits/teacher/student_latest")
# State of every kind lies in the checkpoint: the last weights, their averages, sums of an epoch.
CROSSBATCH_OPTS = (
    *("DISTILLER.TYPE", "CROSSBATCH_KD", "SOLVER.TRAINER", "crossbatch", "CROSSBATCH.EMA", 0.9),
    *("CROSSBATCH.PERIOD", 2, "LOG.WEIGHTS", True, "LOG.SAVE_EVERY_STEPS", 3),
    *("EXPERIMENT.NAME", ""),
)
TABLE = ("table1", "--dataset", "digits", "--pairs", "res20_res8", "--methods", "KD")

# As if killed in the last step of epoch 2: the latest checkpoint is that of its third.
STOPPED = """
import sys, torch
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.run import run_training
taken, step = [], torch.optim.SGD.step
def counted(self, *arguments):
    taken.append(1)
    if len(taken) == 8:
        raise KeyboardInterrupt
    return step(self, *arguments)
torch.optim.SGD.step = counted
opts = sys.argv[2:]
run_training(load_cfg(sys.argv[1], opts), opts[-2:])
"""


def main() -> None:
    checkout = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}

        def run(*words: object, ends: int = 0) -> None:
            command = [sys.executable, *map(str, words)]
            done = subprocess.run(command, cwd=folder, env=environment)
            assert done.returncode == ends, done

        shutil.copy(CONFIG, folder / "pinned.yaml")
        train = (checkout / "tools" / "train.py", "--cfg", "pinned.yaml", "LOG.PREFIX", "output")
        run(*train, *TEACHER_OPTS)
        weights = ("LOG.WEIGHTS", True, "EXPERIMENT.NAME", "weights")
        run(*train, *STUDENT_OPTS, *CROSSBATCH_OPTS[:-2], *weights)
        stopped = (*train[3:], *STUDENT_OPTS, *CROSSBATCH_OPTS, "EXPERIMENT.TAG", "stopped")
        run("-c", STOPPED, "pinned.yaml", *stopped, "EXPERIMENT.SEED", 3, ends=1)
        table = ("--trials", 1, "--epochs", 2, "DISTILLER.TEACHER", "resnet8")
        run(checkout / "tools" / "reproduce.py", *TABLE, *table, *STUDENT_OPTS, *SMALL)
        keep(folder / "output", checkout)


SMALL = ("DATASET.SUBSET", 128, "DATASET.HOLDOUT", 100, "SOLVER.DEVICE", "cpu")
LIGHT = ("config.yaml", "metrics.jsonl", "worklog.txt", "result.json", "weights.jsonl")


def keep(output: Path, checkout: Path) -> None:
    """Copy what a later program reads of it, without the name of this machine."""
    shutil.rmtree(OLD_RUN, ignore_errors=True)
    runs = output / "same_bits"
    copy(runs / "teacher", OLD_RUN / "teacher", "student_latest")
    (stopped,) = runs.glob("stopped*")
    copy(stopped, OLD_RUN / "stopped", "latest")
    table = output / "table1" / "digits"
    for path in sorted(table.iterdir()):
        if (path / "result.json").exists():
            copy(path, OLD_RUN / "table1" / path.name)
        elif path.is_file() and path.suffix == ".json":
            text = path.read_text().replace(f"{checkout}/", "")
            (OLD_RUN / "table1" / path.name).write_text(text)
    shutil.copy(runs / "weights" / "weights.jsonl", WEIGHTS)
    print(json.dumps({str(p.relative_to(OLD_RUN)): p.stat().st_size for p in files()}, indent=1))


def copy(run: Path, to: Path, *checkpoints: str) -> None:
    to.mkdir(parents=True)
    for name in (*LIGHT, *checkpoints):
        if (run / name).exists():
            shutil.copy(run / name, to / name)
    for path in (run / "train.events").iterdir():
        (to / "train.events").mkdir(exist_ok=True)
        start = ".".join(path.name.split(".")[:4])
        shutil.copy(path, to / "train.events" / f"{start}.host.1")


def files() -> list[Path]:
    return sorted(p for p in OLD_RUN.rglob("*") if p.is_file())


if __name__ == "__main__":
    main()
