"""Every row of docs/bad-input.md: the input is given to the tools as a user would give it."""

from __future__ import annotations

import io
import itertools
import os
import pickle
import shutil
import sys
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mdistiller.commands.train import main as train
from mdistiller.dataset import ImageArray, Recipe, array_loaders, build_model, dataset_dict
from mdistiller.dataset.glyphs.build import build_glyphs
from mdistiller.dataset.glyphs.font_packages import folder_packages
from tools import download_teachers, export, make_glyphs, visualize
from tools import eval as evaluation

from .glyph_fonts import fake_dpkg, font_folder
from .test_dataset_sets import Cifar, flip_a_byte
from .toys import mostly_slow

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "bad-input.md"
VANILLA, KD = (str(ROOT / f"configs/digits/{name}.yaml") for name in ("vanilla", "kd"))
CIFAR = str(ROOT / "configs/cifar100/vanilla.yaml")

# cli.exit_on_error shows warnings as lines, which is part of what is tested.
pytestmark = pytest.mark.filterwarnings("default")


def table() -> dict[str, tuple[list[str], int]]:
    """Input -> (pieces of the message in this order, exit status)."""
    rows = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 3 and cells[2].isdecimal():
            rows[cells[0]] = ([p for p in cells[1].split("…") if p.strip()], int(cells[2]))
    return rows


ROWS = table()
CHECKPOINT_ROWS = [name for name in ROWS if name.startswith("checkpoint: ")]


# ---- a small data set under the name of a shipped one, to train within a second ----------------


def small_digits(cfg, sizes=(41, 40), classes=10):
    rng = np.random.default_rng(0)
    sets = [
        ImageArray(
            torch.from_numpy(rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)),
            torch.arange(n) % classes,
            num_classes=classes,
        )
        for n in sizes
    ]
    return array_loaders(cfg, *sets, Recipe((0.5,) * 3, (0.25,) * 3, flip=False))


def replace_digits(patch: pytest.MonkeyPatch, function) -> None:
    # The registry refuses a second registration, as it should.
    dict.__setitem__(dataset_dict, "digits", function)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    original = dataset_dict["digits"]
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # tools replace it
    replace_digits(monkeypatch, small_digits)
    yield
    dict.__setitem__(dataset_dict, "digits", original)


SHORT = ("EXPERIMENT.NAME", "run", "SOLVER.DEVICE", "cpu", "SOLVER.LR_DECAY_STAGES", "[]")


class Tools:
    """Calls tools in a folder of its own and checks how they end."""

    def __init__(self, folder: Path, capsys) -> None:
        self.folder, self.capsys = folder, capsys

    def train(self, cfg: str, *opts: object) -> tuple[int, str]:
        usual = [
            *("--cfg", cfg, "LOG.PREFIX", self.folder / "out", "SOLVER.EPOCHS", 1, *SHORT),
        ]
        return self.call(train, *usual, *opts)

    def call(self, main, *arguments: object) -> tuple[int, str]:
        """Exit status and standard error of a tool."""
        texts = [str(argument) for argument in arguments]
        self.capsys.readouterr()
        status, before = 0, sys.argv
        sys.argv = ["tool", *texts]
        try:
            main()
        except SystemExit as stop:
            status = stop.code
        finally:
            sys.argv = before
        return status, self.capsys.readouterr().err

    def saved(self, name: str, model: str = "resnet8", classes: int = 10) -> Path:
        path = self.folder / name
        torch.save({"model": build_model("digits", model, classes).state_dict()}, path)
        return path

    @property
    def run(self) -> Path:
        return self.folder / "out" / "digits" / "run"


@pytest.fixture
def tools(tmp_path, capsys) -> Tools:
    return Tools(tmp_path, capsys)


