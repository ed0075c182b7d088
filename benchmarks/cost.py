"""What a run will cost: hours and disk of a configuration and of its cross-batch twin.

Times some training steps of both, taking turns in one process, on random images of the right
size and with random teacher weights (neither changes the time), and counts what the
checkpoints take. The input pipeline and validation are left out.

example:
  python benchmarks/cost.py --cfg configs/cifar100/baseline/kd_res56_res20.yaml \
      configs/cifar100/crossbatch/kd_res56_res20.yaml
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from mdistiller.cli import exit_on_error  # noqa: E402
from mdistiller.dataset import build_model, image_size  # noqa: E402
from mdistiller.device import resolve_device  # noqa: E402
from mdistiller.distillers import CRD  # noqa: E402
from mdistiller.engine import BaseTrainer, trainer_dict  # noqa: E402
from mdistiller.engine.cfg import load_cfg  # noqa: E402
from mdistiller.engine.check import check_config  # noqa: E402
from mdistiller.engine.run import assemble_distiller  # noqa: E402
from mdistiller.engine.rundir.result import device_name  # noqa: E402
from mdistiller.engine.runtime.host import keep_freed_memory  # noqa: E402
from mdistiller.experiments.estimate import DATA, images_of  # noqa: E402


class RandomBatches(list):
    """A few random batches, and the same again as the auxiliary stream."""

    def stream(self, name: str, batch_size: int | None = None) -> RandomBatches:
        return self


def build(cfg_file: str, steps: int) -> BaseTrainer:
    """The trainer of a configuration, over ``steps`` random batches an epoch."""
    cfg = load_cfg(cfg_file)
    check_config(cfg)
    images, _, classes = DATA[cfg.DATASET.TYPE]
    size = image_size(cfg.DATASET.TYPE)
    student = build_model(cfg.DATASET.TYPE, cfg.DISTILLER.STUDENT, classes)
    teacher = None
    if cfg.DISTILLER.TYPE != "NONE":
        teacher = build_model(cfg.DATASET.TYPE, cfg.DISTILLER.TEACHER, classes)
    distiller = assemble_distiller(cfg, student, teacher, images)
    batch = cfg.SOLVER.BATCH_SIZE
    data = RandomBatches(
        (
            torch.randn(batch, 3, size, size),
            torch.randint(classes, (batch,)),
            torch.randint(images, (batch,)),
            torch.randint(images, (batch, cfg.CRD.NCE.K + 1)),
        )[: 4 if isinstance(distiller, CRD) else 3]
        for _ in range(steps)
    )
    return trainer_dict[cfg.SOLVER.TRAINER]("cost", distiller, data, data, cfg)


def time_steps(trainers: list[BaseTrainer], rounds: int) -> list[list[float]]:
    """Seconds of every step of every trainer, taking turns; the first round is a warm-up."""
    seconds: list[list[float]] = [[] for _ in trainers]
    for trainer in trainers:
        trainer.distiller.train()
    for number in range(rounds + 1):
        for trainer, times in zip(trainers, seconds, strict=True):
            for batch in trainer.batches(1):
                began = time.perf_counter()
                trainer.step(batch, 1)
                if trainer.device.type == "cuda":
                    torch.cuda.synchronize(trainer.device)
                if number:
                    times.append(time.perf_counter() - began)
    return seconds


def disk_bytes(trainer: BaseTrainer) -> int:
    """All checkpoints of a whole run: latest, best, and the periodic ones."""
    total = 0
    for state in (
        {
            "model": trainer.distiller.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "trainer": trainer.extra_state(),
        },
        {"model": trainer.distiller.student.state_dict()},
    ):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        total += buffer.tell()
    periodic = trainer.cfg.SOLVER.EPOCHS // trainer.cfg.LOG.SAVE_CHECKPOINT_FREQ
    return total * (2 + periodic)


@exit_on_error
def main() -> None:
    """Print hours and disk of the configurations on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cfg", nargs="+", required=True, metavar="FILE")
    parser.add_argument("--steps", type=int, default=3, help="steps a round (default 3)")
    parser.add_argument("--rounds", type=int, default=8, help="rounds (default 8)")
    args = parser.parse_args()
    keep_freed_memory()
    trainers = [build(cfg_file, args.steps) for cfg_file in args.cfg]
    seconds = [statistics.median(s) for s in time_steps(trainers, args.rounds)]
    device = device_name(resolve_device("auto"))
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    width = max(map(len, args.cfg))
    print(f"{'configuration':<{width}}  ms/step  ratio  hours  checkpoints")
    for cfg_file, trainer, step in zip(args.cfg, trainers, seconds, strict=True):
        solver = trainer.cfg.SOLVER
        images, _ = images_of(trainer.cfg)
        hours = step * solver.EPOCHS * -(-images // solver.BATCH_SIZE) / 3600
        print(
            f"{cfg_file:<{width}}  {step * 1e3:7.1f}  {step / seconds[0]:5.2f}  {hours:5.1f}  "
            f"{disk_bytes(trainer) / 2**20:.0f} MiB"
        )


if __name__ == "__main__":
    main()
