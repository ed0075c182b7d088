"""The benchmarks run and say what they measured, and plans are estimated from it."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import sys
from pathlib import Path

import pytest

from mdistiller.engine.cfg import load_cfg
from mdistiller.errors import DataError
from mdistiller.experiments import Request, describe
from mdistiller.experiments.estimate import Estimate, duration
from mdistiller.experiments.speeds import Speeds

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def in_this_process(monkeypatch):
    """gpu_check.py, which runs the other benchmarks here: a process more takes seconds."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu_check

    def run(command, seconds, environment=None):
        out = io.StringIO()
        if "pytest" in command:
            assert environment["MDISTILLER_TEST_DEVICE"] == "cpu"
            (file,) = (word.partition("=")[2] for word in command if "junitxml" in word)
            Path(file).write_text(REPORT)
            return 1, ""
        monkeypatch.setattr(sys, "argv", command[1:])
        with contextlib.redirect_stdout(out):
            runpy.run_path(command[1], run_name="__main__")
        return 0, out.getvalue()

    monkeypatch.setattr(gpu_check, "_run", run)
    return gpu_check


REPORT = """<testsuites><testsuite>
<testcase name="a"/>
<testcase name="b"><failure message="assert 1 == 2&#10; +  where">tests/t.py:3:
mdistiller/a.py:7: AssertionError</failure></testcase>
<testcase name="c"><skipped message="no GPU"/></testcase>
</testsuite></testsuites>"""


def test_the_check_of_a_machine_runs_all_benchmarks(tmp_path, monkeypatch, in_this_process, capsys):
    arguments = ("--device", "cpu", "--quick", "--threads", "1", "--out", str(tmp_path / "check"))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *arguments])
    with pytest.raises(SystemExit) as end:
        in_this_process.main()
    assert end.value.code == 1
    assert "error: b failed" in capsys.readouterr().err
    found = json.loads((tmp_path / "check.json").read_text())
    assert found["tests"] == {
        "a": "passed",
        "b": "failure: assert 1 == 2 (mdistiller/a.py:7)",
        "c": "skipped: no GPU",
    }
    parts = {name: part["json"] for name, part in found["parts"].items()}
    assert {"machine", "methods", "solvers"} <= parts["step"].keys()
    assert {"machine", "images_per_second"} <= parts["data"].keys()
    assert {"machine", "seconds"} <= parts["epoch"].keys()
    assert {"machine", "steps"} <= parts["fleet"].keys()
    page = (tmp_path / "check.md").read_text()
    assert all(f"## {part.title}" in page for part in in_this_process.PARTS.values())
    assert "failed:" not in page
    # What it has measured is what a plan is estimated from.
    speeds = Speeds.read(tmp_path / "check.json")
    assert 0 < speeds.forward["resnet8"] < speeds.backward["resnet8"]


def test_the_parts_of_the_check_take_ten_minutes_at_most(in_this_process):
    parts = in_this_process.PARTS.values()
    assert sum(p.seconds for p in parts) + in_this_process.TEST_SECONDS <= 600


def speeds_file(path, **seconds):
    times = {name: {"forward": f, "backward": b} for name, (f, b) in seconds.items()}
    text = json.dumps({"machine": {"device": "cuda: X"}, "seconds_per_image": times})
    path.write_text(json.dumps({"parts": {"networks": {"json": json.loads(text)}}}))
    return path


def test_hours_follow_from_the_speeds_of_another_machine(tmp_path):
    file = speeds_file(tmp_path / "a.json", resnet56=(2e-6, 9e-6), resnet20=(1e-6, 3e-6))
    request = Request("table1", pairs=("res56_res20",), methods=("KD",), prefix=str(tmp_path))
    vanilla, ours = (240 * (50_000 * (2e-6 + n * 1e-6) + 10_000 * 1e-6) for n in (3, 8))
    for workers, last in ((1, 5 * (vanilla + ours)), (8, 2 * vanilla), (64, ours)):
        text = describe(request, workers, 4, speeds=Speeds.read(file))
        # Eight have room for the five long runs and three of the short ones.
        last = max(last, ours)
        words = (
            f"{duration(5 * (vanilla + ours))} of training, about {duration(last)} with {workers}"
        )
        assert words in text, text
        assert "a.json, measured on cuda: X, and the cost model" in text
    # A network that was not measured costs as its multiply-accumulates say.
    cfg = load_cfg("configs/cifar100/baseline/kd_res110_res56.yaml")
    guessed = Estimate(1, Speeds.read(file)).pass_seconds(cfg) / 50_000
    assert 2e-6 < guessed < 8e-6


