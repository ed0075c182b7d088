"""Whatever befalls the processes that read images, a run ends, with one line and its step saved."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import time
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import to_tensor

from mdistiller.dataset import FolderLoader
from mdistiller.dataset._folder import leave_out_broken
from mdistiller.distillers import Vanilla
from mdistiller.engine import BaseTrainer
from mdistiller.errors import DataError, MdistillerError, NonFiniteError, explained

from .test_tools import ROOT, environment
from .toys import CLASSES, ToyNet, batches, config, mostly_slow

SIDE, IMAGES = 16, 40


class Transform:
    """An image's tensor; ``fault`` is called in the process that reads image ``at``."""

    def __init__(self, fault=None, at: int = 25) -> None:
        self.fault, self.at = fault, at

    def __call__(self, image):
        if self.fault is not None and image.getpixel((0, 0))[0] == self.at:
            self.fault()
        return to_tensor(image)


def folder(root, side_of_last: int = SIDE):
    """Eight images of each class; the first pixel tells which one it is."""
    for n in range(IMAGES):
        side = side_of_last if n == IMAGES - 1 else SIDE
        image = Image.new("RGB", (side, SIDE), (n, 100, 200))
        path = root / "images" / f"class{n % CLASSES}" / f"{n:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return root / "images"


def trainer(tmp_path, fault=None, workers: int = 2, side: int = SIDE, *opts) -> BaseTrainer:
    images = ImageFolder(folder(tmp_path, side), Transform(fault))
    train = FolderLoader(images, 4, num_workers=workers, pin_memory=False, train=True)
    cfg = config(tmp_path, "SOLVER.EPOCHS", 1, "SOLVER.LR_DECAY_STAGES", "[]", *opts)
    torch.manual_seed(1)
    return BaseTrainer("run", Vanilla(ToyNet()), train, list(batches(0)), cfg)


def fails(tmp_path, fault, error=DataError, **options) -> str:
    began = time.monotonic()
    with pytest.raises(error) as ended:
        trainer(tmp_path, fault, **options).train()
    assert time.monotonic() - began < 60
    assert "\n" not in str(ended.value)
    return str(ended.value)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raises(error):
    def fault() -> None:
        raise error

    return fault


def without_files() -> None:
    """What Python only prints: the batch cannot be handed over, and is waited for."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def without_shared_memory() -> None:
    def refuse(storage):
        raise RuntimeError("unable to open file </torch_1_2_3> in read-write mode")

    ForkingPickler.register(torch.UntypedStorage, refuse)


def deaf() -> None:
    """The second worker does not listen while the first one fails."""
    if torch.utils.data.get_worker_info().id == 0:
        time.sleep(0.5)
        raise ValueError("lines")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    time.sleep(600)


def leaves() -> None:
    os._exit(3)


def crashes() -> None:
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGSEGV)


FAULTS = {
    "ended by itself": (leaves, "ended with status 3.*NUM_WORKERS 0"),
    "crashed": (crashes, "ended by segmentation fault.*NUM_WORKERS 0"),
    "no more files": (without_files, "^too many open files.*ulimit -n"),
    "no more shared memory": (without_shared_memory, "too little shared memory.*--shm-size"),
    "killed": (killed, "was killed.*NUM_WORKERS"),
    "a mistake in the transform": (raises(ValueError("so many\nlines")), "lines"),
    "no shared memory": (
        raises(RuntimeError("unable to allocate shared memory(shm) for file </torch_1>")),
        "shared memory.*--shm-size",
    ),
    "no open files": (raises(OSError(errno.EMFILE, "Too many open files")), "ulimit -n"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, torch.Tensor]:
    """What a training ends with to whose workers nothing happens."""
    one = trainer(tmp_path_factory.mktemp("whole"))
    one.train()
    return one.distiller.state_dict()


# PyTorch raises at a worker's death wherever the program is: in a callback of Python's garbage
# collection it is not heard, only warned of.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "name",
    mostly_slow(FAULTS, "crashed", "no more files", "killed", "a mistake in the transform"),
)
def test_one_line_and_the_step_saved_whatever_happens_to_a_worker(tmp_path, name, whole):
    fault, words = FAULTS[name]
    message = fails(tmp_path / "first", fault)
    assert re.search(words, message), message
    latest = tmp_path / "first" / "run" / "latest"
    if latest.exists():  # the killed one may have been among the first
        step = torch.load(latest, weights_only=True)["step"]
        assert f"after its step {step}" in message
    # Where the cause is gone, the run continues with the same bits.
    rest = trainer(tmp_path / "first")
    rest.train(resume=True)
    found = rest.distiller.state_dict()
    assert [k for k in found if not torch.equal(found[k], whole[k])] == []


def test_a_worker_that_dies_during_a_step_does_not_lose_it(tmp_path):
    """PyTorch raises wherever the program is: for want of a step, or of a file half written."""
    one = trainer(tmp_path)
    plain, steps = one.step, []

    def step(batch, epoch):
        result = plain(batch, epoch)
        steps.append(epoch)
        if len(steps) == 3:
            worker = multiprocessing.active_children()[0]
            worker.kill()
            worker.join(20)
            time.sleep(0.1)  # its death is told by now
        return result

    one.step = step
    with pytest.raises(DataError, match="was killed.*saved after its step [3-9]"):
        one.train()
    assert torch.load(tmp_path / "run" / "latest", weights_only=True)["step"] == len(steps)


def test_workers_that_cannot_all_start_are_ended(tmp_path, monkeypatch, capfd):
    plain = multiprocessing.Process.start

    def start(process):
        if multiprocessing.active_children():
            raise OSError(errno.EMFILE, "Too many open files")
        plain(process)

    images = ImageFolder(folder(tmp_path), Transform())
    with monkeypatch.context() as patch:
        patch.setattr(multiprocessing.Process, "start", start)
        with pytest.raises(DataError, match="^too many open files"):
            list(FolderLoader(images, 4, num_workers=2, pin_memory=False, train=True))
    assert all(worker.exitcode is not None for worker in ended_soon())
    gc.collect()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("workers", [0, 2])
def test_images_of_two_sizes_in_one_batch_are_named(tmp_path, workers):
    message = fails(tmp_path, None, workers=workers, side=24)
    assert "39.png becomes 3x16x24" in message or "39.png 3x16x24" in message
    assert "3x16x16" in message


def test_a_worker_that_does_not_listen_is_ended(tmp_path):
    images = ImageFolder(folder(tmp_path), lambda image: deaf())
    began = time.monotonic()
    with pytest.raises(DataError, match="lines"):
        list(FolderLoader(images, 4, num_workers=2, pin_memory=False, train=True))
    assert time.monotonic() - began < 60
    assert all(worker.exitcode is not None for worker in ended_soon())


def ended_soon() -> list:
    left = multiprocessing.active_children()
    for worker in left:
        worker.join(20)
    return left


def test_a_process_without_files_does_not_leave_out_sound_images(tmp_path):
    """SKIP_BROKEN blames a file for what is the file's fault alone."""
    for error in (OSError(errno.EMFILE, "Too many open files"), MemoryError()):
        images = ImageFolder(folder(tmp_path))
        images.loader = lambda path, error=error: raises(error)()
        with pytest.raises(MdistillerError, match="open files|not enough memory"):
            leave_out_broken(images, 0)
        assert len(images.samples) == IMAGES