def assert_row(row: str, outcome: tuple[int, str]) -> None:
    """The exit status and the message are those of the table, in one line."""
    pieces, status = ROWS[row]
    code, err = outcome
    assert code == status, err
    lines = [x for x in err.splitlines() if x.startswith(("error: ", "warning: "))]
    assert len(lines) == bool(pieces), err
    if status:
        assert err == f"{lines[0]}\n"
    rest = "".join(lines)
    for piece in pieces:
        assert piece in rest, (piece, err)
        rest = rest[rest.index(piece) + len(piece) :]


# ---- checkpoints ---------------------------------------------------------------------------


class Malicious:
    """Would create the folder ``flag`` when unpickled."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self):
        return os.mkdir, (str(self.flag),)


def flip_a_weight(path: Path) -> None:
    """Flip the lowest bit of a number in the middle of the largest tensor."""
    raw = bytearray(path.read_bytes())
    state = torch.load(path, weights_only=True)["model"]
    largest = max(state.values(), key=lambda t: t.numel())
    # The bytes as they lie in memory, which need not be the order of the dimensions.
    stored = bytes(largest.untyped_storage())
    raw[raw.index(stored) + 4 * (largest.numel() // 2)] ^= 1
    path.write_bytes(raw)
    torch.load(path, weights_only=True)  # torch itself notices nothing


def bad_checkpoints(row: str, sound: Path, folder: Path) -> list[Path]:
    """The files of a row, made from the sound checkpoint ``sound``."""
    bad = folder / "bad"
    state = torch.load(sound, weights_only=True)
    flag = folder / "executed"
    if row == "checkpoint: truncated":
        raw = sound.read_bytes()
        names = [folder / f"cut{i}" for i in range(3)]
        for name, part in zip(names, (0.1, 0.5, 0.999), strict=True):
            name.write_bytes(raw[: int(part * len(raw))])
        return names
    if row == "checkpoint: a bit flipped in a weight":
        shutil.copy(sound, bad)
        flip_a_weight(bad)
    elif row == "checkpoint: a web page":
        bad.write_text("<!DOCTYPE html>")
    elif row == "checkpoint: an empty file":
        bad.write_bytes(b"")
    elif row == "checkpoint: an archive of checkpoints":
        with tarfile.open(bad, "w") as archive:
            archive.add(sound, "teachers/resnet8")
    elif row == "checkpoint: a Git LFS pointer":
        bad.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    elif row == "checkpoint: a pickle that would run code":
        content = {**state, "extra": Malicious(flag)}
        torch.save(content, bad)
        torch.save(content, folder / "old", _use_new_zipfile_serialization=False)
        (folder / "bare").write_bytes(pickle.dumps(Malicious(flag), protocol=2))
        return [bad, folder / "old", folder / "bare"]
    elif row == "checkpoint: no weights in it":
        torch.save({"model": {}}, bad)
    return [bad]


# How each tool reads the checkpoint ``path`` of a network called ``model``.
READERS = {
    "teacher": lambda tools, path, model: tools.train(
        KD, "DISTILLER.TEACHER", model, "DISTILLER.TEACHER_CKPT", path
    ),
    "eval": lambda tools, path, model: tools.call(
        evaluation.main, "-m", model, "-c", path, "-d", "digits", "--device", "cpu"
    ),
    "export": lambda tools, path, model: tools.call(
        *(export.main, "-m", model, "-c", path, "-d", "digits"),
        *("--format", "state_dict", "--out", tools.folder / "exported"),
    ),
    "visualize": lambda tools, path, model: tools.call(
        *(visualize.main, "--cfg", KD, "--student-ckpt", path, "--out", tools.folder / "png"),
        *("--images", "40", "DISTILLER.STUDENT", model, "SOLVER.DEVICE", "cpu"),
        *("DISTILLER.TEACHER", "resnet8", "DISTILLER.TEACHER_CKPT", tools.saved("sound")),
    ),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("row", CHECKPOINT_ROWS)
def test_checkpoint(row, reader, tools, tmp_path):
    model = "resnet20" if "architecture" in row else "resnet8"
    if "classes" in row and reader == "export":
        pytest.skip("the network of an exported file takes its classes from the file")
    sound = tools.saved("ckpt", classes=7 if "classes" in row else 10)
    files = [sound] if "of another" in row else bad_checkpoints(row, sound, tmp_path)
    for path in files:
        assert_row(row, READERS[reader](tools, path, model))
    assert not (tmp_path / "executed").exists()
    left = [p for p in tmp_path.rglob("*") if p.is_file() and p.parent != tmp_path]
    assert left == []


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The folder "out" of a training that is done, to be copied."""
    folder, opts = tmp_path_factory.mktemp("ended"), ("SOLVER.EPOCHS", 1, *SHORT)
    original = dataset_dict["digits"]
    dict.__setitem__(dataset_dict, "digits", small_digits)
    try:
        train(["--cfg", VANILLA, *map(str, ("LOG.PREFIX", folder / "out", *opts))])
    finally:
        dict.__setitem__(dataset_dict, "digits", original)
    return folder / "out"


