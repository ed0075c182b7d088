"""A distiller, a trainer and a data set from a file of one's own, through the command lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from . import commands

OWN = '''
import torch
import torch.nn.functional as F
from torch import nn

from mdistiller.config import Setting, positive
from mdistiller.dataset import ImageArray, Recipe, array_loaders, dataset_dict
from mdistiller.distillers import Distiller, distiller_dict
from mdistiller.engine import BaseTrainer, trainer_dict
from mdistiller.errors import ConfigError


class Small(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x):
        pooled = F.relu(self.conv(x)).mean((2, 3))
        return self.fc(pooled), {"feats": [pooled], "pooled_feat": pooled}


@dataset_dict.register("stripes", networks={"small": Small}, image_size=16)
def get_stripes(cfg):
    """Stripes across or along."""
    targets = torch.arange(24) % 2
    images = torch.zeros(24, 3, 16, 16, dtype=torch.uint8)
    images[targets == 0, :, ::2] = 255
    images[targets == 1, :, :, ::2] = 255
    half = [ImageArray(images[i::2], targets[i::2].clone(), num_classes=2) for i in (0, 0)]
    return array_loaders(cfg, *half, Recipe((0.5,) * 3, (0.25,) * 3, flip=False))


@distiller_dict.register("MINE")
class Mine(Distiller):
    """Squared differences of the logits."""

    settings = {"SCALE": Setting(1.0, positive, "weight of the distillation loss")}

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher, cfg)
        self.scale = cfg.MINE.SCALE

    def forward_train(self, image, target, **kwargs):
        logits, _ = self.student(image)
        answer, _ = self.forward_teacher(image)
        losses = {"loss_ce": self.cross_entropy(logits, target)}
        return logits, losses | {"loss_kd": self.scale * F.mse_loss(logits, answer)}


@trainer_dict.register("gentle")
class Gentle(BaseTrainer):
    """Weakens every gradient."""

    settings = {"FACTOR": Setting(0.5, positive, "of the gradients")}

    @classmethod
    def check(cls, cfg):
        if cfg.GENTLE.FACTOR > 1:
            raise ConfigError("GENTLE.FACTOR must be at most 1, or it is not gentle")

    def backward(self, batch, epoch):
        result = super().backward(batch, epoch)
        for p in self.distiller.student.parameters():
            p.grad.mul_(self.cfg.GENTLE.FACTOR)
        return result
'''

BASE = """
EXPERIMENT: {PROJECT: own, TAG: TAG_HERE, IMPORTS: [my_methods.py]}
DATASET: {TYPE: stripes}
DISTILLER: {TYPE: NONE, STUDENT: small, TEACHER: small}
SOLVER: {EPOCHS: 1, BATCH_SIZE: 6, LR_DECAY_STAGES: []}
"""


def run(tool: str, *arguments: object, cwd: Path) -> tuple[int, str, str]:
    done = commands.run(tool, *arguments, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where a teacher and two students have been compared, each in a process of its own."""
    folder = tmp_path_factory.mktemp("own")
    yamls = folder / "yamls"  # the file of methods lies beside them, not in the current folder
    yamls.mkdir()
    (yamls / "my_methods.py").write_text(OWN)
    (yamls / "teacher.yaml").write_text(BASE.replace("TAG_HERE", "teacher"))
    mine = "_BASE_: teacher.yaml\nEXPERIMENT: {TAG: %s}\nDISTILLER: {TYPE: MINE}\n"
    (yamls / "gentle.yaml").write_text(mine % "gentle" + "SOLVER: {TRAINER: gentle}\n")
    (yamls / "cross.yaml").write_text(mine % "cross" + "SOLVER: {TRAINER: crossbatch}\n")
    files = ("yamls/gentle.yaml", "yamls/cross.yaml")
    code, out, err = run(
        "compare", "--teacher", "yamls/teacher.yaml", "--cfg", *files, "--seeds", 0, cwd=folder
    )
    assert code == 0, err
    assert all(file in out for file in files)
    return folder


