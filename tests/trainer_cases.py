"""Short trainings with every trainer, and what identifies their students.

Shared by ``test_same_bits.py`` and ``make_trainers_golden.py``. Only names are used that users
have, too: the code behind them may be reorganised and these trainings must stay the same.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.run import run_training

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_FILE = GOLDEN / "trainers.json"
# Every key with its value, so that no later default changes what is trained here.
CONFIG = GOLDEN / "trainers.yaml"
OLD_RUN = GOLDEN / "old_run"
TEACHER = OLD_RUN / "teacher" / "student_latest"
# Of the weights that a cross-batch run used.
WEIGHTS = GOLDEN / "trainers_weights.jsonl"

Options = tuple[object, ...]


def _crossbatch(method: str, *options: object) -> Options:
    return ("DISTILLER.TYPE", f"CROSSBATCH_{method}", "SOLVER.TRAINER", "crossbatch", *options)


def _weighted(trainer: str, *options: object) -> Options:
    return ("DISTILLER.TYPE", "KD", "SOLVER.TRAINER", trainer, *options)


def _cases() -> Iterator[tuple[str, Options]]:
    """Name and overrides of :data:`CONFIG` of every training."""
    yield "base NONE", ("DISTILLER.TYPE", "NONE", "SOLVER.TRAINER", "base")
    for trainer in ("base", "dot"):
        yield f"{trainer} KD", _weighted(trainer)
    for trainer in ("crd", "crd_dot"):
        yield f"{trainer} CRD", ("DISTILLER.TYPE", "CRD", "SOLVER.TRAINER", trainer)
    yield (
        "base KD, AdamW, cosine, warm-up, label smoothing",
        _weighted("base", "SOLVER.TYPE", "AdamW", "SOLVER.LR", 0.0002, "SOLVER.SCHEDULE", "cosine")
        + ("SOLVER.WARMUP_EPOCHS", 1, "SOLVER.LABEL_SMOOTHING", 0.1),
    )
    yield (
        "base KD, NCHW, teacher not folded",
        _weighted("base", "SOLVER.CHANNELS_LAST", False, "SOLVER.FOLD_TEACHER", False),
    )
    for reading in ("printed", "orthogonal", "align", "cone"):
        for reference in ("fresh", "previous", "same", "none"):
            if reading == "printed" or reference != "none":
                node = ("CROSSBATCH.READING", reading, "CROSSBATCH.REFERENCE", reference)
                yield f"crossbatch KD, {reading}, {reference}", _crossbatch("KD", *node)
    for key, value in (
        *(("EMA", 0.9), ("PERIOD", 2), ("STABILIZE", False), ("ALPHA", 1.0)),
        *(("BATCH_SIZE", 8), ("RESCALE", 2)),
    ):
        yield f"crossbatch KD, {key} {value}", _crossbatch("KD", f"CROSSBATCH.{key}", value)
    yield (
        "crossbatch KD, previous, PERIOD 2",
        _crossbatch("KD", "CROSSBATCH.REFERENCE", "previous", "CROSSBATCH.PERIOD", 2),
    )
    for method in ("AT", "PKT", "RKD", "CRD", "FITNET", "REVIEWKD", "VID"):
        yield f"crossbatch {method}", _crossbatch(method)
    for method, arguments in (("MGDA", ""), ("CAGrad", "c=0.8"), ("PCGrad", "")):
        node = ("MULTITASK.METHOD", method, "MULTITASK.PARAMS", arguments)
        yield f"multitask KD, {method}", _weighted("multitask", *node)
    for trainer in ("gradnorm", "uncertainty", "gradient_cosine", "distill_decay"):
        yield f"{trainer} KD", _weighted(trainer)
    yield (
        "gradient_cosine KD, weighted",
        _weighted("gradient_cosine", "GRADIENT_COSINE.WEIGHTED", True),
    )
    for shuffle in (False, True):
        node = ("REPLAY.FILE", WEIGHTS, "REPLAY.SHUFFLE", shuffle)
        yield f"replay KD, {'' if shuffle else 'not '}shuffled", _weighted("replay", *node)


CASES = dict(_cases())
# The run of OLD_RUN/stopped, had it not been stopped; recorded beside the cases.
NOT_STOPPED = "old run, not stopped"


def train(prefix: Path, case: str) -> Path:
    """Train ``case`` in this process; returns the run's folder below ``prefix``."""
    name = case.replace(" ", "_")
    own = CASES.get(case, ())
    options = ("LOG.PREFIX", prefix, "EXPERIMENT.NAME", name, "DISTILLER.TEACHER_CKPT", TEACHER)
    file = OLD_RUN / "stopped" / "config.yaml" if case == NOT_STOPPED else CONFIG
    cfg = load_cfg(file, [str(x) for x in (*options, *own)])
    run_training(cfg)
    return prefix / "same_bits" / name


