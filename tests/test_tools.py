"""The command lines, run as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mdistiller.commands.train import main

from . import commands
from .forked import Forked
from .toys import FEW_DIGITS

ROOT = Path(__file__).resolve().parents[1]
DIGITS = "configs/digits"
# A thirtieth of the computations of the residual networks that the files name.
CHEAP = ("DISTILLER.TEACHER", "convnet12", "DISTILLER.STUDENT", "convnet12")


def command(tool: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / tool), *map(str, arguments)]


def environment() -> dict[str, str]:
    hidden = ("WANDB_API_KEY", "WANDB_MODE")
    kept = {k: v for k, v in os.environ.items() if k not in hidden}
    return {**kept, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def train(prefix: Path, cfg: str, *arguments: object) -> subprocess.CompletedProcess:
    words = ("--cfg", f"{DIGITS}/{cfg}.yaml", "LOG.PREFIX", prefix, *arguments)
    return commands.run("train", *words, env=environment())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A teacher trained for one epoch; its student_latest."""
    prefix = tmp_path_factory.mktemp("teacher")
    opts = (*FEW_DIGITS, "SOLVER.EPOCHS", "1", "EXPERIMENT.NAME", "teacher", *CHEAP[2:])
    done = train(prefix, "teacher", *opts)
    assert done.returncode == 0, done.stderr
    return prefix / "digits" / "teacher" / "student_latest"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "student_latest", weights_only=True)["model"]


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_training_twice_gives_the_same_bits_and_a_complete_folder(tmp_path, teacher):
    opts = (*FEW_DIGITS, "SOLVER.EPOCHS", "1", "EXPERIMENT.NAME", "x")
    opts = (*opts, *CHEAP, "DISTILLER.TEACHER_CKPT", str(teacher))
    for name, workers in (("a", "0"), ("b", "2")):
        done = train(tmp_path / name, "crossbatch_kd", *opts, "DATASET.NUM_WORKERS", workers)
        assert done.returncode == 0, done.stderr
        assert "\033" not in done.stdout
        assert "teacher convnet12: top-1" in done.stdout
        assert "epoch 1/1" in done.stdout
    a, b = (tmp_path / name / "digits" / "x" for name in ("a", "b"))
    assert_same(weights(a), weights(b))
    files = {p.name for p in a.iterdir()}
    assert files >= {
        *("config.yaml", "metrics.jsonl", "worklog.txt", "train.events", "result.json"),
        *("latest", "best", "student_latest", "student_best"),
    }
    result = json.loads((a / "result.json").read_text())
    assert result["distiller"] == "CROSSBATCH_KD"
    assert 0 <= result["last_top1"] <= result["best_top1"] <= 100
    assert result["teacher_top1"] > 0


def test_seeds_differ(tmp_path):
    found = []
    for seed in ("0", "1"):
        opts = (*FEW_DIGITS, *CHEAP[2:], "SOLVER.EPOCHS", "1", "EXPERIMENT.SEED", seed)
        assert train(tmp_path, "vanilla", *opts).returncode == 0
    for folder in sorted((tmp_path / "digits").iterdir()):
        found.append(weights(folder))
    assert not torch.equal(found[0]["fc.weight"], found[1]["fc.weight"])


def test_interrupted_run_resumes_to_the_same_bits(tmp_path):
    # Long enough to be stopped after its first epoch, which takes a third of a second.
    opts = (*CHEAP[2:], "SOLVER.EPOCHS", "8", "EXPERIMENT.NAME", "x")
    assert train(tmp_path / "whole", "vanilla", *opts).returncode == 0
    folder = tmp_path / "part" / "digits" / "x"
    words = ("--cfg", f"{DIGITS}/vanilla.yaml", "LOG.PREFIX", tmp_path / "part", *opts)
    process = Forked("train", *words, env=environment())
    deadline = time.monotonic() + 120
    while not (folder / "latest").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in stderr
    assert stderr.count("error: ") == 1
    assert "Traceback" not in stderr
    done = train(tmp_path / "part", "vanilla", *opts, "--resume")
    assert done.returncode == 0, done.stderr
    assert_same(weights(tmp_path / "whole" / "digits" / "x"), weights(folder))