@pytest.mark.parametrize("row", CHECKPOINT_ROWS[:4])
def test_resume_from_a_bad_latest(row, tools, tmp_path, ended):
    shutil.copytree(ended, tmp_path / "out")
    latest = tools.run / "latest"
    sound = latest.read_bytes()
    copy = tmp_path / "latest_before"
    copy.write_bytes(sound)
    for path in bad_checkpoints(row, copy, tmp_path):
        shutil.copy(path, latest)
        damaged = latest.read_bytes()
        assert_row(row, tools.train(VANILLA, "--resume"))
        assert latest.read_bytes() == damaged
        assert (tools.run / "student_latest").exists()
    assert not (tmp_path / "executed").exists()


# ---- archives, data, training, configuration -------------------------------------------------


def archive_with(member: tarfile.TarInfo) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for info in (tarfile.TarInfo("fine"), member):
            tar.addfile(info, io.BytesIO(b"" if info.issym() else b"x" * info.size))
    return raw.getvalue()


def link(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc"
    return info


def unpack_teachers(tools: Tools, content: bytes) -> tuple[int, str]:
    """``tools/download_teachers.py`` with the archive there already."""
    folder = tools.folder / "ckpts"
    folder.mkdir(exist_ok=True)
    (folder / "cifar_teachers.tar").write_bytes(content)
    outcome = tools.call(download_teachers.main, "--dest", folder)
    assert [p.name for p in folder.iterdir()] == ["cifar_teachers.tar"]
    assert not list(tools.folder.parent.rglob("evil*"))
    return outcome


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../evil"),
        tarfile.TarInfo("a/../../evil"),
        tarfile.TarInfo("/tmp/evil"),
        link("evil"),
    ],
    ids=lambda member: member.name,
)
def test_archive_members(member, tools):
    row = "archive: a member with `../`, an absolute name, or a link"
    assert_row(row, unpack_teachers(tools, archive_with(member)))


def test_truncated_archive(tools):
    content = archive_with(tarfile.TarInfo("fine"))
    # Within a member's header, between two members, within the first one.
    for cut in (content[:700], content[:512], content[:100]):
        assert_row("archive: truncated", unpack_teachers(tools, cut))


def test_flipped_byte_of_cifar(tools, tmp_path, monkeypatch):
    flip_a_byte(Cifar(tmp_path, monkeypatch).write())
    assert_row("archive: a flipped byte", tools.train(CIFAR, "DATASET.ROOT", tmp_path))


def test_labels_out_of_range(tools, tmp_path, monkeypatch):
    cifar = Cifar(tmp_path, monkeypatch)
    cifar.labels["train"][3] = 100
    cifar.write()
    assert_row("data: labels out of range", tools.train(CIFAR, "DATASET.ROOT", tmp_path))


