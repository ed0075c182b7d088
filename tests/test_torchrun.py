"""Two processes that train together, against one that trains alone."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mdistiller.dataset import ArrayLoader, Recipe, build_model
from mdistiller.distillers import CRD, distiller_dict
from mdistiller.engine import BaseTrainer, trainer_dict
from mdistiller.engine.runtime.distributed import World
from mdistiller.errors import ConfigError, InterruptedRun, MdistillerError

from . import commands
from .commands import CONTEXT
from .test_resume import CASES, SHORT, images, some_weights, stop_after
from .test_tools import DIGITS, ROOT, environment
from .toys import CrossBatchToyHint, ToyHint, config, networks

IMAGES = 33  # batches of 8 and one of 1, which leaves the second process without an image
# CRD runs in one process; what relates images, and SimKD's projector with its BatchNorm, sees one
# process's part of the batch alone.
OTHERWISE = {"CRD", "CROSSBATCH_SIMKD", *(m for m, c in distiller_dict.items() if c.relates_images)}
TOGETHER = {
    **{name: case for name, case in CASES.items() if case[1] not in OTHERWISE | {"NONE"}},
    "regressor": ("base", "TOY", ()),
    "cross-batch with a regressor": ("crossbatch", "CROSSBATCH_TOY", ("CROSSBATCH.PERIOD", 2)),
}
# Of the cases of one trainer those that exchange something of their own; the others are slow.
REST = {
    *("AdamW", "cross-batch", "cross-batch, larger auxiliary batch", "cross-batch, previous"),
    *("DWA", "IMTL-L", "regressor", "CAT-KD", "MoDo", "confidence gate"),
} & {*TOGETHER}
MAIN = [case for case in TOGETHER if case not in REST]
TWO_EPOCHS = ("SOLVER.EPOCHS", 2)
TOYS = {"TOY": ToyHint, "CROSSBATCH_TOY": CrossBatchToyHint}


def build(folder, case: str, *opts) -> BaseTrainer:
    """A trainer in double precision without BatchNorm, whose processes therefore lose nothing."""
    trainer, method, own = TOGETHER[case]
    cfg = config(folder, *SHORT, "SOLVER.TRAINER", trainer, *own, *opts)
    if trainer == "replay":
        # One of each process's own: none reads what another has only begun to write.
        file = some_weights(folder / f"rank{World().rank}", cfg.SOLVER.EPOCHS)
        cfg.merge_from_list(["REPLAY.FILE", str(file)])
    student, teacher = networks(norm=False, dtype=torch.float64)
    torch.manual_seed(3)
    distiller = {**distiller_dict, **TOYS}[method](student, teacher, cfg).double()
    shared = {"recipe": Recipe((0.5,) * 3, (0.25,) * 3, flip=True), "device": torch.device("cpu")}
    train = ArrayLoader(images(1, IMAGES, 1), 8, train=True, **shared)
    train.heldout = ArrayLoader(images(3, 11, 1), 8, train=True, **shared)
    val = ArrayLoader(images(2, 13, 0), 4, train=False, **shared)
    return trainer_dict[trainer]("run", distiller, train, val, cfg)


def _process(rank: int, folder: Path, job, arguments: tuple) -> None:
    torch.set_num_threads(1)
    sys.stdout = open(folder / f"out{rank}.txt", "w", buffering=1)  # noqa: SIM115
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        torch.save(job(folder, *arguments), folder / f"found{rank}")
    except MdistillerError as error:
        (folder / f"error{rank}").write_text(f"{error.exit_code} {error}")
        sys.exit(error.exit_code)


def in_two(folder: Path, job, *arguments) -> list[int]:
    """Run ``job(folder, *arguments)`` in two processes that know each other; their statuses."""
    folder.mkdir(exist_ok=True)
    (folder / "meeting").unlink(missing_ok=True)
    processes = [
        CONTEXT.Process(target=_process, args=(rank, folder, job, arguments)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
        assert process.exitcode is not None
    return [process.exitcode for process in processes]


def found(folder: Path) -> list:
    return [torch.load(folder / f"found{rank}", weights_only=True) for rank in (0, 1)]


def train_cases(folder, cases, *opts):
    """Weights after training each of ``cases``."""
    weights = {}
    for case in cases:
        trainer = build(folder / case, case, *opts)
        trainer.train()
        weights[case] = trainer.distiller.state_dict()
    return weights


def metrics(folder: Path) -> list[dict]:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def flat(entry: dict) -> dict[str, float]:
    numbers = {k: v for k, v in entry.items() if not isinstance(v, dict)}
    for inner in (v for v in entry.values() if isinstance(v, dict)):
        numbers.update(inner)
    return {k: v for k, v in numbers.items() if k not in ("seconds", "images_per_second")}


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """Where two processes have trained the cases of :data:`MAIN`."""
    folder = tmp_path_factory.mktemp("torchrun") / "two"
    assert in_two(folder, train_cases, MAIN, *TWO_EPOCHS) == [0, 0]
    return folder


def test_two_processes_equal_one(two, tmp_path):
    assert_equal_one(two, MAIN, tmp_path)


@pytest.mark.slow
def test_two_processes_equal_one_in_the_other_cases(tmp_path):
    cases = sorted(REST)
    assert in_two(tmp_path / "two", train_cases, cases, *TWO_EPOCHS) == [0, 0]
    assert_equal_one(tmp_path / "two", cases, tmp_path)


def assert_equal_one(two: Path, cases: list[str], tmp_path: Path) -> None:
    alone = train_cases(tmp_path / "alone", cases, *TWO_EPOCHS)
    first, second = found(two)
    assert first.keys() == second.keys() == {*cases}
    for case in cases:
        assert [k for k in first[case] if not torch.equal(first[case][k], second[case][k])] == []
        for key, value in alone[case].items():
            assert torch.allclose(first[case][key], value, rtol=1e-9, atol=1e-12), (case, key)
        one, both = (metrics(folder / case) for folder in (tmp_path / "alone", two))
        for a, b in zip(one, both, strict=True):
            assert flat(b) == pytest.approx(flat(a), rel=1e-6, abs=1e-9), case
        folder = two / case / "run"
        result = json.loads((folder / "result.json").read_text())
        assert result["processes"] == 2
        assert len(list((folder / "train.events").iterdir())) == 1
    assert "epoch 2/2" in (two / "out0.txt").read_text()


def resumed(folder, case):
    """Stopped by a signal that only one process gets, then continued."""
    trainer = build(folder, case, *TWO_EPOCHS)
    if World().rank == 1:
        stop_after(trainer, 3, signal.SIGTERM)
    try:
        trainer.train()
    except (InterruptedRun, SystemExit) as stop:
        code = stop.exit_code if isinstance(stop, InterruptedRun) else stop.code
    else:
        raise AssertionError("not stopped")
    state = torch.load(folder / "run" / "latest", weights_only=True)
    rest = build(folder, case, *TWO_EPOCHS)
    rest.train(resume=True)
    return {"code": code, "step": state["step"], "weights": rest.distiller.state_dict()}


def test_a_signal_to_one_process_stops_all_and_the_run_goes_on_with_the_same_bits(two, tmp_path):
    case = "cross-batch, period"
    assert in_two(tmp_path / "part", resumed, case) == [0, 0]
    for whole, part in zip(found(two), found(tmp_path / "part"), strict=True):
        assert part["code"] == 143
        assert part["step"] == 5  # agreed on after the epoch's last step
        assert all(torch.equal(part["weights"][k], v) for k, v in whole[case].items())
    whole, part = metrics(two / case), metrics(tmp_path / "part")
    assert list(map(flat, whole)) == list(map(flat, part))


def explode_in_one(folder):
    trainer = build(folder, "DOT")
    plain = trainer.backward

    def backward(batch, epoch):
        result = plain(batch, epoch)
        if World().rank == 1:
            result.losses["loss_kd"] = result.losses["loss_kd"] * float("nan")
        return result

    trainer.backward = backward
    trainer.train()


def stop_without_a_word(folder):
    trainer = build(folder, "DOT")
    plain, steps = trainer.step, []

    def step(batch, epoch):
        steps.append(epoch)
        if World().rank == 1 and len(steps) == 3:
            os._exit(9)
        return plain(batch, epoch)

    trainer.step = step
    trainer.train()


def lose_the_data(folder):
    trainer = build(folder, "DOT", "LOG.SAVE_EVERY_STEPS", 1)
    plain = trainer.batches

    def batches(epoch, start=0):
        for number, batch in enumerate(plain(epoch, start)):
            if World().rank == 1 and number == 3:
                raise OSError(errno.EMFILE, "Too many open files")
            yield batch

    trainer.batches = batches
    trainer.train()


def test_if_one_process_cannot_read_its_data_all_end(tmp_path):
    assert in_two(tmp_path, lose_the_data) == [1, 1]
    told, why = ((tmp_path / f"error{rank}").read_text() for rank in (0, 1))
    assert "another process of this training stopped" in told
    assert why.startswith("1 too many open files")
    for text in (told, why):
        assert "\n" not in text
        assert "--resume continues" in text
    assert torch.load(tmp_path / "run" / "latest", weights_only=True)["step"] == 3


def test_if_one_process_fails_none_waits_for_ever(tmp_path):
    assert in_two(tmp_path / "nan", explode_in_one) == [1, 1]
    assert not (tmp_path / "nan" / "error0").exists()
    assert "loss_kd" in (tmp_path / "nan" / "error1").read_text()
    assert in_two(tmp_path / "dead", stop_without_a_word) == [1, 9]
    assert "another process of this training stopped" in (tmp_path / "dead/error0").read_text()


def test_what_cannot_be_split_is_refused(tmp_path, monkeypatch):
    class Two(World):
        size, rank = 2, 0

        def __init__(self):
            pass

    trainer = build(tmp_path, "DOT")
    trainer.world = Two()
    assert len(trainer.shard(trainer.train_loader)) == len(trainer.train_loader)
    with pytest.raises(ConfigError, match="list does not work in several processes"):
        trainer.shard([])
    monkeypatch.setitem(trainer.cfg.SOLVER, "BATCH_SIZE", 1)
    with pytest.raises(ConfigError, match="BATCH_SIZE 1 is the batch of all 2 processes"):
        trainer.shard(trainer.train_loader)

    class Own(BaseTrainer):
        def backward(self, batch, epoch):
            return super().backward(batch, epoch)

    trainer = build(tmp_path, "AdamW")
    other = Own("run", trainer.distiller, trainer.train_loader, trainer.val_loader, trainer.cfg)
    other.world = Two()
    with pytest.raises(ConfigError, match="Own does not work"):
        other.shard(trainer.train_loader)
    assert not CRD.data_parallel


@pytest.mark.parametrize("shards", [1, 2, 3, 5])
def test_shards_make_up_the_batch(shards):
    shared = {"recipe": Recipe((0.5,) * 3, (0.25,) * 3, flip=True), "device": torch.device("cpu")}
    loader = ArrayLoader(images(1, IMAGES, 1), 8, train=True, **shared)
    parts = [list(loader.shard(rank, shards)) for rank in range(shards)]
    for number, whole in enumerate(loader):
        counts = [loader.shard(rank, shards).local_size(number) for rank in range(shards)]
        assert sum(counts) == loader.global_size(number) == len(whole[0])
        assert max(counts) - min(counts) <= 1
        for i in range(3):
            kept = [parts[r][number][i][: counts[r]] for r in range(shards)]
            assert torch.equal(torch.cat(kept), whole[i])
        assert all(len(parts[r][number][0]) >= 1 for r in range(shards))


def test_which_losses_relate_the_samples_of_a_batch():
    """All others are means over samples, so that shards make up the whole (docs/trust.md)."""
    image, target = torch.randn(4, 3, 32, 32).double(), torch.randint(10, (4,))
    relating, tried = set(), set()
    for method, cls in distiller_dict.items():
        if method.startswith("CROSSBATCH_") or not cls.data_parallel or method == "NONE":
            continue
        tried.add(method)
        cfg = config("")
        student, teacher = (build_model("digits", name, 10) for name in ("resnet8", "resnet8"))
        distiller = cls(student, teacher.eval(), cfg).double().train()
        for module in distiller.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        whole, *halves = (
            distiller.forward_train(image[part], target[part], epoch=30)[1]
            for part in (slice(0, 4), slice(0, 2), slice(2, 4))
        )
        whole, *halves = (distiller.split_losses(losses)[1] for losses in (whole, *halves))
        if not torch.allclose(sum(halves) / 2, whole, rtol=1e-9):
            relating.add(method)
    assert relating == {m for m, cls in distiller_dict.items() if cls.relates_images} & tried


def torchrun(_: Path, *arguments: object) -> subprocess.Popen:
    words = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    return subprocess.Popen(
        [*words, str(ROOT / "tools" / "train.py"), *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Forked:
    """Two processes as torchrun starts them, which need not load torch first."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        folder.mkdir()
        self._texts = [[folder / f"{kind}{rank}" for kind in ("out", "err")] for rank in (0, 1)]
        self._processes = []
        for rank, texts in enumerate(self._texts):
            world = {"WORLD_SIZE": "2", "RANK": f"{rank}", "LOCAL_RANK": f"{rank}"}
            world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
            env = {**environment(), **world, "TORCHELASTIC_RUN_ID": "none"}
            call = ("train", [*map(str, arguments)], str(ROOT), env, texts)
            self._processes.append(CONTEXT.Process(target=commands._call, args=call))
            self._processes[-1].start()

    def terminate(self) -> None:
        for process in self._processes:
            process.terminate()

    def communicate(self, timeout: float) -> tuple[str, str]:
        for process in self._processes:
            process.join(timeout)
        out, err = (
            "".join(p.read_text() for p in paths) for paths in zip(*self._texts, strict=True)
        )
        return out, err

    @property
    def returncode(self) -> int:
        return max(process.exitcode for process in self._processes)


