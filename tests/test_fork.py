"""docs/in-your-fork.md: its block trains in a trainer with the original's interface."""

from __future__ import annotations

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


def test_what_is_to_be_copied_needs_nothing_else(tmp_path):
    package = tmp_path / "mdistiller"
    shutil.copytree(ROOT / "mdistiller/weighting", package / "weighting")
    for name in ("device.py", "errors.py", "registry.py"):
        shutil.copy(ROOT / "mdistiller" / name, package / name)
    (package / "__init__.py").touch()
    code = "import mdistiller.weighting as w; print(w.__file__); w.CrossBatchWeighting()"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout


ORIGINAL = """
import collections, sys, types
import torch
sys.path.insert(0, sys.argv[1])
torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *a, **k: self
from mdistiller.engine.trainer import BaseTrainer
from mdistiller.distillers import distiller_dict
from mdistiller.models import cifar_model_dict
from mdistiller.engine.cfg import CFG
sys.path.pop(0)
for name in [m for m in sys.modules if m.split(".")[0] == "mdistiller"]:
    del sys.modules[name]
sys.path.insert(0, sys.argv[2])
names = {}
exec(open(sys.argv[3]).read(), names)
nets = [cifar_model_dict[n][0](num_classes=10) for n in ("resnet8", "resnet14")]
distiller = distiller_dict["KD"](*nets, CFG)
trainer = object.__new__(type("Mine", (names["CrossBatch"], BaseTrainer), {}))
trainer.distiller = torch.nn.DataParallel(distiller)
trainer.optimizer = torch.optim.SGD(distiller.get_learnable_parameters(), lr=0.05)
trainer.train_loader = [(torch.randn(4, 3, 32, 32), torch.arange(4), torch.arange(4))] * 2
meter = types.SimpleNamespace(update=lambda *a: None)
before = nets[0].fc.weight.detach().clone()
meters = collections.defaultdict(lambda: meter)
print(trainer.train_iter(trainer.train_loader[0], 1, meters))
assert not torch.equal(before, nets[0].fc.weight)
"""


@pytest.mark.skipif("ORIGINAL" not in os.environ, reason="ORIGINAL names no checkout")
def test_the_block_trains_in_the_originals_own_trainer(tmp_path):
    (tmp_path / "block.py").write_text(block(), encoding="utf-8")
    arguments = [os.environ["ORIGINAL"], str(ROOT), str(tmp_path / "block.py")]
    done = subprocess.run(
        [sys.executable, "-c", ORIGINAL, *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "weights" in done.stdout
