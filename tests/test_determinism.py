"""The same command gives the same bits: every trainer, any number of workers, and when asked."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
import torch

from mdistiller.dataset import ContrastiveSettings, FolderLoader
from mdistiller.dataset._files import ImageFiles
from mdistiller.dataset.tiny_imagenet import train_transform, val_transform
from mdistiller.distillers import CRD
from mdistiller.engine import trainer_dict
from mdistiller.engine.runtime.determinism import (
    name_nondeterministic,
    use_deterministic_algorithms,
)
from mdistiller.errors import ConfigError, InterruptedRun

from .commands import CONTEXT
from .test_dataset_folder import save
from .test_kill import terminated, train_few
from .test_resume import CASES, STEPS, assert_same, build, outcome, stop_after
from .test_tools import DIGITS, ROOT
from .toys import mostly_slow

# Python 3.12 and later warn of every fork; DataLoader forks its workers.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
VANILLA = str(ROOT / DIGITS / "vanilla.yaml")
CLASSES = ("n1", "n2", "n3", "n4", "n5")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "tiny-imagenet-200"
    for c, name in enumerate(CLASSES):
        for i in range(7):
            save(root / "train" / name / f"{i}.JPEG", 10 * c + i, 64)
        save(root / "val" / name / "0.JPEG", 90 + c, 64)
    return root


def with_folder(trainer, images, workers: int):
    """The trainer, with the image folder in place of its data; 35 images, too."""
    contrast = None
    if isinstance(trainer.distiller, CRD):
        contrast = ContrastiveSettings(k=8, with_replacement=True)
    shared = {"num_workers": workers, "pin_memory": False}
    loaders = (
        FolderLoader(
            ImageFiles(images / "train", train_transform()),
            8,
            train=True,
            contrast=contrast,
            strong=trainer.cfg.DATASET.STRONG_VIEW,
            **shared,
        ),
        FolderLoader(ImageFiles(images / "val", val_transform()), 8, train=False, **shared),
    )
    loaders[0].heldout = FolderLoader(
        ImageFiles(images / "val", train_transform()), 8, train=True, **shared
    )
    cls = type(trainer)
    return cls("run", trainer.distiller, *loaders, trainer.cfg)


def test_every_trainer_is_covered():
    # crd_dot is dot, which CASES has, under another name.
    assert {trainer for trainer, _, _ in CASES.values()} | {"crd_dot"} >= set(trainer_dict)


@pytest.mark.parametrize(
    "case",
    mostly_slow(CASES, "CRD", "cross-batch, larger auxiliary batch", "MLKD, two views"),
)
def test_number_of_workers_does_not_change_the_weights(tmp_path, images, case):
    found = []
    short = ("SOLVER.EPOCHS", 1)
    for name, workers in (("a", 0), ("b", 2)):
        trainer = with_folder(build(tmp_path / name, case, *short), images, workers)
        trainer.train()
        found.append(outcome(trainer))
    assert_same(*found)


def test_two_views_from_folders_go_on_bit_by_bit_after_a_stop(tmp_path, images):
    def new(name: str):
        trainer = build(tmp_path / name, "MLKD, two views", "SOLVER.EPOCHS", 2)
        return with_folder(trainer, images, 0)

    whole, part, rest = new("whole"), new("part"), new("part")
    whole.train()
    stop_after(part, STEPS + 2)
    with pytest.raises(InterruptedRun):
        part.train()
    rest.train(resume=True)
    assert_same(outcome(whole), outcome(rest))


@pytest.fixture
def _restored(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn


@pytest.mark.parametrize(
    "case", mostly_slow(CASES, "CRD", "DOT", "cross-batch", "GradNorm", "MoDo", "MLKD, two views")
)
@pytest.mark.usefixtures("_restored")
def test_deterministic_algorithms_train_to_the_same_bits(tmp_path, case):
    use_deterministic_algorithms()
    found = []
    for name in ("a", "b"):
        trainer = build(tmp_path / name, case, "SOLVER.EPOCHS", 1)
        assert trainer.train()["deterministic"]
        found.append(outcome(trainer))
    assert_same(*found)


@pytest.mark.usefixtures("_restored")
def test_operation_without_a_deterministic_form_is_one_line():
    use_deterministic_algorithms()
    assert torch.backends.cudnn.deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"  # the user's own choice stays
    with (
        pytest.raises(ConfigError, match="put_.* does not have a deterministic.*--determ") as e,
        name_nondeterministic(),
    ):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1), accumulate=False)
    assert "\n" not in str(e.value)
    with pytest.raises(RuntimeError, match="else"), name_nondeterministic():
        raise RuntimeError("something else")


def start(log, *arguments):
    """A process that runs the command line, with its output in ``log``."""
    process = CONTEXT.Process(target=train_few, args=([*map(str, arguments)], str(log)))
    process.start()
    return process


def test_deterministic_on_the_command_line_is_recorded(tmp_path):
    process = start(
        tmp_path / "log",
        *("--cfg", VANILLA, "--deterministic", "LOG.PREFIX", tmp_path, "SOLVER.DEVICE", "cpu"),
        *("EXPERIMENT.NAME", "x", "SOLVER.EPOCHS", 1, "SOLVER.LR_DECAY_STAGES", "[]"),
        *("DISTILLER.STUDENT", "convnet12"),
    )
    process.join(100)
    assert process.exitcode == 0, (tmp_path / "log").read_text()
    folder = tmp_path / "digits" / "x"
    assert json.loads((folder / "result.json").read_text())["deterministic"] is True
    assert "DETERMINISTIC: true" in (folder / "config.yaml").read_text()


# ---- signals to the whole process group, as a terminal and a scheduler send them ------------


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_signal_to_the_group_with_workers_saves_the_step(tmp_path, images, number, status):
    arguments = (
        *("--cfg", VANILLA, "DATASET.TYPE", "tiny_imagenet", "--resume", "SOLVER.DEVICE", "cpu"),
        *("DATASET.ROOT", images.parent, "DATASET.NUM_WORKERS", 2, "SOLVER.BATCH_SIZE", 8),
        *("LOG.PREFIX", tmp_path, "EXPERIMENT.NAME", "x", "DISTILLER.STUDENT", "wrn_16_1"),
        *("SOLVER.LR_DECAY_STAGES", "[]", "--allow-changes", "SOLVER.EPOCHS"),
    )
    process = start(tmp_path / "log", *arguments, 1000)
    latest = tmp_path / "digits" / "x" / "latest"
    deadline = time.monotonic() + 100
    while not latest.exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    os.killpg(process.pid, number)
    process.join(60)
    printed = (tmp_path / "log").read_text()
    assert process.exitcode == status, printed
    (error,) = (line for line in printed.splitlines() if line.startswith("error: "))
    assert "is saved in" in error
    assert "--resume" in error
    assert "Traceback" not in printed
    state = torch.load(latest, weights_only=True)
    assert state["step"] > 0
    epochs = state["epoch"] + 1
    process = start(tmp_path / "again", *arguments, epochs)
    process.join(100)
    printed = (tmp_path / "again").read_text()
    assert process.exitcode == 0, printed
    assert f"changed since the checkpoint: SOLVER.EPOCHS: 1000 -> {epochs}" in printed


def test_terminated_before_the_training_begins(tmp_path):
    process = CONTEXT.Process(target=terminated, args=(VANILLA, str(tmp_path / "log")))
    process.start()
    process.join(100)
    printed = (tmp_path / "log").read_text()
    assert process.exitcode == 143, printed
    assert printed.startswith("error: terminated while not training")
    assert printed.count("\n") == 1
