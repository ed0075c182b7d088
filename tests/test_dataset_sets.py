"""The data sets in memory, read from small copies of their files."""

from __future__ import annotations

import functools
import gzip
import hashlib
import pickle
import struct
import tarfile
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torchvision.datasets import CIFAR100, FashionMNIST

from mdistiller import download
from mdistiller.dataset import (
    ArrayLoader,
    cifar100,
    dataset_dict,
    digits,
    fashion_mnist,
    get_dataset,
)
from mdistiller.dataset._idx import read_idx
from mdistiller.engine.cfg import CFG
from mdistiller.errors import DataError, UnknownNameError
from tests.golden_rules import golden_json
from tests.test_download import serve

GOLDEN = golden_json("configs")["dataset"]


def config(kind: str, root: Path | str = ".", **distiller: str):
    cfg = CFG.clone()
    cfg.DATASET.TYPE, cfg.DATASET.ROOT = kind, str(root)
    cfg.SOLVER.DEVICE = "cpu"
    cfg.DISTILLER.merge_from_other_cfg(type(cfg)(distiller))
    return cfg


def message_of(cfg) -> str:
    with pytest.raises(DataError) as caught:
        get_dataset(cfg)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch) -> None:
    """Addresses at which nothing answers, and no Debian package."""
    monkeypatch.setattr(download, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(CIFAR100, "url", "http://127.0.0.1:9/cifar-100-python.tar.gz")
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", Path("/nonexistent"))


# --- the names


def test_names_of_the_data_sets():
    in_memory = {"cifar100", "fashion_mnist", "digits", "glyphs"}
    assert set(dataset_dict) == {*in_memory, "tiny_imagenet", "imagenet", "image_folder"}


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(UnknownNameError, match="did you mean 'cifar100'.*valid names:.*digits"):
        get_dataset(config("CIFAR100"))


def test_a_new_data_set_can_be_registered():
    made = object()
    dataset_dict.register("mine")(lambda cfg: made)
    try:
        assert get_dataset(config("mine")) is made
        with pytest.raises(ValueError, match="registered already"):
            dataset_dict.register("mine")(lambda cfg: None)
    finally:
        del dataset_dict["mine"]


# --- digits


def test_digits_need_no_files():
    train, val, num_data, num_classes = get_dataset(config("digits", "/nonexistent"))
    assert (num_data, num_classes) == (1347, 10)
    assert (len(train.dataset), len(val.dataset)) == (1347, 450)
    assert (train.batch_size, val.batch_size) == (64, 64)
    image, target, index = next(iter(train))
    assert image.shape == (64, 3, 32, 32)
    assert torch.equal(image[:, 0], image[:, 1])
    assert torch.equal(target, train.dataset.targets[index])
    assert len(next(iter(val))) == 2


def test_digits_split_is_stratified_and_fixed():
    cfg = config("digits")
    first = get_dataset(cfg)
    cfg.EXPERIMENT.SEED = 7
    second = get_dataset(cfg)
    for a, b in zip(first[:2], second[:2], strict=True):
        assert torch.equal(a.dataset.images, b.dataset.images)
        share = torch.bincount(a.dataset.targets).double() / len(a.dataset)
        assert (share - 0.1).abs().max() < 0.005
    assert not torch.equal(next(iter(first[0]))[2], next(iter(second[0]))[2])
    assert first[0].dataset.targets[:5].tolist() == second[0].dataset.targets[:5].tolist()


def test_digits_are_scikit_learns_and_so_is_the_split(monkeypatch):
    raw = load_digits()
    wanted = train_test_split(
        raw.images, raw.target, test_size=digits.VAL_SIZE, stratify=raw.target, random_state=0
    )
    file = find_spec("sklearn")
    # With its file in its place, then in a release that has it elsewhere.
    for spec in (file, SimpleNamespace(origin="/elsewhere/sklearn/__init__.py")):
        monkeypatch.setattr(digits, "find_spec", lambda name, spec=spec: spec)
        (images, labels), (val_images, val_labels) = digits.read_digits()
        found = (images, val_images, labels, val_labels)
        assert all(map(np.array_equal, found, wanted))
        assert labels.dtype == np.int64


def test_digits_splits_are_disjoint_and_complete():
    train, val, _, _ = get_dataset(config("digits"))
    corner = [loader.dataset.images[:, 0, 2::4, 2::4] for loader in (train, val)]
    assert len(torch.cat(corner)) == len(load_digits().images) == 1797
    for a in corner[1][:50]:
        assert not (corner[0] == a).flatten(1).all(1).any()


def test_digits_look_like_the_originals():
    raw = load_digits()
    _, val, _, _ = get_dataset(config("digits"))
    small = torch.nn.functional.avg_pool2d(val.dataset.images[:, 0].float(), 4) * 16 / 255
    originals = torch.from_numpy(raw.images).float()
    distance = torch.cdist(small.flatten(1), originals.flatten(1))
    nearest = distance.argmin(dim=1)
    assert (torch.from_numpy(raw.target)[nearest] == val.dataset.targets).float().mean() > 0.97


def test_digits_are_normalised_and_not_mirrored():
    train, _, _, _ = get_dataset(config("digits"))
    plain = train.dataset.images.double() / 255
    assert plain.mean().item() == pytest.approx(digits.RECIPE.mean[0], abs=1e-4)
    assert plain.std(correction=0).item() == pytest.approx(digits.RECIPE.std[0], abs=1e-4)
    assert not digits.RECIPE.flip
    assert train.dataset.padding == 4


def test_digits_without_scikit_learn_say_so(monkeypatch):
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    assert "pip install scikit-learn" in message_of(config("digits"))


@pytest.mark.parametrize("distiller", ["CRD", "CROSSBATCH_CRD"])
def test_contrastive_distillers_get_contrastive_indices(distiller):
    cfg = config("digits", TYPE=distiller)
    cfg.CRD.NCE.K = 20
    train, val, _, _ = get_dataset(cfg)
    image, target, index, contrast = next(iter(train))
    assert contrast.shape == (64, 21)
    assert torch.equal(contrast[:, 0], index)
    assert (train.dataset.targets[contrast[:, 1:]] != target[:, None]).all()
    assert len(next(iter(train.stream("auxiliary")))) == 3
    assert len(next(iter(val))) == 2


def test_loading_does_not_touch_the_global_generators():
    before = torch.get_rng_state()
    numpy_before = np.random.get_state()[1].copy()
    get_dataset(config("digits"))
    assert torch.equal(before, torch.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()


# --- CIFAR-100


class OldDtype:
    """Pickles so that numpy warns as 2.4.0 does of the original files (others only by keyword)."""

    def __reduce__(self):
        return functools.partial(np.dtype, align=0, copy=True), ("u1",)


class OldArray:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __reduce__(self):
        rebuild, arguments, state = self.array.__reduce__()
        version, shape, _, fortran, data = state
        return rebuild, arguments, (version, shape, OldDtype(), fortran, data)


class Cifar:
    """Writes a small CIFAR-100 and tells torchvision its checksums."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.monkeypatch = root, monkeypatch
        rng = np.random.RandomState(0)
        self.images = {n: rng.randint(0, 256, (k, 3072)).astype(np.uint8) for n, k in SIZES.items()}
        self.labels = {n: (np.arange(k) * 7 % 100).tolist() for n, k in SIZES.items()}

    def write(self) -> Path:
        folder = self.root / "source" / "cifar-100-python"
        folder.mkdir(parents=True)
        for name in SIZES:
            entry = {"data": OldArray(self.images[name]), "fine_labels": self.labels[name]}
            (folder / name).write_bytes(pickle.dumps(entry, protocol=2))
        names = [f"class {i}" for i in range(100)]
        (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, protocol=2))
        archive = self.root / "cifar-100-python.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(folder, "cifar-100-python")
        self._tell_checksums(folder, archive)
        return archive

    def _tell_checksums(self, folder: Path, archive: Path) -> None:
        def md5(path: Path) -> str:
            return hashlib.md5(path.read_bytes()).hexdigest()

        patch = self.monkeypatch.setattr
        patch(CIFAR100, "tgz_md5", md5(archive))
        patch(CIFAR100, "train_list", [["train", md5(folder / "train")]])
        patch(CIFAR100, "test_list", [["test", md5(folder / "test")]])
        patch(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5(folder / "meta")})


SIZES = {"train": 130, "test": 20}


@pytest.fixture
def cifar(tmp_path, monkeypatch) -> Cifar:
    return Cifar(tmp_path, monkeypatch)


def test_cifar100_is_unpacked_and_read(cifar):
    cifar.write()
    for _ in range(2):  # from the archive, then from the unpacked files
        train, val, num_data, num_classes = get_dataset(config("cifar100", cifar.root))
        assert (num_data, num_classes) == (130, GOLDEN["cifar100"]["num_classes"])
        for loader, name in ((train, "train"), (val, "test")):
            assert isinstance(loader, ArrayLoader)
            expected = cifar.images[name].reshape(-1, 3, 32, 32)
            assert (loader.dataset.images.numpy() == expected).all()
            assert loader.dataset.targets.tolist() == cifar.labels[name]
        (cifar.root / "cifar-100-python.tar.gz").unlink(missing_ok=True)


def test_cifar100_is_prepared_as_upstream(cifar):
    cifar.write()
    train, val, _, _ = get_dataset(config("cifar100", cifar.root))
    recipe, text = cifar100.RECIPE, GOLDEN["cifar100"]["train_transform"]
    assert f"Normalize(mean={recipe.mean}, std={recipe.std})" in text
    assert f"padding={train.dataset.padding})" in text
    assert recipe.flip is ("RandomHorizontalFlip(p=0.5)" in text)
    assert "RandomCrop" not in GOLDEN["cifar100"]["test_transform"]
    assert val.dataset.padding == 0


def test_cifar100_batches_as_configured(cifar):
    cifar.write()
    cfg = config("cifar100", cifar.root)
    cfg.SOLVER.BATCH_SIZE, cfg.DATASET.TEST.BATCH_SIZE = 50, 7
    train, val, _, _ = get_dataset(cfg)
    assert [len(b[0]) for b in train] == [50, 50, 30]
    assert [len(b[0]) for b in val] == [7, 7, 6]


def test_cifar100_that_is_missing_names_what_to_do(tmp_path):
    message = message_of(config("cifar100", tmp_path / "data"))
    assert "DATASET.ROOT" in message
    assert str(tmp_path / "data") in message
    assert "cifar-100-python.tar.gz" in message


def test_cifar100_is_downloaded_where_missing(cifar, monkeypatch):
    content = cifar.write().read_bytes()
    target = cifar.root / "new" / "data"
    with serve({"cifar-100-python.tar.gz": content}) as server:
        monkeypatch.setattr(CIFAR100, "url", server.url("cifar-100-python.tar.gz"))
        assert get_dataset(config("cifar100", target))[2] == 130
        assert len(server.asked) == 1


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_cifar100_archive_with_a_flipped_byte_is_corrupt(cifar):
    archive = cifar.write()
    flip_a_byte(archive)
    message = message_of(config("cifar100", cifar.root))
    assert "corrupt" in message
    assert str(archive) in message


def test_cifar100_file_with_a_flipped_byte_is_unpacked_again(cifar):
    archive = cifar.write()
    get_dataset(config("cifar100", cifar.root))
    flip_a_byte(cifar.root / "cifar-100-python" / "train")
    train = get_dataset(config("cifar100", cifar.root))[0]
    assert (train.dataset.images.numpy().reshape(-1, 3072) == cifar.images["train"]).all()
    flip_a_byte(cifar.root / "cifar-100-python" / "train")
    archive.unlink()
    assert "DATASET.ROOT" in message_of(config("cifar100", cifar.root))


def test_cifar100_archive_of_wrong_files_is_corrupt(cifar, monkeypatch):
    cifar.write()
    monkeypatch.setattr(CIFAR100, "train_list", [["train", "0" * 32]])
    assert "corrupt" in message_of(config("cifar100", cifar.root))


@pytest.mark.parametrize("label", [100, -1])
def test_cifar100_label_out_of_range_is_named(cifar, label):
    cifar.labels["train"][5] = label
    cifar.write()
    message = message_of(config("cifar100", cifar.root))
    assert f"label {label} of image 5" in message
    assert "0..99" in message


# --- Fashion-MNIST


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def fashion_files(n: int = 30) -> dict[str, bytes]:
    rng = np.random.RandomState(1)
    files = {}
    for part, count in (("train", n), ("t10k", 10)):
        images = rng.randint(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        files[f"{part}-images-idx3-ubyte"] = idx(images)
        files[f"{part}-labels-idx1-ubyte"] = idx(labels)
    return files


def write_files(folder: Path, files: dict[str, bytes], zipped: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content, 1) if zipped else content)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", [".", "fashion_mnist", "FashionMNIST/raw"])
def test_fashion_mnist_is_found(tmp_path, place, zipped):
    files = fashion_files()
    write_files(tmp_path / place, files, zipped)
    train, val, num_data, num_classes = get_dataset(config("fashion_mnist", tmp_path))
    assert (num_data, num_classes, len(val.dataset)) == (30, 10, 10)
    raw = np.frombuffer(files["train-images-idx3-ubyte"], np.uint8, offset=16).reshape(30, 28, 28)
    images = train.dataset.images
    assert images.shape == (30, 3, 32, 32)
    for channel in range(3):
        assert (images[:, channel, 2:30, 2:30].numpy() == raw).all()
    assert images.double().sum() == 3 * raw.astype(float).sum()  # so the border is black
    assert train.dataset.targets.tolist() == [i % 10 for i in range(30)]
    assert next(iter(train))[0].shape == (30, 3, 32, 32)
    assert train.dataset.padding == 4


def test_fashion_mnist_of_the_root_is_preferred_to_debian(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    write_files(tmp_path / "debian", fashion_files(20))
    assert get_dataset(config("fashion_mnist", tmp_path / "data"))[2] == 20
    write_files(tmp_path / "data", fashion_files(30))
    (tmp_path / "data" / "t10k-labels-idx1-ubyte.gz").rename(tmp_path / "elsewhere")
    assert get_dataset(config("fashion_mnist", tmp_path / "data"))[2] == 20  # root is incomplete
    (tmp_path / "elsewhere").rename(tmp_path / "data" / "t10k-labels-idx1-ubyte.gz")
    assert get_dataset(config("fashion_mnist", tmp_path / "data"))[2] == 30


def test_fashion_mnist_that_is_missing_names_what_to_do(tmp_path):
    message = message_of(config("fashion_mnist", tmp_path))
    assert "DATASET.ROOT" in message
    assert str(tmp_path) in message


def test_fashion_mnist_is_downloaded_where_missing(tmp_path, monkeypatch):
    files = {f"{n}.gz": gzip.compress(c) for n, c in fashion_files().items()}
    sums = [(n, hashlib.md5(c).hexdigest()) for n, c in files.items()]
    monkeypatch.setattr(FashionMNIST, "resources", sums)
    with serve(files) as server:
        monkeypatch.setattr(FashionMNIST, "mirrors", [server.url("")])
        assert get_dataset(config("fashion_mnist", tmp_path))[2] == 30
    raw = tmp_path / "FashionMNIST" / "raw"
    assert {p.name for p in raw.iterdir()} == set(files)
    assert get_dataset(config("fashion_mnist", tmp_path))[2] == 30


def test_fashion_mnist_download_with_a_wrong_checksum_is_corrupt(tmp_path, monkeypatch):
    files = {f"{n}.gz": gzip.compress(c) for n, c in fashion_files().items()}
    with serve(files) as server:
        monkeypatch.setattr(FashionMNIST, "mirrors", [server.url("")])
        assert "corrupt" in message_of(config("fashion_mnist", tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("train-images-idx3-ubyte", idx(np.zeros((30, 27, 28), np.uint8)), "27"),
        ("train-labels-idx1-ubyte", idx(np.zeros(29, np.uint8)), "29 labels for 30 images"),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(10, np.uint8))[:-1], "corrupt"),
        ("t10k-images-idx3-ubyte", b"\0\0\x08\x03\0\0", "truncated"),
    ],
)
def test_fashion_mnist_names_the_file_that_is_wrong(tmp_path, name, content, reason):
    write_files(tmp_path, {**fashion_files(), name: content}, zipped=False)
    message = message_of(config("fashion_mnist", tmp_path))
    assert str(tmp_path / name) in message
    assert reason in message


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(),
    reason="needs Debian's package dataset-fashion-mnist",
)
def test_fashion_mnist_constants_are_those_of_the_padded_training_set():
    path = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")
    images = read_idx(path, ndim=3) / 255.0
    pixels = len(images) * 32 * 32
    mean = images.sum() / pixels
    std = ((images**2).sum() / pixels - mean**2) ** 0.5
    recipe = fashion_mnist.RECIPE
    assert recipe.mean == pytest.approx([mean] * 3, abs=5e-5)
    assert recipe.std == pytest.approx([std] * 3, abs=5e-5)


# --- the IDX format


def test_idx_round_trip(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "plain").write_bytes(idx(array))
    (tmp_path / "zipped").write_bytes(gzip.compress(idx(array)))
    for name in ("plain", "zipped"):
        assert (read_idx(tmp_path / name, ndim=3) == array).all()


GOOD = idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated"),
        (GOOD[:15], "truncated"),
        (GOOD[:-1], "2 x 3 x 4 bytes.*24, but 23"),
        (GOOD + b"x", "but 25"),
        (b"\0\0\x0d" + GOOD[3:], "00000d03"),
        (idx(np.zeros(4, np.uint8)), "3 dimensions"),
        (idx(np.zeros(99, np.uint8)), "3 dimensions"),
        (struct.pack(">4B3I", 0, 0, 8, 3, *[2**32 - 1] * 3), "corrupt"),
        (gzip.compress(GOOD)[:-9], "gzip"),
        (gzip.compress(GOOD)[:12] + b"\xff" * 30, "gzip"),
        (b"\x1f\x8b\x08" + b"x" * 40, "gzip"),
    ],
    # Without the content: gzip writes the time into it, and test processes must agree on names.
    ids=[
        *("empty", "header", "short", "long", "type", "one dimension", "one longer dimension"),
        *("huge", "gzip short", "gzip damaged", "no gzip"),
    ],
)
def test_idx_refuses_what_is_none(tmp_path, content, reason):
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        read_idx(path, ndim=3)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_idx_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(DataError, match="images: cannot be read"):
        read_idx(tmp_path / "images", ndim=3)