def tiny_imagenet(root: Path) -> Path:
    """Three classes of four training images and one validation image; returns their folder."""
    folder = root / "tiny-imagenet-200"
    rng = np.random.RandomState(0)
    for c, (part, count) in itertools.product("abc", (("train", 4), ("val", 1))):
        for i in range(count):
            path = folder / part / c / f"{c}{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.randint(0, 256, (64, 64, 3)).astype(np.uint8)).save(path)
    return folder


def train_tiny(tools: Tools, *opts: object) -> tuple[int, str]:
    return tools.train(
        *(VANILLA, "DATASET.TYPE", "tiny_imagenet", "DATASET.ROOT", tools.folder),
        *("DATASET.NUM_WORKERS", 0, "DISTILLER.STUDENT", "wrn_16_1", "SOLVER.BATCH_SIZE", 6),
        *opts,
    )


def test_missing_data_and_empty_folders(tools):
    assert_row("data: missing", train_tiny(tools))
    folder = tiny_imagenet(tools.folder)
    shutil.rmtree(folder / "train" / "b")
    (folder / "train" / "b").mkdir()
    assert_row("data: an empty folder", train_tiny(tools))
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()
    assert_row("data: an empty folder", train_tiny(tools))


def test_image_that_cannot_be_decoded(tools):
    broken = tiny_imagenet(tools.folder) / "train" / "b" / "b2.JPEG"
    broken.write_bytes(broken.read_bytes()[:700])
    outcome = train_tiny(tools)
    assert_row("data: an image that cannot be decoded", outcome)
    assert "b2.JPEG" in outcome[1]
    outcome = train_tiny(tools, "DATASET.SKIP_BROKEN", True)
    assert_row("data: the same with DATASET.SKIP_BROKEN True", outcome)
    assert "b2.JPEG" in outcome[1]


def test_one_class(tools, monkeypatch, tmp_path):
    """Of any method; DKD, whose part among the other classes is empty with two, says so then."""

    def classes(count):
        replace_digits(monkeypatch, lambda cfg: small_digits(cfg, classes=count))

    classes(1)
    for call in ((VANILLA,), (KD,), (KD, "DISTILLER.TYPE", "DKD")):
        assert_row("data: a single class", tools.train(*call))
    classes(2)
    torch.save(build_model("digits", "resnet8", 2).state_dict(), tmp_path / "two")
    opts = ("DISTILLER.TYPE", "DKD", "DISTILLER.TEACHER", "resnet8")
    outcome = tools.train(KD, *opts, "DISTILLER.TEACHER_CKPT", tmp_path / "two")
    assert_row("data: two classes for DKD", outcome)


def test_images_of_two_sizes(tools):
    odd = tiny_imagenet(tools.folder) / "train" / "b" / "b2.JPEG"
    Image.new("RGB", (80, 64)).save(odd)
    row = "data: images of two sizes in one batch"
    assert_row(row, train_tiny(tools, "SOLVER.BATCH_SIZE", 12))


def test_grey_of_32_bits(tools):
    folder = tiny_imagenet(tools.folder) / "train" / "b"
    for mode in ("I", "F"):
        Image.new(mode, (64, 64)).save(folder / "b9.tif")
        assert_row("data: a grey image of 32 bits or of floats", train_tiny(tools))


def test_hidden_folders_and_links(tools):
    train = tiny_imagenet(tools.folder) / "train"
    for name in (".ipynb_checkpoints", "a/.ipynb_checkpoints", "__MACOSX"):
        shutil.copytree(train / "b", train / name)
    (train / "c" / "Thumbs.db").write_bytes(b"")
    (train / "a" / "up").symlink_to("..")
    row = "data: hidden and system folders, links back to a folder above"
    assert_row(row, train_tiny(tools))


