"""Every configuration of mdistiller builds what it built there and takes a training step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mdistiller.dataset import build_model
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.run import assemble_distiller

from .golden_rules import golden_json
from .toys import mostly_slow

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = golden_json("configs")["one_step"]["results"]
DATA = {"cifar100": (100, 32), "tiny_imagenet": (200, 64), "imagenet": (1000, 224)}
NUM_DATA = 1000


# One of each method and of each kind of networks; ImageNet's large ones with make test-slow.
SOME = [f for f in GOLDEN if f.count("/") == 2]
SOME += [f"configs/cifar100/{name}.yaml" for name in ("dkd/vgg13_mv2", "dot/res32x4_shuv2")]
SOME += ["configs/tiny_imagenet/dot/r18_mv2.yaml"]


@pytest.mark.parametrize("path", mostly_slow(GOLDEN, *SOME))
def test_one_step(path):
    golden = GOLDEN[path]
    cfg = load_cfg(ROOT / path)
    classes, size = DATA[cfg.DATASET.TYPE]
    student = build_model(cfg.DATASET.TYPE, cfg.DISTILLER.STUDENT, classes)
    teacher = None
    if cfg.DISTILLER.TYPE != "NONE":
        teacher = build_model(cfg.DATASET.TYPE, cfg.DISTILLER.TEACHER, classes)
    distiller = assemble_distiller(cfg, student, teacher, NUM_DATA).train()
    learnable = distiller.get_learnable_parameters()
    index = torch.arange(2)
    contrast = torch.randint(NUM_DATA, (2, cfg.CRD.NCE.K + 1))
    contrast[:, 0] = index
    _, losses = distiller(
        image=torch.randn(2, 3, size, size),
        target=torch.randint(classes, (2,)),
        epoch=1,
        index=index,
        contrastive_index=contrast,
    )
    sum(loss.mean() for loss in losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in learnable if p.grad is not None)
    if not golden["ok"]:
        return  # fails in mdistiller, runs here
    assert list(losses) == golden["loss_keys"]
    extra = sum(p.numel() for p in learnable) - sum(p.numel() for p in student.parameters())
    assert extra == golden["learnable_extra_numel"]
    if cfg.DISTILLER.TYPE != "NONE":
        assert distiller.get_extra_parameters() == golden["get_extra_parameters"]
    unused = [n for n, p in student.named_parameters() if p.grad is None]
    assert unused == golden["student_parameters_without_gradient"]
