"""Every distiller: it learns, goes on after a stop, and shares a fleet."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.model_selection import train_test_split

from mdistiller.dataset import digits, model_dict_for
from mdistiller.distillers import distiller_dict
from mdistiller.engine.cfg import CROSSBATCH_PREFIX, load_cfg
from mdistiller.engine.run import SharedInputs, build_trainer
from mdistiller.engine.rundir.resume import weights_hash
from mdistiller.experiments.fleet.fleet import Fleet, Member
from mdistiller.seeding import derive_seed, seed_everything
from mdistiller.weighting import frozen_statistics

from .toys import SmallNet

ROOT = Path(__file__).resolve().parents[1]
TEACHER, STUDENT = "test_teacher", "test_student"
BATCH, VALIDATION = 16, 32
# What lets a method learn in so few steps, and what SimKD needs for a supervised gradient.
OPTIONS = {
    "SIMKD": ("SIMKD.CE_WEIGHT", 1.0),
    "CATKD": ("CATKD.CAT_WEIGHT", 1.0),
    "TTM": ("TTM.BETA", 5.0),
    "CTKD": ("CTKD.REVERSAL_EPOCHS", 1, "CTKD.CE_WEIGHT", 1.0),
    "AT": ("AT.LOSS.FEAT_WEIGHT", 10.0),
    "CRD": ("CRD.NCE.K", 16, "CRD.FEAT.STUDENT_DIM", 16, "CRD.FEAT.TEACHER_DIM", 24),
    "PKT": ("PKT.LOSS.FEAT_WEIGHT", 1.0),
    "SP": ("SP.LOSS.FEAT_WEIGHT", 1.0),
    "NST": ("NST.LOSS.FEAT_WEIGHT", 1.0),
    "OFD": ("OFD.TEACHER_TRAIN_MODE", False),
    "MLKD": ("MLKD.CE_WEIGHT", 1.0, "MLKD.KD_WEIGHT", 0.1),
    "FITNET": ("FITNET.LOSS.FEAT_WEIGHT", 1.0),
    "WSLD": ("WSLD.ALPHA", 0.25),
    "WTTM": ("WTTM.BETA", 0.5),
    "DIST": ("DIST.KD_WEIGHT", 0.1),
    "KD": ("KD.LOSS.CE_WEIGHT", 1.0),
    "EAKD": ("EAKD.CE_WEIGHT", 1.0),
}
METHODS = [n for n in distiller_dict if not n.startswith(CROSSBATCH_PREFIX) and n != "NONE"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The file of a small network that knows the digits a little; its student's name is known."""
    folder = tmp_path_factory.mktemp("teacher")
    images, labels = digits.read_in_order()
    split = train_test_split(images, labels, test_size=VALIDATION, stratify=labels, random_state=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "read_digits", lambda: (split[::2], split[1::2]))
        networks = model_dict_for("digits")
        patch.setitem(networks, TEACHER, (lambda num_classes: SmallNet(24), None))
        patch.setitem(networks, STUDENT, (lambda num_classes: SmallNet(16), None))
        opts = options(
            folder, "NONE", 1024, "DISTILLER.STUDENT", TEACHER, "SOLVER.EPOCHS", 2, "SOLVER.LR", 0.1
        )
        train(build_trainer(load_cfg(ROOT / "configs/digits/kd.yaml", opts)))
        yield next(folder.glob("*/*/student_latest"))


def options(folder: Path, name: str, images: int, *opts: object) -> tuple[str, ...]:
    plain = name.removeprefix(CROSSBATCH_PREFIX)
    trainer = "base" if name == plain else "crossbatch"
    if plain == "CRD" and name == plain:
        trainer = "crd"
    given = (
        *("LOG.PREFIX", folder, "EXPERIMENT.PROJECT", "p", "EXPERIMENT.NAME", name),
        *("DATASET.SUBSET", images, "SOLVER.BATCH_SIZE", BATCH, "SOLVER.LR", 0.01),
        *("SOLVER.EPOCHS", 1, "SOLVER.LR_DECAY_STAGES", [], "SOLVER.DEVICE", "cpu"),
        *("DISTILLER.TYPE", name, "SOLVER.TRAINER", trainer, "LOG.TENSORBOARD_FREQ", 1000),
        *OPTIONS.get(plain, ()),
        *opts,
    )
    return tuple(map(str, given))


def distilling(folder: Path, teacher: Path, name: str, images: int, *opts: object):
    """The configuration of a run of a method."""
    networks = ("DISTILLER.TEACHER", TEACHER, "DISTILLER.STUDENT", STUDENT)
    opts = options(folder, name, images, *networks, "DISTILLER.TEACHER_CKPT", teacher, *opts)
    return load_cfg(ROOT / "configs/digits/kd.yaml", opts)