def the_run(folder: Path, tag: str) -> Path:
    return next(p for p in (folder / "output" / "own").glob(f"{tag}*") if p.is_dir())


def test_settings_of_ones_own_are_kept_with_the_run(folder):
    gentle, cross = (
        yaml.safe_load((the_run(folder, tag) / "config.yaml").read_text())
        for tag in ("gentle", "cross")
    )
    assert gentle["MINE"] == {"SCALE": 1.0}
    assert gentle["GENTLE"] == {"FACTOR": 0.5}
    assert (cross["DISTILLER"]["TYPE"], cross["MINE"]) == ("CROSSBATCH_MINE", {"SCALE": 1.0})
    assert "CROSSBATCH" in cross


def test_resuming_compares_the_settings_of_ones_own(folder):
    own = the_run(folder, "gentle")
    config = own.relative_to(folder) / "config.yaml"
    name = ("EXPERIMENT.NAME", own.name)
    for key in ("MINE.SCALE", "GENTLE.FACTOR"):
        code, _, err = run("train", "--cfg", config, "--resume", *name, key, "0.25", cwd=folder)
        assert code == 2
        assert f"{key}: " in err
    for key, value, words in (
        ("GENTLE.FACTOR", "2", "not gentle"),
        ("MINE.SCALE", "-1", "MINE.SCALE must be greater than 0"),
    ):
        code, _, err = run("train", "--cfg", config, key, value, cwd=folder)
        assert (code, err.count("\n")) == (2, 1)
        assert words in err


def test_evaluation_and_lists_know_a_data_set_of_ones_own(folder):
    ckpt = the_run(folder, "cross") / "student_latest"
    own = ("--imports", "yamls/my_methods.py")
    code, out, err = run("eval", "-m", "small", "-c", ckpt, "-d", "stripes", *own, cwd=folder)
    assert code == 0, err
    result = json.loads((the_run(folder, "cross") / "result.json").read_text())
    assert json.loads(out.splitlines()[-1])["top1"] == pytest.approx(result["last_top1"])
    code, out, _ = run("train", "--list", "EXPERIMENT.IMPORTS", own[1], cwd=folder)
    assert code == 0
    for words in ("CROSSBATCH_MINE", "gentle  ", "stripes", "Models for stripes (16 x 16)"):
        assert words in out


def test_what_cannot_be_imported_is_named(folder):
    (folder / "broken.py").write_text("x = 1\nraise ValueError('no luck')\n")
    for name, words in (
        ("none.py", "no such file"),
        ("no_such_module", "no such module"),
        ("broken.py", "line 2: ValueError: no luck"),
    ):
        code, _, err = run(
            "train", "--cfg", "yamls/gentle.yaml", "EXPERIMENT.IMPORTS", name, cwd=folder
        )
        assert (code, err.count("\n")) == (2, 1)
        assert name in err
        assert words in err


def test_run_is_continued_whatever_names_it(folder):
    cfg = ("--cfg", "yamls/teacher.yaml")
    code, _, err = run("train", *cfg, "SOLVER.LR", "0.1", "EXPERIMENT.SEED", "3", cwd=folder)
    assert code == 0, err
    own = the_run(folder, "teacherEXPERIMENT.SEED:3")
    folders = set(own.parent.iterdir())
    for again in (
        (*cfg, "--resume", "EXPERIMENT.SEED", "3", "SOLVER.LR", "1e-1"),
        ("--cfg", own / "config.yaml", "--resume"),
    ):
        code, out, err = run("train", *again, cwd=folder)
        assert code == 0, err
        assert "from the beginning" not in out
        assert set(own.parent.iterdir()) == folders
    same = (*cfg, "--resume", "EXPERIMENT.NAME", "new", "EXPERIMENT.SEED", "3", "SOLVER.LR", "0.1")
    code, out, _ = run("train", *same, cwd=folder)
    assert code == 0
    assert f"{own.relative_to(folder)} holds a run of the same configuration" in out
