"""One epoch of every distiller on scikit-learn's digits, vanilla and with cross-batch weighting.

Prints for each the mean of the whole loss and of its supervised part over the first and over the
last five steps, and the seconds of the epoch
(teacher resnet20 with random weights unless --teacher names a checkpoint, student resnet8).

example:
  python benchmarks/methods.py --teacher output/digits/teacher/student_latest
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from mdistiller.cli import exit_on_error  # noqa: E402
from mdistiller.dataset import build_model  # noqa: E402
from mdistiller.distillers import distiller_dict  # noqa: E402
from mdistiller.engine.cfg import CFG, CROSSBATCH_PREFIX  # noqa: E402
from mdistiller.engine.run import build_trainer  # noqa: E402
from mdistiller.engine.rundir.result import device_name  # noqa: E402
from mdistiller.seeding import derive_seed, seed_everything  # noqa: E402

STEPS_AVERAGED = 5
# The pooled features of resnet8 and resnet20 have 64 channels; K is below the 1,347 images.
CRD = ("CRD.FEAT.STUDENT_DIM", 64, "CRD.FEAT.TEACHER_DIM", 64, "CRD.NCE.K", 256)


def one_epoch(method: str, teacher: str, seed: int) -> tuple[list[list[float]], float]:
    """The (whole, supervised) loss of every step and the seconds of one epoch."""
    cfg = CFG.clone()
    cfg.merge_from_list(
        [
            *("DATASET.TYPE", "digits", "DISTILLER.TYPE", method, "EXPERIMENT.SEED", seed),
            *("DISTILLER.TEACHER", "resnet20", "DISTILLER.STUDENT", "resnet8"),
            *("DISTILLER.TEACHER_CKPT", teacher, "SOLVER.WEIGHT_DECAY", 5e-4, *CRD),
        ]
    )
    if method.startswith(CROSSBATCH_PREFIX):
        cfg.merge_from_list(["SOLVER.TRAINER", "crossbatch"])
    trainer = build_trainer(cfg)
    seed_everything(derive_seed(seed, "training"))
    trainer.distiller.train()
    losses = []
    began = time.perf_counter()
    for batch in trainer.batches(1):
        result = trainer.step(batch, 1)
        values = {name: loss.detach().mean() for name, loss in result.losses.items()}
        supervised = sum(values[n] for n in trainer.distiller.supervised_losses)
        losses.append(torch.stack([sum(values.values()), supervised]))
    losses = torch.stack(losses).tolist()
    return losses, time.perf_counter() - began


def ends(losses: list[list[float]]) -> list[float]:
    """Whole loss at the start and at the end, then the supervised one likewise."""
    table = torch.tensor(losses)
    first, last = table[:STEPS_AVERAGED].mean(0), table[-STEPS_AVERAGED:].mean(0)
    return torch.stack([first, last], dim=1).flatten().tolist()


@exit_on_error
def main() -> None:
    """Train every distiller for an epoch and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", metavar="FILE", help="checkpoint of a resnet20 for digits")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        teacher = args.teacher
        if teacher is None:
            teacher = f"{folder}/teacher"
            torch.save({"model": build_model("digits", "resnet20", 10).state_dict()}, teacher)
        rows = []
        for method in distiller_dict:
            losses, seconds = one_epoch(method, teacher, args.seed)
            rows.append((method, *ends(losses), seconds))
    threads = torch.get_num_threads()
    print(f"{device_name(torch.device('cpu'))}, {threads} threads, seed {args.seed}")
    print(
        f"{'distiller':<20}  {'loss: first':>11} {'last':>8}  {'ce: first':>9} {'last':>7}  seconds"
    )
    for method, first, last, ce_first, ce_last, seconds in rows:
        print(
            f"{method:<20}  {first:>11.4f} {last:>8.4f}  {ce_first:>9.4f} {ce_last:>7.4f}  "
            f"{seconds:>7.2f}"
        )


if __name__ == "__main__":
    main()