def measure(folder: Path) -> dict[str, Any]:
    """What identifies the result of the run in ``folder``.

    Returns:
        "hash": of the student's weights. "numbers": of each epoch the losses, of the weights
        and of the running statistics their norm and three weighted sums, to be compared where
        another processor rounds otherwise.
    """
    state = torch.load(folder / "student_latest", weights_only=True)["model"]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    numbers = {
        f"epoch {entry['epoch']} {key}": value
        for entry in map(json.loads, lines)
        for key, value in entry.items()
        if key == "test_loss" or key.startswith("train_") and "acc" not in key
    }
    for kind in ("weights", "running statistics"):
        keys = [k for k in sorted(state) if ("running" in k) == (kind == "running statistics")]
        values = [state[k].double().flatten() for k in keys if state[k].is_floating_point()]
        numbers |= {f"{kind} {name}": x for name, x in _summary(torch.cat(values)).items()}
    return {"hash": weights_hash(state), "numbers": numbers}


def weights_hash(state: dict[str, Tensor]) -> str:
    """SHA-256 over the raw bytes of a state dict in the order of its keys' names."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(state[key].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _summary(values: Tensor) -> dict[str, float]:
    """Norm and weighted sums of a vector; no single value can change without changing one."""
    place = torch.arange(len(values), dtype=torch.float64)
    found = {"norm": values.norm().item()}
    for step in (0.0, 1.0, math.sqrt(2)):
        found[f"sum cos({step:.1f} n)"] = (values * torch.cos(step * place)).sum().item()
    return found


def fingerprint() -> str:
    """How this process rounds: equal fingerprints mean that the hashes must be equal, too.

    Made by torch alone, so that no change of this project can change it: a residual block's
    forward and backward pass in both memory layouts, products of matrices, softmax and its
    like, sums, a singular value decomposition, random numbers, steps of SGD and AdamW.
    """
    draw = torch.Generator().manual_seed(7)
    found: list[Tensor] = []

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    for layout in (torch.channels_last, torch.contiguous_format):
        image = normal(20, 3, 32, 32).to(memory_format=layout)
        shapes = ((16, 3, 3, 3), (32, 16, 3, 3), (32, 16, 1, 1), (64, 32, 3, 3))
        kernels = [(normal(*s) / 10).to(memory_format=layout).requires_grad_() for s in shapes]
        first = _normalised(F.conv2d(image, kernels[0], padding=1)).relu()
        main = _normalised(F.conv2d(first, kernels[1], stride=2, padding=1))
        both = (main + F.conv2d(first, kernels[2], stride=2)).relu()
        last = _normalised(F.conv2d(both, kernels[3], stride=2, padding=1)).relu()
        logits = last.mean((2, 3)) @ normal(64, 10)
        target = torch.arange(20) % 10
        soft = F.softmax(normal(20, 10) / 4, 1)
        loss = F.cross_entropy(logits, target)
        loss = loss + F.kl_div(F.log_softmax(logits / 4, 1), soft, reduction="batchmean")
        gradients = torch.autograd.grad(loss, kernels)
        found += [loss, *gradients]
        for kind in (torch.optim.SGD, torch.optim.AdamW):
            optimizer = kind(kernels, lr=0.05, weight_decay=5e-4)
            for kernel, gradient in zip(kernels, gradients, strict=True):
                kernel.grad = gradient
            optimizer.step()
        found += kernels
    rows = normal(3, 78_042)
    positive = normal(20, 640).abs() + 0.1
    found += [rows @ rows.T, rows.double() @ rows.double().T, rows.norm(dim=1), rows.sum(1)]
    found += [rows.T[:100] @ rows[:, :100], positive.log(), positive.exp(), positive.sqrt()]
    found += [positive.pow(1.7), *torch.linalg.svd(positive), torch.randperm(99, generator=draw)]
    found.append(torch.linalg.solve(positive[:, :20].double(), positive[:, 20:40].double()))
    digest = hashlib.sha256(f"torch {torch.__version__}".encode())
    for value in found:
        digest.update(value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _normalised(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, torch.ones(x.shape[1]), torch.zeros(x.shape[1]), True)
