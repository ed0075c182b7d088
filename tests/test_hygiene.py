"""What SECURITY.md promises: no unsafe loading in the source, no connection without being asked."""

from __future__ import annotations

import ast
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mdistiller.config.table import TABLE
from mdistiller.dataset import build_model, get_dataset
from mdistiller.engine.cfg import CFG
from mdistiller.errors import DataError

from .loops import for_each
from .toys import FEW_DIGITS

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [p for room in ("mdistiller", "tools", "benchmarks") for p in (ROOT / room).rglob("*.py")]

# Settings, tools and files as messages name them.
_SETTING = re.compile(r"\b[A-Z][A-Z_]+(?:\.[A-Z][A-Z0-9_]*)+\b")
_FILE = re.compile(r"\b(?:tools/\w+\.py|configs/[\w/]+\.yaml|docs/[\w/-]+\.md)\b")


def sentences(code: str) -> Iterator[str]:
    """The texts in ``code`` that have a space, as messages do."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.value


def test_advice_names_settings_and_files_that_exist():
    wrong = []
    # Also a node as a whole, and a setting as it is called within its node.
    known = {part for key in TABLE for part in (key, *key.split(".", 1), key.rpartition(".")[0])}
    for path in SOURCES:
        for text in sentences(path.read_text(encoding="utf-8")):
            wrong += [key for key in _SETTING.findall(text) if key not in known]
            wrong += [name for name in _FILE.findall(text) if not (ROOT / name).is_file()]
    assert wrong == []


# Calls that run what is in a file or a text, whatever their arguments are.
UNSAFE = {
    *(
        f"{m}.{f}"
        for m in ("pickle", "dill", "cloudpickle")
        for f in ("load", "loads", "Unpickler")
    ),
    *("marshal.load", "marshal.loads", "shelve.open", "joblib.load"),
    *("pandas.read_pickle", "pd.read_pickle", "torch.hub.load"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"),
    *("eval", "exec", "os.system", "os.popen", "__import__"),
}
# Safe only with this argument.
SAFE_WITH = {
    "torch.load": ("weights_only", True),
    "get_state_dict": ("weights_only", True),
    "load_state_dict_from_url": ("weights_only", True),
}
# Unsafe with this argument.
UNSAFE_WITH = {"np.load": "allow_pickle", "numpy.load": "allow_pickle", "subprocess": "shell"}


def unsafe_calls(code: str) -> list[str]:
    """What in ``code`` could run what it reads: "line: call"."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "dill", "marshal"):
            found.append(f"{node.lineno}: from {node.module}")
        if not isinstance(node, ast.Call):
            continue
        name, arguments = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}

        def given(key, arguments=arguments):
            return arguments[key].value if isinstance(arguments.get(key), ast.Constant) else None

        last = name.rpartition(".")[2]
        needed = SAFE_WITH.get(name) or SAFE_WITH.get(last)
        refused = UNSAFE_WITH.get(name) or UNSAFE_WITH.get(name.partition(".")[0])
        if (
            name in UNSAFE
            or (needed and given(needed[0]) is not needed[1])
            or (refused and refused in arguments and given(refused) is not False)
        ):
            found.append(f"{node.lineno}: {name}")
    return found


@for_each(SOURCES)
def test_no_source_runs_what_it_reads(path):
    assert unsafe_calls(path.read_text(encoding="utf-8")) == []


@for_each(
    [
        "pickle.load(f)",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "weights.get_state_dict(progress=True)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_unsafe_calls_are_found(code):
    assert len(unsafe_calls(code)) == 1


def test_safe_calls_are_not():
    code = "torch.load(p, weights_only=True); np.load(p); yaml.safe_load(t); ast.literal_eval(t)"
    assert unsafe_calls(f"{code}; network.eval(); subprocess.run(['a'])") == []


class Malicious:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self):
        return os.mkdir, (str(self.flag),)


def test_cifars_pickles_are_not_opened_before_their_checksum(tmp_path):
    folder, flag = tmp_path / "cifar-100-python", tmp_path / "executed"
    folder.mkdir()
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(pickle.dumps(Malicious(flag)))
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"")
    cfg = CFG.clone()
    cfg.DATASET.ROOT = str(tmp_path)
    with pytest.raises(DataError, match="wrong MD5 checksum"):
        get_dataset(cfg)
    assert not flag.exists()


OFFLINE = """
import importlib, pkgutil, socket, sys
opened = []
def hook(event, arguments):
    if event in ("socket.__new__", "socket.connect", "socket.getaddrinfo", "socket.bind"):
        opened.append((event, arguments[1:]))
sys.addaudithook(hook)
import mdistiller.commands.train
assert "torch._dynamo" not in sys.modules, "a tool that does not train waits 2 s for it"
for module in pkgutil.walk_packages(mdistiller.__path__, "mdistiller."):
    importlib.import_module(module.name)
from mdistiller.commands.train import main
main(sys.argv[1:])
assert opened == [], opened
try:
    socket.create_connection(("127.0.0.1", 9), timeout=0.1)
except OSError:
    pass
assert {event for event, _ in opened} >= {"socket.connect", "socket.getaddrinfo"}, opened
print("no socket")
"""


def test_importing_and_training_on_digits_open_no_socket(tmp_path):
    """With an audit hook, which no library can go round; that it works is tried at the end."""
    teacher = tmp_path / "teacher"
    torch.save({"model": build_model("digits", "convnet12", 10).state_dict()}, teacher)
    done = subprocess.run(
        [
            *(sys.executable, "-c", OFFLINE, "--cfg", "configs/digits/crossbatch_kd.yaml"),
            *("LOG.PREFIX", str(tmp_path), "SOLVER.EPOCHS", "1", "SOLVER.DEVICE", "cpu"),
            *FEW_DIGITS,
            *("DISTILLER.TEACHER", "convnet12", "DISTILLER.TEACHER_CKPT", str(teacher)),
            *("DISTILLER.STUDENT", "convnet12"),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("no socket\n")
    assert list(tmp_path.glob("digits/*/result.json"))