def spoil(row: str, root: Path) -> tuple[object, ...]:
    """Makes of a sound folder what the row says; returns the overrides that it needs."""
    one = root / "train" / "b" / "b0.JPEG"
    if row == "own images: no such folder":
        return ("DATASET.ROOT", root / "none")
    if row == "own images: one class only":
        for part, name in itertools.product(("train", "val"), "bc"):
            shutil.rmtree(root / part / name)
    elif row == "own images: val is missing":
        shutil.rmtree(root / "val")
    elif row == "own images: val is called test":
        (root / "val").rename(root / "test")
    elif row == "own images: classes of val differ":
        shutil.rmtree(root / "val" / "c")
    elif row == "own images: a class without images":
        for path in (root / "train" / "b").iterdir():
            path.rename(path.with_suffix(".txt"))
    elif row == "own images: an image that cannot be decoded":
        one.write_bytes(one.read_bytes()[:300])
    elif row == "own images: IMAGE_SIZE 0":
        return ("DATASET.IMAGE_SIZE", 0)
    elif row == "own images: MEAN in 0..255":
        return ("DATASET.MEAN", "[124, 116, 104]")
    elif row == "own images: a setting of them for another set":
        return ("DATASET.TYPE", "digits")
    return ()


@pytest.mark.parametrize("row", [name for name in ROWS if name.startswith("own images: ")])
def test_own_images(row, tools):
    root = tiny_imagenet(tools.folder)
    opts = ("DATASET.TYPE", "image_folder", "DATASET.ROOT", root, "DATASET.IMAGE_SIZE", 32)
    opts += ("DATASET.NUM_WORKERS", 0, *spoil(row, root))
    assert_row(row, tools.train(VANILLA, *opts))


FILE = Path(__file__).parent / "file_network.py"
NETWORKS = {
    "network: no such one in timm": ("STUDENT", "timm:resnet10"),
    "network: of an unknown library": ("STUDENT", "torchvison:resnet18"),
    "network: a file that is missing": ("STUDENT", "none.py:small"),
    "network: a name that its file does not have": ("STUDENT", f"{FILE}:smal"),
    "network: a module that does not exist": ("FEATURES.STUDENT", "[layer1, layr2]"),
    "network: a module that gives no map": ("FEATURES.STUDENT", "[layer1, fc]"),
    "network: without what the method compares": (
        "STUDENT",
        "timm:test_vit",
        "DISTILLER.TYPE",
        "AT",
    ),
    "network: images of a size that it does not take": ("STUDENT", f"{FILE}:only_large"),
    "network: a teacher of other classes": ("TEACHER", "timm:test_resnet"),
    "network: published weights of other classes": ("TEACHER_CKPT", "pretrained"),
}


@pytest.mark.filterwarnings("ignore")
def test_networks_of_others(tools):
    pytest.importorskip("timm")
    assert set(NETWORKS) == {n for n in ROWS if n.startswith("network: ")}
    teacher = tools.saved("teacher", "timm:test_resnet", 7)
    for row, (key, *values) in NETWORKS.items():
        opts = ["DISTILLER.STUDENT", "timm:test_resnet", "DISTILLER.TEACHER", "timm:test_resnet"]
        opts += ["DISTILLER.TEACHER_CKPT", teacher, f"DISTILLER.{key}", *values]
        if not key.startswith("TEACHER"):
            opts += ["DISTILLER.TEACHER_FAULT", "random"]
        assert_row(row, tools.train(KD, *opts))


def test_glyphs(tools, tmp_path):
    opts = (VANILLA, "DATASET.TYPE", "glyphs", "DATASET.ROOT", tmp_path)
    assert_row("data: no glyphs built", tools.train(*opts))
    build_glyphs(folder_packages(font_folder(tmp_path / "fonts")), tmp_path / "glyphs")
    flip_a_byte(tmp_path / "glyphs" / "train.npy")
    assert_row("data: a bit flipped in the glyphs", tools.train(*opts))


