"""The commands of README and the first run, in small and in order: each works as printed."""

from __future__ import annotations

import glob
import importlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import tarfile
from pathlib import Path

import pytest
import torch

from mdistiller.dataset import build_model, dataset_dict, registered_checkpoint
from mdistiller.engine.trainers.crossbatch import CrossBatchTrainer

from .test_bad_input import small_digits

ROOT = Path(__file__).resolve().parents[1]

PAGES = (ROOT / "README.md", ROOT / "docs" / "first-run.md")
# This one is stopped in its first step, and given again with --resume, as the page says.
STOPPED = "configs/digits/demo/crossbatch_kd.yaml"


def commands() -> list[list[str]]:
    """The words of each command that the pages give to a shell and that calls a tool, once.

    Those for images of one's own are run in test_image_folder.py.
    """
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    lines += "\n" + "\n".join(re.findall(r"`(python [^`\n]+)`", text))
    words = [shlex.split(line, comments=True) for line in lines.splitlines()]
    given = [w for w in words if w[:1] == ["python"] and w[1].startswith("tools/")]
    return [
        w for n, w in enumerate(given) if w not in given[:n] and "image_folder" not in " ".join(w)
    ]


def arguments_of(words: list[str]) -> list[str]:
    """What a shell would pass on; 20 epochs are too many here."""
    short = ["2" if words[n - 1] == "SOLVER.EPOCHS" else word for n, word in enumerate(words)]
    return [e for word in short[2:] for e in (sorted(glob.glob(word)) if "*" in word else [word])]


def short_configs(folder: Path) -> None:
    """The shipped files, with two epochs: so the commands need no other word than they have."""
    shutil.copytree(ROOT / "configs", folder)
    for file in folder.rglob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        text = re.sub(r"^  EPOCHS: .*$", "  EPOCHS: 2", text, flags=re.MULTILINE)
        text = re.sub(r"^  LR_DECAY_STAGES: .*$", "  LR_DECAY_STAGES: []", text, flags=re.MULTILINE)
        file.write_text(text, encoding="utf-8")


def archive_of_teachers() -> bytes:
    """As the published one is laid out, with the one teacher that README's lines need."""
    path = registered_checkpoint("cifar100", "resnet56")
    assert path is not None
    inside = path.parts[path.parts.index("download_ckpts") + 1 :]
    raw, weights = io.BytesIO(), io.BytesIO()
    torch.save({"model": build_model("cifar100", "resnet56", 100).state_dict()}, weights)
    with tarfile.open(fileobj=raw, mode="w") as archive:
        info = tarfile.TarInfo("/".join(inside))
        info.size = len(weights.getvalue())
        archive.addfile(info, io.BytesIO(weights.getvalue()))
    return raw.getvalue()


def call(tool: str, arguments: list[str], capsys) -> str:
    try:
        importlib.import_module(f"mdistiller.commands.{tool}").main(arguments)
    except SystemExit as end:
        said = capsys.readouterr()
        assert end.code in (0, None), (tool, arguments, said.err[-2000:])
        return said.out
    return capsys.readouterr().out


def interrupted(tool: str, arguments: list[str], patch: pytest.MonkeyPatch, capsys) -> None:
    """The command, with a SIGTERM during its first step."""
    plain = CrossBatchTrainer.step

    def step(self, batch, epoch):
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, batch, epoch)

    with patch.context() as within:
        within.setattr(CrossBatchTrainer, "step", step)
        with pytest.raises(SystemExit) as end:
            importlib.import_module(f"mdistiller.commands.{tool}").main(arguments)
    assert end.value.code == 143
    assert "--resume continues" in capsys.readouterr().err


@pytest.mark.slow  # two minutes, most of them in resnet56
@pytest.mark.filterwarnings("default")
def test_commands_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short_configs(tmp_path / "configs")
    (tmp_path / "download_ckpts").mkdir()
    (tmp_path / "download_ckpts" / "cifar_teachers.tar").write_bytes(archive_of_teachers())
    originals = {name: dataset_dict[name] for name in ("cifar100", "digits")}
    found, said = commands(), {}
    assert {Path(w[1]).stem for w in found} == {"download_teachers", "train", "reproduce", "report"}
    try:
        dict.__setitem__(dataset_dict, "cifar100", lambda cfg: small_digits(cfg, classes=100))
        dict.__setitem__(dataset_dict, "digits", small_digits)
        # What needs the teachers, and what shows the runs, comes after them.
        for words in sorted(found, key=lambda w: "--dry-run" in w):
            tool, arguments = Path(words[1]).stem, arguments_of(words)
            if STOPPED in arguments:
                interrupted(tool, arguments, monkeypatch, capsys)
                arguments.append("--resume")
            said[" ".join(words[1:])] = call(tool, arguments, capsys)
            assert "from the beginning" not in said[" ".join(words[1:])]
    finally:
        dict.update(dataset_dict, originals)

    runs = {p.parent for p in tmp_path.glob("output/*/*/result.json")}
    assert len(runs) == sum(w[1] == "tools/train.py" and "--list" not in w for w in found)
    assert runs == {p.parent for p in tmp_path.glob("output/*/*/latest")}, "one folder a run"
    for run in runs:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2], run
    (plan,) = (out for line, out in said.items() if "--dry-run" in line)
    assert "res56_res20" in plan
    (table,) = (out for line, out in said.items() if "report.py output/demo" in line)
    assert "3 done, 0 running, 0 failed, 0 waiting, 0 broken" in table
    (lists,) = (out for line, out in said.items() if "--list" in line)
    assert "CROSSBATCH_DKD" in lists