def test_no_memory_in_a_step_is_one_line_and_saves_no_half_step(tmp_path):
    for error in (
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:126] DefaultCPUAllocator: can't allocate memory"
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ):
        one = trainer(tmp_path, None, 0)
        plain, steps = one.backward, []

        def backward(batch, epoch, plain=plain, steps=steps, error=error):
            steps.append(epoch)
            if len(steps) == 3:
                raise error
            return plain(batch, epoch)

        one.backward = backward
        with pytest.raises(MdistillerError, match="not enough memory.*SOLVER.BATCH_SIZE") as ended:
            one.train()
        assert "\n" not in str(ended.value)
        assert not (tmp_path / "run" / "latest").exists()


def test_a_mistake_in_a_method_is_shown_as_what_it_is(tmp_path):
    one = trainer(tmp_path, None, 0)
    one.backward = lambda batch, epoch: [][0]
    with pytest.raises(IndexError):
        one.train()
    for error in (ValueError("x"), RuntimeError("shapes do not match"), NonFiniteError("y")):
        assert explained(error) is None


PROGRAM = """
import sys
from pathlib import Path
from mdistiller.cli import exit_on_error
from tests.test_workers import trainer, killed
exit_on_error(lambda: trainer(Path(sys.argv[1]), *eval(sys.argv[2])).train())()
"""


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["(killed, 2)", "(None, 1, 24)"])
def test_the_process_ends(tmp_path, arguments):
    """Workers outlive one SIGTERM, so whoever waits for them must end them itself."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), arguments],
        cwd=ROOT,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


SHORT_OF_MEMORY = """
import resource, sys
from mdistiller.commands.train import main
(size,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize"))
limit = int(size) * 1024 + 700 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc")
def test_too_little_memory_for_a_real_run(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-c", SHORT_OF_MEMORY, "--cfg", "configs/digits/vanilla.yaml"),
            *("LOG.PREFIX", str(tmp_path), "SOLVER.BATCH_SIZE", "1347"),
            *("DISTILLER.STUDENT", "resnet110", "SOLVER.DEVICE", "cpu"),
        ],
        cwd=ROOT,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert "error: not enough memory" in done.stderr
    assert "Traceback" not in done.stderr
