"""docs/in-your-fork.md: its block trains in a trainer with the original's interface."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mdistiller.distillers import KD
from mdistiller.engine.cfg import CFG

from .toys import loader, networks

ROOT = Path(__file__).resolve().parents[1]


def block() -> str:
    text = (ROOT / "docs/in-your-fork.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return code


class Meter:
    """A mean, as a number."""

    def __init__(self):
        self.avg, self.sum, self.count = 0.0, 0.0, 0

    def update(self, value, count):
        self.sum, self.count = self.sum + value * count, self.count + count
        self.avg = self.sum / self.count


class Trainer:
    """Has what surrounds train_iter in the original's trainer (mdistiller/engine/trainer.py there).

    The same constructor, a distiller within DataParallel, an optimizer of its learnable
    parameters, batches of (image, target, index), five meters whose means are logged.
    """

    def __init__(self, experiment_name, distiller, train_loader, val_loader, cfg):
        self.distiller, self.train_loader, self.cfg = distiller, train_loader, cfg
        self.optimizer = torch.optim.SGD(
            self.distiller.module.get_learnable_parameters(),
            lr=cfg.SOLVER.LR,
            momentum=cfg.SOLVER.MOMENTUM,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        )

    def train_epoch(self, epoch):
        names = ("training_time", "data_time", "losses", "top1", "top5")
        meters = {name: Meter() for name in names}
        self.distiller.train()
        messages = [self.train_iter(data, epoch, meters) for data in self.train_loader]
        return messages, {name: meter.avg for name, meter in meters.items()}


def test_the_block_trains_a_distiller():
    names = {}
    exec(compile(block(), "in-your-fork.md", "exec"), names)
    student, teacher = networks()
    distiller = torch.nn.DataParallel(KD(student, teacher, CFG))
    data = list(loader())
    trainer = type("Mine", (names["CrossBatch"], Trainer), {})("mine", distiller, data, data, CFG)
    before = [p.detach().clone() for p in student.parameters()]
    frozen = [p.detach().clone() for p in teacher.parameters()]
    messages, means = trainer.train_epoch(1)
    for message in messages:
        assert re.fullmatch(r"loss [\d.]+, weights -?[\d.]+ -?[\d.]+", message)
    assert means["losses"] > 0 and 0 < means["top1"] <= 100
    assert any(not torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(frozen, teacher.parameters(), strict=True))


def copy_into(package: Path) -> None:
    """Copy what the page says is to be copied."""
    shutil.copytree(ROOT / "mdistiller/weighting", package / "weighting")
    for name in ("device.py", "errors.py", "registry.py"):
        shutil.copy(ROOT / "mdistiller" / name, package / name)


def run(code: str, *arguments: object, cwd: Path) -> str:
    """What ``code`` prints in a process that finds no mdistiller of PYTHONPATH."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_to_be_copied_needs_nothing_else(tmp_path, monkeypatch):
    package = tmp_path / "mdistiller"
    copy_into(package)
    (package / "__init__.py").touch()

    def ours() -> dict:
        return {k: v for k, v in sys.modules.items() if k.partition(".")[0] == "mdistiller"}

    before = ours()
    monkeypatch.syspath_prepend(tmp_path)
    try:
        for name in before:
            del sys.modules[name]
        importlib.import_module("mdistiller.weighting").CrossBatchWeighting()
        assert all(Path(m.__file__).is_relative_to(tmp_path) for m in ours().values())
    finally:
        for name in ours():
            del sys.modules[name]
        sys.modules.update(before)


ORIGINAL = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from _original import trainer_of, use, without_cuda
without_cuda()
use(Path.cwd())
names = {}
exec(open("block.py").read(), names)
batch = torch.randn(8, 3, 32, 32), torch.arange(8), torch.arange(8)
for method in ("KD", "FITNET"):
    trainer = trainer_of(["resnet14", "resnet8"], method, 8, "logs/" + method)
    trainer.__class__ = type("Mine", (names["CrossBatch"], type(trainer)), {})
    trainer.train_loader, trainer.val_loader = [batch] * 2, [batch[:2]]
    distiller = trainer.distiller.module
    before = [p.detach().clone() for p in distiller.get_learnable_parameters()]
    frozen = [p.detach().clone() for p in distiller.teacher.parameters()]
    trainer.train_epoch(1)
    now = distiller.get_learnable_parameters()
    assert not any(map(torch.equal, before, now))
    assert all(map(torch.equal, frozen, distiller.teacher.parameters()))
print(sys.modules[type(trainer).__mro__[2].__module__].__file__)
"""


@pytest.mark.skipif("ORIGINAL" not in os.environ, reason="ORIGINAL names no checkout")
def test_the_block_trains_in_the_originals_own_trainer(tmp_path):
    """A whole epoch of it: training, validation, logs and checkpoints."""
    package = tmp_path / "mdistiller"
    shutil.copytree(Path(os.environ["ORIGINAL"]) / "mdistiller", package)
    copy_into(package)
    (tmp_path / "block.py").write_text(block(), encoding="utf-8")
    used = run(ORIGINAL, ROOT / "benchmarks", cwd=tmp_path).splitlines()[-1]
    assert used == str(package / "engine/trainer.py")
    for method in ("KD", "FITNET"):
        logs = tmp_path / "logs" / method / "original"
        worklog = (logs / "worklog.txt").read_text()
        assert float(re.search("train_loss: (.*)", worklog)[1]) > 0
        assert (logs / "latest").exists() and (logs / "student_best").exists()
