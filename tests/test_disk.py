"""A disk that is full or read-only stops a run with one line and spoils nothing."""

from __future__ import annotations

import resource
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from mdistiller.engine.rundir.files import whole_file, write_text
from mdistiller.errors import CheckpointError, InterruptedRun, MdistillerError

from .commands import CONTEXT
from .test_kill import train_few
from .test_resume import STEPS, assert_same, build, outcome, stop_after
from .test_tools import DIGITS, ROOT

PAGE = 4096


def mount(*arguments: str) -> None:
    try:
        subprocess.run(["mount", *arguments], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small file system to fill here: {error}")


@pytest.fixture
def disk(tmp_path):
    """A file system of 1 MiB in memory; needs the rights to mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path))
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """A file that leaves ``leave`` bytes free."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * PAGE)
        except OSError:
            size = file.tell() // PAGE * PAGE
    with path.open("r+b") as file:
        file.truncate(size - leave)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("start", ["nothing", "within epoch 2"])
def test_full_disk_wherever_it_becomes_full(disk, tmp_path, start):
    """For every number of pages left, the run stops in one line and goes on with the same bits."""
    opts = ("LOG.TENSORBOARD_FREQ", 1)
    whole = build(tmp_path / "whole", "cross-batch", *opts)
    whole.train()
    before, run, stops = tmp_path / "before", disk / "run", set()
    before.mkdir()
    if start != "nothing":
        part = build(before, "cross-batch", *opts)
        stop_after(part, STEPS + 1)
        with pytest.raises(InterruptedRun):
            part.train()
        before = before / "run"
    for pages in range(80):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(before, run)
        filler = fill(disk, pages * PAGE)
        trainer = build(disk, "cross-batch", *opts)
        try:
            trainer.train(resume=True)
        except CheckpointError as error:
            assert "No space left" in str(error)
            assert "\n" not in str(error)
            stops.add(str(error).split()[2].rpartition("/")[2])
        else:
            break
        finally:
            filler.unlink()
        if start != "nothing" or (run / "latest").exists():
            torch.load(run / "latest", weights_only=True)
        if pages % 4 == 0:
            rest = build(disk, "cross-batch", *opts)
            rest.train(resume=True)
            assert_same(outcome(whole), outcome(rest))
    else:
        pytest.fail("80 pages are not enough for a run")
    assert_same(outcome(whole), outcome(trainer))
    # Not only the checkpoints: the logs hit the end of the disk, too.
    assert len(stops) >= 2
    if start == "nothing":
        assert stops >= {"config.yaml", "metrics.jsonl", "worklog.txt", "train.events", "latest"}


def test_folder_that_becomes_read_only(disk):
    build(disk, "vanilla", "SOLVER.EPOCHS", 1).train()
    run = str(disk / "run")
    trainer = build(disk, "vanilla")
    plain, steps = trainer.step, []

    def step(batch, epoch):
        steps.append(epoch)
        if len(steps) == STEPS + 2:
            # On top of it: a file system with open files cannot become read-only itself.
            mount("-t", "tmpfs", "-o", "ro", "tmpfs", run)
        return plain(batch, epoch)

    trainer.step = step
    try:
        with pytest.raises(MdistillerError, match="Read-only file system.*--resume") as e:
            trainer.train(resume=True, allow_changes=True)
        assert "\n" not in str(e.value)
        with pytest.raises(MdistillerError, match="cannot write into .*LOG.PREFIX"):
            build(disk, "vanilla").train(resume=True)
    finally:
        subprocess.run(["umount", run], check=True)
    assert torch.load(disk / "run" / "latest", weights_only=True)["epoch"] == 2
    build(disk, "vanilla").train(resume=True)


def test_command_line_on_a_full_disk(disk, tmp_path):
    """Room for the first epoch's four files of 2 MB in all, not for one of the second epoch's."""
    mount("-o", "remount,size=2400k", str(disk))
    arguments = (
        *("--cfg", str(ROOT / DIGITS / "vanilla.yaml"), "LOG.PREFIX", str(disk), "--resume"),
        *("EXPERIMENT.NAME", "x", "SOLVER.EPOCHS", "2", "SOLVER.LR_DECAY_STAGES", "[1]"),
    )
    process = CONTEXT.Process(target=train_few, args=(list(arguments), str(tmp_path / "log")))
    process.start()
    process.join(100)
    printed = (tmp_path / "log").read_text()
    assert process.exitcode == 1, printed
    (error,) = (line for line in printed.splitlines() if line.startswith("error: "))
    assert "cannot write" in error
    assert "No space left on device" in error
    assert "Traceback" not in printed
    folder = disk / "digits" / "x"
    assert torch.load(folder / "latest", weights_only=True)["epoch"] == 1
    assert not list(folder.glob(".*.tmp"))


@pytest.fixture
def small_files():
    """No file may grow beyond 8 kB: a full disk for those who may not mount one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8000, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_whole_file_or_none(tmp_path, small_files):
    path = tmp_path / "file"
    write_text(path, "old")
    small_files()
    with pytest.raises(CheckpointError, match="File too large"):
        write_text(path, "new" * 10_000)
    with pytest.raises(CheckpointError, match="File too large"), whole_file(path) as file:
        torch.save(torch.zeros(10_000), file)
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