def test_files_without_speeds_are_refused_in_one_line(tmp_path):
    for text, words in (
        (None, "No such file"),
        ("{}", "holds no times"),
        ("[1]", "holds no times"),
        (speeds_file(tmp_path / "zero", a=(0, 1)).read_text(), "not positive"),
        (speeds_file(tmp_path / "none").read_text(), "not positive"),
    ):
        path = tmp_path / "speeds.json"
        if text is not None:
            path.write_text(text)
        with pytest.raises(DataError, match=words) as caught:
            Speeds.read(path)
        assert "\n" not in str(caught.value)


# A checkout of mdistiller in the least: the names that the benchmark calls, on a GPU by .cuda().
STAND_IN = {
    "models/__init__.py": """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(3 * 32 * 32, num_classes)

    def forward(self, x):
        return self.fc(x.flatten(1)), {}

cifar_model_dict = {"resnet14": (Net, None), "resnet8": (Net, None)}
""",
    "distillers/__init__.py": """
import torch
from torch import nn

class KD(nn.Module):
    def __init__(self, student, teacher, cfg):
        super().__init__()
        self.student, self.teacher = student, teacher

    def get_learnable_parameters(self):
        return list(self.student.parameters())

    def forward(self, image, target, **kwargs):
        logits, _ = self.student(image)
        loss = nn.functional.cross_entropy(logits, target)
        return logits, {"loss_ce": loss, "loss_kd": (logits - self.teacher(image)[0]).pow(2).mean()}

distiller_dict = {"KD": KD}
""",
    "engine/__init__.py": "from .trainer import Trainer\ntrainer_dict = {'base': Trainer}",
    "engine/cfg.py": """
from yacs.config import CfgNode as CN

CFG = CN()
CFG.DISTILLER = CN({"TYPE": "NONE", "TEACHER": "", "STUDENT": ""})
CFG.SOLVER = CN({"TRAINER": "base", "BATCH_SIZE": 64, "WEIGHT_DECAY": 0.0001, "LR": 0.05})
CFG.LOG = CN({"PREFIX": "./output", "WANDB": True})
""",
    "engine/utils.py": """
class AverageMeter:
    def update(self, value, n=1):
        self.last = value
""",
    "engine/trainer.py": """
import torch

class Trainer:
    def __init__(self, name, distiller, train_loader, val_loader, cfg):
        self.distiller = distiller
        parameters = distiller.module.get_learnable_parameters()
        self.optimizer = torch.optim.SGD(parameters, cfg.SOLVER.LR)
        print("a trainer that talks")

    def train_iter(self, data, epoch, train_meters):
        image, target, index = (x.cuda(non_blocking=True) for x in data)
        self.optimizer.zero_grad()
        _, losses = self.distiller(image=image, target=target, epoch=epoch)
        loss = sum(losses.values())
        loss.backward()
        self.optimizer.step()
        train_meters["losses"].update(loss.item(), len(image))
""",
}


@pytest.fixture
def step_beside(tmp_path, monkeypatch):
    """Makes a checkout of some files and runs step.py beside it; gives the file that is written."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")

    def run(files: dict[str, str], *variants: str) -> Path:
        for name, text in files.items():
            file = tmp_path / "checkout" / "mdistiller" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        out = tmp_path / "out.json"
        words = (
            *("step.py", "--original", tmp_path / "checkout", "--variants"),
            *(*variants, "--pair", "resnet14", "resnet8", "--repeats", "1", "--steps", "1"),
            *("--batch-size", "4", "--threads", "1", "--no-memory", "--json", out),
        )
        monkeypatch.setattr(sys, "argv", [*map(str, words)])
        runpy.run_path(str(ROOT / "benchmarks/step.py"), run_name="__main__")
        return out

    return run


@pytest.mark.slow
@pytest.mark.parametrize("init", [False, True])
def test_the_original_is_timed_in_turns_with_ours(step_beside, capfd, init):
    """In a process that imports the checkout's mdistiller, also where that has no __init__.py."""
    files = STAND_IN | ({"__init__.py": ""} if init else {})
    result = json.loads(step_beside(files, "original", "vanilla").read_text())
    printed = capfd.readouterr().out
    assert "/ original" in printed and "re-creation" not in printed
    rows = {row["variant"]: row for row in result["methods"]["KD"]["variants"]}
    assert rows["original"]["to_baseline"] == [1, 1, 1]
    # A linear layer against a residual network.
    assert rows["vanilla"]["to_baseline"][1] > 1


@pytest.mark.slow
def test_an_original_that_cannot_take_a_step_says_why(step_beside, capfd):
    with pytest.raises(SystemExit) as end:
        step_beside(STAND_IN | {"models/__init__.py": "cifar_model_dict = {}"}, "original")
    told = capfd.readouterr().err
    assert end.value.code == 1 and "KeyError: 'resnet14'" in told
    assert told.strip().endswith(
        "error: the step 'original' cannot be taken; see what it says above"
    )


def test_a_folder_that_is_no_checkout_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import step

    monkeypatch.setattr(sys, "argv", ["step.py", "--original", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        step.parse()
    assert end.value.code == 2 and "is no checkout" in capsys.readouterr().err
