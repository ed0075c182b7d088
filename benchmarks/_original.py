"""The step of a checkout of megvii-research/mdistiller, in a process that imports it alone.

Started by step.py as ``_original.py FOLDER TEACHER STUDENT METHOD BATCH THREADS DEVICE CLOCK``.
Reads numbers of steps from standard input, takes so many by the checkout's own ``train_iter``, and
prints the seconds. Where it computes on the CPU, the ``.cuda`` calls in it do nothing. Its batches
are made before the clock starts, so that its data loader is not in its time.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
from importlib.machinery import PathFinder
from pathlib import Path

import torch
from torch import nn

CLASSES, SIZE, BATCHES = 100, 32, 20


def without_cuda() -> None:
    """Let what would move a tensor or a network to the GPU leave it where it is."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # DataParallel takes those it finds
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    nn.Module.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]


def use(folder: Path) -> None:
    """Let ``mdistiller`` be the checkout's.

    The first place on sys.path does not do where the checkout's package has no ``__init__.py``:
    any mdistiller that has one would come before it, wherever on the path it is.
    """
    sys.path.insert(0, str(folder))
    spec = PathFinder.find_spec("mdistiller", [str(folder)])
    if spec is None:
        sys.exit(f"{folder} holds no mdistiller")
    package = importlib.util.module_from_spec(spec)
    sys.modules["mdistiller"] = package
    if spec.origin:
        spec.loader.exec_module(package)


def trainer_of(pair: list[str], method: str, batch: int, log_folder: str):
    """The trainer of ``method``, as the checkout's tools/train.py makes it, without data."""
    os.environ.setdefault("LOGNAME", "benchmark")  # it asks for the user's name
    from mdistiller.distillers import distiller_dict
    from mdistiller.engine import trainer_dict
    from mdistiller.engine.cfg import CFG
    from mdistiller.models import cifar_model_dict

    cfg = CFG.clone()
    cfg.merge_from_list(
        [
            *("DISTILLER.TYPE", method, "DISTILLER.TEACHER", pair[0], "DISTILLER.STUDENT", pair[1]),
            *("SOLVER.BATCH_SIZE", batch, "SOLVER.WEIGHT_DECAY", 5e-4, "LOG.PREFIX", log_folder),
            *("LOG.WANDB", False),
        ]
    )
    torch.manual_seed(0)
    teacher, student = (cifar_model_dict[name][0](num_classes=CLASSES) for name in pair)
    distiller = nn.DataParallel(distiller_dict[method](student, teacher, cfg).cuda())
    trainer = trainer_dict[cfg.SOLVER.TRAINER]("original", distiller, None, None, cfg)
    distiller.train()
    return trainer


def random_batches(batch: int) -> list[tuple[torch.Tensor, ...]]:
    """Normalised noise images, labels and positions."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(BATCHES, batch, 3, SIZE, SIZE, generator=rng)
    targets = torch.randint(CLASSES, (BATCHES, batch), generator=rng)
    index = torch.arange(BATCHES * batch).view(BATCHES, batch)
    return list(zip(images, targets, index, strict=True))


def main() -> None:
    """Serve steps."""
    folder, *pair, method, batch, threads, device, clock = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    # The checkout prints; what is read here are the seconds alone.
    os.dup2(2, 1)
    torch.set_num_threads(int(threads))
    if device == "cpu":
        without_cuda()
    use(Path(folder))
    with tempfile.TemporaryDirectory() as log_folder:
        trainer = trainer_of(pair, method, int(batch), log_folder)
        from mdistiller.engine.utils import AverageMeter

        names = ("training_time", "data_time", "losses", "top1", "top5")
        meters = {name: AverageMeter() for name in names}
        batches, steps = random_batches(int(batch)), 0
        now = time.process_time if clock == "cpu" else time.perf_counter
        for line in sys.stdin:
            began = now()
            for _ in range(int(line)):
                trainer.train_iter(batches[steps % BATCHES], 1, meters)
                steps += 1
            if device != "cpu":
                torch.cuda.synchronize()
            print(now() - began, file=answers, flush=True)
        getattr(trainer, "tf_writer", answers).close()


if __name__ == "__main__":
    main()