def test_font_packages(tools, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(fake_dpkg(tmp_path, font_folder(tmp_path / "fonts"))))
    names = tmp_path / "names"
    names.write_text("fonts-roman\nfonts-missing\n")
    outcome = tools.call(
        make_glyphs.main, "--packages", names, "--out", tmp_path / "glyphs", "--workers", 1
    )
    assert_row("data: font packages that are not installed", outcome)
    assert not (tmp_path / "glyphs").exists()


@pytest.mark.parametrize(
    ("row", "holdout"),
    [
        ("data: a subset larger than the training set", 0),
        ("data: a subset and held-out images that overlap", 20),
    ],
)
def test_subsets(row, holdout, tools):
    subset = 30 if holdout else 42
    outcome = tools.train(VANILLA, "DATASET.SUBSET", subset, "DATASET.HOLDOUT", holdout)
    assert_row(row, outcome)


class SomeNaN:
    """A loader whose second batch has a NaN from epoch 2 on."""

    def __init__(self, loader) -> None:
        self.loader, self.dataset, self.epoch = loader, loader.dataset, 0

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.loader.set_epoch(epoch)

    def __iter__(self):
        for number, (image, *rest) in enumerate(self.loader, 1):
            if (self.epoch, number) == (2, 2):
                image[3, 1, 5, 5] = float("nan")
            yield (image, *rest)


def assert_last_checkpoint_is_of_epoch_one(tools: Tools) -> None:
    assert torch.load(tools.run / "latest", weights_only=True)["epoch"] == 1
    student = torch.load(tools.run / "student_latest", weights_only=True)["model"]
    assert all(torch.isfinite(value).all() for value in student.values())


def test_nan_in_an_image(tools, monkeypatch):
    def with_nan(cfg):
        train_loader, *rest = small_digits(cfg)
        return SomeNaN(train_loader), *rest

    replace_digits(monkeypatch, with_nan)
    outcome = tools.train(VANILLA, "SOLVER.EPOCHS", 3, "SOLVER.BATCH_SIZE", 10)
    assert_row("data: NaN in an image", outcome)
    assert "step 2: ce, gradient" in outcome[1]
    assert_last_checkpoint_is_of_epoch_one(tools)


@pytest.mark.parametrize("method", ["NONE", "CROSSBATCH_KD"])
def test_exploding_loss(tools, method):
    """The learning rate is raised to 1e30 after the first epoch."""
    name = "ce" if method == "NONE" else "loss_ce"
    outcome = tools.train(
        *(VANILLA, "SOLVER.EPOCHS", 3, "SOLVER.BATCH_SIZE", 10, "DISTILLER.TYPE", method),
        *("SOLVER.TRAINER", "base" if method == "NONE" else "crossbatch"),
        *("DISTILLER.TEACHER", "resnet8", "DISTILLER.TEACHER_CKPT", tools.saved("teacher")),
        *("SOLVER.LR_DECAY_STAGES", "[1]", "SOLVER.LR_DECAY_RATE", 1e31),
    )
    assert_row("training: the loss explodes", outcome)
    assert name in outcome[1].partition("step ")[2]
    assert_last_checkpoint_is_of_epoch_one(tools)


ODD = {"training: batch larger than the data set": 1000, "training: last batch of one image": 8}
ODD_CASES = [*itertools.product(ODD, ("KD", "REVIEWKD", "CROSSBATCH_REVIEWKD", "CROSSBATCH_RKD"))]
# Of the first row one method: all see that batch as any other.
SOME_ODD = [case for case in ODD_CASES if case[1] != "KD"][2:]