@pytest.mark.parametrize("start", [Forked, pytest.param(torchrun, marks=pytest.mark.slow)])
def test_the_command_line_under_torchrun(tmp_path, start):
    torch.manual_seed(5)
    torch.save(build_model("digits", "resnet8", 10).state_dict(), tmp_path / "teacher")
    arguments = (
        *("--cfg", f"{DIGITS}/crossbatch_kd.yaml", "LOG.PREFIX", tmp_path, "--resume"),
        *("EXPERIMENT.NAME", "x", "SOLVER.EPOCHS", 1, "SOLVER.LR_DECAY_STAGES", "[]"),
        *("DISTILLER.TEACHER", "resnet8", "DISTILLER.TEACHER_CKPT", tmp_path / "teacher"),
        *("SOLVER.DEVICE", "cpu", "CROSSBATCH.PERIOD", 4, "DATASET.SUBSET", 640),
    )
    folder = tmp_path / "digits" / "x"
    process = start(tmp_path / "first", *arguments, "LOG.SAVE_EVERY_STEPS", 2)
    deadline = time.monotonic() + 120
    while not (folder / "latest").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    _, stderr = process.communicate(timeout=100)
    assert process.returncode != 0
    assert stderr.count("error: terminated in epoch") == 1
    assert torch.load(folder / "latest", weights_only=True)["step"] > 0
    process = start(tmp_path / "second", *arguments)
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    for line in ("epoch 1/1", "top-1 of the last epoch", "teacher resnet8: "):
        assert stdout.count(line) == 1
    assert json.loads((folder / "result.json").read_text())["processes"] == 2
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
    assert {p.name for p in tmp_path.glob("digits/*")} == {"x"}
    last = torch.load(folder / "student_latest", weights_only=True)["model"]
    assert all(torch.isfinite(v).all() for v in last.values())