KD, VANILLA = f"{DIGITS}/kd.yaml", f"{DIGITS}/vanilla.yaml"
# Arguments ({tmp}: a folder that holds a file "damaged"), exit status, words of the message.
BAD_INPUT = {
    "wrong flag": (["--cfg", KD, "--epochs", "3"], 2, "--epochs"),
    "no configuration": ([], 2, "--cfg"),
    "missing file": (["--cfg", "configs/no.yaml"], 2, "configs/no.yaml: no such"),
    "unknown key": (["--cfg", KD, "KD.TEMP", "1"], 2, "did you mean KD.TEMPERATURE"),
    "odd overrides": (["--cfg", KD, "KD.TEMPERATURE"], 2, "pairs"),
    "unknown name": (["--cfg", KD, "DISTILLER.STUDENT", "resnet9"], 2, "resnet8"),
    "missing teacher": (
        ["--cfg", KD, "DISTILLER.TEACHER_CKPT", "no/such", "LOG.PREFIX", "{tmp}/out"],
        1,
        "no/such: no such file",
    ),
    "damaged teacher": (
        ["--cfg", KD, "DISTILLER.TEACHER_CKPT", "{tmp}/damaged", "LOG.PREFIX", "{tmp}/out"],
        1,
        "damaged",
    ),
    "missing data": (
        ["--cfg", "configs/cifar100/kd.yaml", "DATASET.ROOT", "{tmp}/none"],
        1,
        "cifar-100-python.tar.gz",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_a_status(case, tmp_path, capsys):
    (tmp_path / "damaged").write_bytes(b"PK\x03\x04 not a checkpoint")
    arguments, status, words = BAD_INPUT[case]
    arguments = [a.format(tmp=tmp_path) for a in arguments]
    if case == "missing data":  # not in a fork, which would have to load torchvision
        with pytest.raises(SystemExit) as end:
            main(arguments)
        done = subprocess.CompletedProcess(arguments, end.value.code, *capsys.readouterr())
    else:
        done = commands.run("train", *arguments)
    assert done.returncode == status, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    assert not list(tmp_path.glob("out/*/*/latest"))


def test_wandb_without_a_login_stays_offline(tmp_path):
    pytest.importorskip("wandb")
    done = train(
        *(tmp_path, "vanilla", *FEW_DIGITS, *CHEAP[2:]),
        *("SOLVER.EPOCHS", "1", "LOG.WANDB", "True"),
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("digits/*/wandb/offline-run-*"))


def test_list_names_everything():
    done = commands.run("train", "--list")
    assert done.returncode == 0, done.stderr
    for words in ("CROSSBATCH_KDSVD", "crd_dot", "glyphs", "resnet56", "0.86 M", "125.8 M"):
        assert words in done.stdout
    assert "`" not in done.stdout


def test_reader_of_the_output_may_leave():
    """As ``| head`` does."""
    with subprocess.Popen(
        command("settings.py"),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_eval_prints_a_json_line(teacher):
    done = commands.run("eval", "-m", "convnet12", "-c", str(teacher), "-d", "digits", "-bs", "50")
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    result = json.loads((teacher.parent / "result.json").read_text())
    assert line["top1"] == pytest.approx(result["last_top1"])
    assert line["images"] == 450
    assert line["loss"] > 0


def test_eval_refuses_the_wrong_network(teacher):
    done = commands.run("eval", "-m", "resnet8", "-c", str(teacher), "-d", "digits")
    assert done.returncode == 1
    assert "does not fit" in done.stderr
    assert done.stderr.count("\n") == 1


def test_compare_trains_once_and_prints_the_table(tmp_path, teacher):
    arguments = [
        *("--cfg", f"{DIGITS}/kd.yaml", "--seeds", "0", "1", "--workers", "2"),
        *("--set", "LOG.PREFIX", tmp_path, *FEW_DIGITS, "SOLVER.EPOCHS", "1"),
        *(*CHEAP, "DISTILLER.TEACHER_CKPT", teacher),
    ]
    first = commands.run("compare", *arguments)
    assert first.returncode == 0, first.stderr
    results = [json.loads(p.read_text()) for p in tmp_path.glob("digits/*/result.json")]
    assert sorted((r["distiller"], r["seed"]) for r in results) == [("KD", 0), ("KD", 1)]
    mean = sum(r["last_top1"] for r in results) / 2
    assert f"{mean:.2f} +- " in first.stdout
    began = time.monotonic()
    second = commands.run("compare", *arguments)
    assert "[" not in second.stdout
    assert first.stdout.endswith(second.stdout)
    assert time.monotonic() - began < 60


def test_compare_reports_a_failed_run_with_its_log(tmp_path):
    done = commands.run(
        *("compare", "--cfg", f"{DIGITS}/kd.yaml", "--seeds", "0"),
        *("--set", "LOG.PREFIX", tmp_path, "DISTILLER.TEACHER_CKPT", "no/such"),
    )
    assert done.returncode == 1
    assert "failed" in done.stderr
    assert "no/such: no such file" in done.stderr