@pytest.mark.parametrize("case", mostly_slow(ODD_CASES, *SOME_ODD), ids="-".join)
def test_odd_batch_sizes(case, tools, monkeypatch):
    """17 images: one batch of all of them, or two of 8 and one of a single image."""
    replace_digits(monkeypatch, lambda cfg: small_digits(cfg, sizes=(17, 16)))
    row, method = case
    batch = ODD[row]
    trainer = "crossbatch" if method.startswith("CROSSBATCH") else "base"
    outcome = tools.train(
        *(KD, "SOLVER.BATCH_SIZE", batch, "DISTILLER.TYPE", method, "SOLVER.TRAINER", trainer),
        *("DISTILLER.TEACHER", "resnet14"),
        *("DISTILLER.TEACHER_CKPT", tools.saved("teacher", "resnet14")),
    )
    assert_row(row, outcome)
    student = torch.load(tools.run / "student_latest", weights_only=True)["model"]
    assert all(torch.isfinite(value).all() for value in student.values())


CONFIGURATIONS = {
    "configuration: wrong type": [["SOLVER.EPOCHS", "ten"]],
    "configuration: negative epochs": [["SOLVER.EPOCHS", "-1"]],
    "configuration: unknown key": [["SOLVER.EPOCH", "3"]],
    "configuration: unknown name": [["DISTILLER.STUDENT", "resnet9"]],
    "configuration: trainer and distiller do not fit": [
        ["DISTILLER.TYPE", "CROSSBATCH_KD", "SOLVER.TRAINER", "base"]
    ],
    "configuration: a name that is no folder": [["EXPERIMENT.NAME", ".."]],
    "configuration: a file of methods that is missing": [["EXPERIMENT.IMPORTS", "mine.py"]],
    "configuration: a method without a teacher for DOT": [["SOLVER.TRAINER", "dot"]],
    "configuration: no weights to replay": [
        ["SOLVER.TRAINER", "replay", "DISTILLER.TYPE", "KD", "REPLAY.FILE", "/nowhere"]
    ],
    "configuration: LR stages beyond the last epoch": [
        ["SOLVER.EPOCHS", "2", "SOLVER.LR_DECAY_STAGES", "[7]"]
    ],
    "configuration: no such device": [["SOLVER.DEVICE", "gpu"]],
}


@pytest.mark.parametrize("row", CONFIGURATIONS)
def test_configuration(row, tools):
    for opts in CONFIGURATIONS[row]:
        assert_row(row, tools.train(VANILLA, *opts))
        assert (tools.run / "latest").exists() is (ROWS[row][1] == 0)


def test_configuration_file(tools, tmp_path):
    (tmp_path / "bad.yaml").write_text("SOLVER: [1, 2\n")
    for name in ("none.yaml", "bad.yaml"):
        outcome = tools.train(tmp_path / name)
        assert_row("configuration: no such file, or no YAML", outcome)
        assert name in outcome[1]


def test_key_given_twice(tools, tmp_path):
    (tmp_path / "twice.yaml").write_text("_BASE_: x.yaml\nSOLVER:\n  LR: 0.1\n  LR: 0.2\n")
    outcome = tools.train(tmp_path / "twice.yaml")
    assert_row("configuration: a key given twice in a file", outcome)


@pytest.mark.parametrize(
    "main, given, wrong",
    [
        (train, ["--cfgg", VANILLA], "--cfgg"),
        (evaluation.main, ["--modell=resnet8", "-c", "file"], "--modell"),
        (evaluation.main, ["--ckp", "file"], ""),  # which argparse completes
    ],
)
def test_a_mistyped_flag_is_named_though_another_is_missing(main, given, wrong, tools):
    code, err = tools.call(main, *given)
    (line,) = [line for line in err.splitlines() if ": error: " in line]
    assert code == 2 and "required" in line
    assert ("unrecognized" in line) is bool(wrong) and wrong in line


def test_every_row_of_the_table_is_tested():
    """A row's name stands in this file, where its input is made."""
    source = Path(__file__).read_text(encoding="utf-8")
    unnamed = {f"checkpoint: {x}" for x in ("missing", "of another architecture")}
    unnamed.add("checkpoint: of another number of classes")  # all three: see test_checkpoint
    assert unnamed <= set(ROWS)
    assert [row for row in ROWS if f'"{row}"' not in source and row not in unnamed] == []