def train(trainer, resume: bool = False) -> None:
    seed_everything(derive_seed(trainer.cfg.EXPERIMENT.SEED, "training"))
    trainer.train(resume)


def on_training_images(trainer) -> tuple[float, float]:
    """Cross-entropy and accuracy of the student on all, as they are; it changes nothing."""
    data = trainer.train_loader.dataset
    image, target = (data.images.float() - 128) / 64, data.targets
    student = trainer.distiller.student.train()
    with torch.no_grad(), frozen_statistics(student):
        logits = student(image)[0]
    right = (logits.argmax(1) == target).float().mean()
    return F.cross_entropy(logits, target).item(), right.item()


def keep_half(trainer, steps: int, folder: Path) -> None:
    """Copy the run to ``folder`` as it is after ``steps`` steps: what an abrupt end leaves."""
    plain, done = trainer.step, 0

    def step(batch, epoch):
        nonlocal done
        if done == steps:
            shutil.copytree(trainer.log_path, folder / "p" / trainer.log_path.name)
        done += 1
        return plain(batch, epoch)

    trainer.step = step


def state(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return torch.load(folder / "p" / name / "latest", weights_only=True)["model"]


def different(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [key for key in a if not torch.equal(a[key], b[key])]


def faults(tmp_path: Path, teacher: Path, names: list[str], images: int, apart: bool) -> list[str]:
    """What goes wrong with each method: alone, stopped and continued, in a fleet.

    Args:
        names: of distillers.
        apart: those that were stopped go on alone, and the fleets' train from their beginning;
            otherwise the fleets take up those that were stopped, which costs half as much.
    """
    alone, half = tmp_path / "alone", tmp_path / "half"
    steps = images // BATCH // 2
    shared = {True: SharedInputs(), False: SharedInputs()}
    wrong: list[str] = []
    for name in names:
        seen = shared[name.endswith("CRD")]
        saving = ("LOG.SAVE_EVERY_STEPS", steps)
        trainer = build_trainer(distilling(alone, teacher, name, images, *saving), seen)
        keep_half(trainer, steps, half)
        wrong += (f"{name}: {what}" for what in faults_alone(trainer))
        stopped = torch.load(half / "p" / name / "latest", weights_only=True)["step"]
        if stopped != steps:
            wrong.append(f"{name}: stopped after step {stopped} instead of {steps}")
        if apart:
            train(build_trainer(distilling(half, teacher, name, images), seen), resume=True)
            differing = different(state(alone, name), state(half, name))
            wrong += (f"{name}, continued: {key}" for key in differing)
    fleet = tmp_path / "fleet" if apart else half
    for contrasting in (True, False):
        chosen = [name for name in names if name.endswith("CRD") == contrasting]
        made = [distilling(fleet, teacher, name, images) for name in chosen]
        members = [Member(cfg, resume=not apart, out=io.StringIO()) for cfg in made]
        Fleet(members).train()
        for name, member in zip(chosen, members, strict=True):
            if member.error is not None:
                wrong.append(f"{name}, in a fleet: {member.error}")
                continue
            differing = different(state(alone, name), state(fleet, name))
            wrong += (f"{name}, in a fleet: {key}" for key in differing)
    return wrong


def faults_alone(trainer) -> Iterator[str]:
    """Train, and say what a method does wrong: its losses, its teacher, what moves and what not."""
    distiller = trainer.distiller
    teacher = weights_hash(distiller.teacher)
    start = {n: p.detach().clone() for n, p in distiller.named_parameters()}
    learnt = {id(p) for p in distiller.get_learnable_parameters()}
    loss, accuracy = on_training_images(trainer)
    train(trainer)
    loss_after, accuracy_after = on_training_images(trainer)
    # PLD trains the order of the classes, which may be right before their probabilities are.
    ordered = trainer.cfg.DISTILLER.TYPE.endswith("PLD") and accuracy_after > accuracy + 0.1
    if not (loss_after < loss or ordered):
        yield f"the supervised loss goes from {loss} to {loss_after}"
    if weights_hash(distiller.teacher) != teacher:
        yield "the teacher has changed"
    for key, parameter in distiller.named_parameters():
        moved = not torch.equal(parameter, start[key])
        if moved != (id(parameter) in learnt):
            yield f"{key} {'moves' if moved else 'stays'}"


def test_every_method_learns_goes_on_and_shares(tmp_path, teacher):
    """In its cross-batch form, whose step takes the plain one's and more; of those a few."""
    names = ["KD", "CRD", "OFD", "CTKD", *(CROSSBATCH_PREFIX + name for name in METHODS)]
    assert faults(tmp_path, teacher, names, images=128, apart=False) == []


@pytest.mark.slow
def test_every_method_on_all_digits(tmp_path, teacher):
    names = [p + name for name in METHODS for p in ("", CROSSBATCH_PREFIX)]
    assert faults(tmp_path, teacher, names, images=1760, apart=True) == []
