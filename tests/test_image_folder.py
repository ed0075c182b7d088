"""Anybody's images: a folder of digits as PNGs, from the files to an evaluated student."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.transforms.functional import normalize, to_tensor

from mdistiller.commands.eval import main as evaluate
from mdistiller.commands.export import main as export
from mdistiller.commands.train import main as train
from mdistiller.commands.visualize import main as visualize
from mdistiller.dataset import (
    ArrayLoader,
    FolderLoader,
    get_dataset,
    image_folder,
    load_teacher,
)
from mdistiller.engine.cfg import CFG
from mdistiller.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ("one", "three", "zero")
SHORT = (
    *(
        "SOLVER.EPOCHS",
        "1",
        "SOLVER.LR_DECAY_STAGES",
        "[]",
        "SOLVER.WARMUP_EPOCHS",
        "0",
        "SOLVER.BATCH_SIZE",
        "16",
    ),
    *("DATASET.IMAGE_SIZE", "32", "SOLVER.DEVICE", "cpu", "DATASET.NUM_WORKERS", "0"),
)

# Python 3.12 and later warn of every fork; DataLoader forks its workers.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def write_digits(root: Path, train_images: int = 12, val_images: int = 11) -> Path:
    """PNGs of three digits in three modes and sizes."""
    digits = load_digits()
    for name, digit in zip(CLASSES, (1, 3, 0), strict=True):
        images = digits.images[digits.target == digit]
        for n in range(train_images + val_images):
            part = "train" if n < train_images else "val"
            grey = Image.fromarray((images[n] * (255 / 16)).astype(np.uint8))
            picture = grey.resize((40 + n, 40)).convert(("L", "RGB", "RGBA")[n % 3])
            path = root / part / name / f"{n:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    return root


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits") / "my_images")


@pytest.fixture
def root(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "my_images"))


def config(root: Path, *opts):
    cfg = CFG.clone()
    cfg.merge_from_list(
        [
            *("DATASET.TYPE", "image_folder", "DATASET.ROOT", root, "DATASET.IMAGE_SIZE", 32),
            *("DATASET.NUM_WORKERS", 0, "SOLVER.BATCH_SIZE", 16, "SOLVER.DEVICE", "cpu", *opts),
        ]
    )
    return cfg


def all_of(loader) -> tuple[torch.Tensor, ...]:
    return tuple(torch.cat(parts) for parts in zip(*loader, strict=True))


def expected_pixels(path: str) -> Image.Image:
    """The middle square, scaled, as docs/own-data.md says."""
    image = Image.open(path).convert("RGB")
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((32, 32), Image.Resampling.BILINEAR, box=box)


def test_batches_statistics_and_the_file_that_keeps_them(root):
    cfg = config(root, "DATASET.AUGMENT", "none")
    train_loader, val_loader, num_data, num_classes = get_dataset(cfg)
    assert isinstance(train_loader, ArrayLoader)
    assert (num_data, num_classes) == (36, 3)
    image, target, index = all_of(train_loader)
    assert image.shape == (36, 3, 32, 32)
    assert target.tolist() == [int(i) // 12 for i in index]
    # Over all pixels of the training images mean 0 and deviation 1, to the digits that are kept.
    by_channel = image.transpose(0, 1).flatten(1)
    assert by_channel.mean(1).abs().max() < 1e-3
    assert (by_channel.std(1, unbiased=False) - 1).abs().max() < 1e-3
    kept = json.loads((root / "mean_std.json").read_text(encoding="utf-8"))["32"]
    assert kept["images"] == 36
    first = expected_pixels(str(root / "val" / "one" / "12.png"))
    assert torch.allclose(
        all_of(val_loader)[0][0],
        normalize(to_tensor(first), kept["mean"], kept["std"]),
        atol=1e-5,
    )


def test_statistics_stay_when_images_join_and_are_given_if_one_likes(root):
    before = all_of(get_dataset(config(root))[1])[0]
    Image.new("RGB", (9, 9), "white").save(root / "train" / "one" / "new.png")
    with pytest.warns(UserWarning, match="of 36 training images, and now there are 37; delete"):
        after = all_of(get_dataset(config(root))[1])[0]
    assert torch.equal(before, after)
    given = config(root, "DATASET.MEAN", "[0, 0, 0]", "DATASET.STD", "[1.0, 1, 1]")
    pixels = all_of(get_dataset(given)[1])[0]
    assert (pixels.min(), pixels.max()) == (0, 1)
    with pytest.raises(ConfigError, match="go together"):
        get_dataset(config(root, "DATASET.MEAN", "[0.5, 0.5, 0.5]"))
    (root / "mean_std.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="mean_std.json: cannot be read.*delete it"):
        get_dataset(config(root))


def test_large_sets_are_read_by_workers_to_the_same_pixels(root, monkeypatch):
    small = get_dataset(config(root, "DATASET.AUGMENT", "none"))
    (root / "mean_std.json").unlink()
    monkeypatch.setattr(image_folder, "MEMORY_MIB", 0)
    large = get_dataset(config(root, "DATASET.AUGMENT", "none", "DATASET.NUM_WORKERS", 1))
    assert isinstance(large[0], FolderLoader)
    for a, b in zip(small[:2], large[:2], strict=True):
        for left, right in zip(all_of(a), all_of(b), strict=True):
            assert torch.allclose(left, right, atol=1e-5)


def test_augmentations(root, monkeypatch):
    plain = all_of(get_dataset(config(root, "DATASET.AUGMENT", "none"))[0])
    again = all_of(get_dataset(config(root, "DATASET.AUGMENT", "none"))[0])
    assert torch.equal(plain[0], again[0])
    shifted, _, order = all_of(get_dataset(config(root))[0])
    assert torch.equal(order, plain[2])
    assert (shifted != plain[0]).flatten(1).any(1).float().mean() > 0.8
    strong = get_dataset(config(root, "DATASET.AUGMENT", "randaugment"))
    assert isinstance(strong[0], FolderLoader)
    assert all_of(strong[0])[0].shape == shifted.shape
    assert torch.allclose(all_of(strong[1])[0], all_of(get_dataset(config(root))[1])[0], atol=1e-5)


def test_one_folder_with_images_held_out(root, monkeypatch):
    shutil.rmtree(root / "val")
    for place, memory in ((root, 512), (root / "train", 512), (root / "train", 0)):
        monkeypatch.setattr(image_folder, "MEMORY_MIB", memory)
        (place / "mean_std.json").unlink(missing_ok=True)
        train_loader, val_loader, num_data, classes = get_dataset(
            config(place, "DATASET.HOLDOUT", 6, "DATASET.AUGMENT", "none")
        )
        assert (num_data, len(val_loader.dataset), classes) == (30, 6, 3)
        assert all_of(val_loader)[1].bincount().tolist() == [2, 2, 2]
        # The mean and the deviation are of those that are trained on, to the digits kept.
        by_channel = all_of(train_loader)[0].transpose(0, 1).flatten(1)
        assert by_channel.mean(1).abs().max() < 1e-3
        assert (by_channel.std(1, unbiased=False) - 1).abs().max() < 1e-3
    first = json.loads((root / "train" / "mean_std.json").read_text(encoding="utf-8"))
    get_dataset(config(root / "train", "DATASET.HOLDOUT", 3))
    both = json.loads((root / "train" / "mean_std.json").read_text(encoding="utf-8"))
    assert len(both) == 2 and first.items() < both.items()


def test_a_list_of_labels(root):
    for part in ("train", "val"):
        lines = ["file,label"]
        for path in sorted((root / part).rglob("*.png")):
            lines.append(f"{path.relative_to(root / part)},{path.parent.name}")
        (root / part / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    listed = get_dataset(config(root))
    (root / "train" / "labels.csv").unlink()
    (root / "val" / "labels.csv").unlink()
    for a, b in zip(listed[:2], get_dataset(config(root))[:2], strict=True):
        assert all(map(torch.equal, all_of(a), all_of(b)))
    for text, words in (
        ("file,class\nx,y", "columns file and label"),
        ("file,label\nx.png,", "line 2"),
        ("file,label\nx.png,a", "no file x.png"),
    ):
        (root / "train" / "labels.csv").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=words):
            get_dataset(config(root))


def test_sizes_choose_the_networks_and_other_sets_refuse_them():
    fitting = image_folder.dataset_dict.fitting
    assert "resnet8" in fitting("image_folder", 64).networks
    assert "MobileNetV1" in fitting("image_folder", 65).networks
    assert "resnet8" not in fitting("image_folder", 65).networks


def commands() -> list[list[str]]:
    """Those of the README's section, which docs/own-data.md has, too."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Your own images")[2]
    block = section.partition("```sh\n")[2].partition("```")[0]
    assert block in (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]


@pytest.mark.filterwarnings("ignore")
def test_the_readmes_commands_from_the_teacher_to_the_exported_student(root, monkeypatch, capsys):
    timm = pytest.importorskip("timm")
    monkeypatch.chdir(root.parent)
    teacher, student, evaluation = commands()
    for command in (teacher, student):
        assert command[:3] == ["python", "tools/train.py", "--cfg"]
        train(["--cfg", str(ROOT / command[3]), *command[4:], *SHORT])
    results = {
        name: json.loads(Path(f"output/image_folder/{name}/result.json").read_text("utf-8"))
        for name in ("my_teacher", "my_student")
    }
    assert results["my_student"]["teacher_top1"] == results["my_teacher"]["last_top1"]
    capsys.readouterr()
    # Size, mean, std and root are the run's.
    assert evaluation[:2] == ["python", "tools/eval.py"]
    evaluate([*evaluation[2:], "--device", "cpu"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["images"] == 33
    assert found["top1"] == pytest.approx(results["my_student"]["last_top1"])
    name, ckpt = evaluation[3], evaluation[5]
    export(["-m", name, "-c", ckpt, "-d", "image_folder", "--format", "state_dict", "--out", "."])
    plain = timm.create_model(name.removeprefix("timm:"), num_classes=3)
    plain.load_state_dict(torch.load("mobilenetv3_small_050_state_dict.pth", weights_only=True))
    network, image = load_teacher("image_folder", name, 3, ckpt, 32), torch.randn(4, 3, 32, 32)
    assert torch.equal(plain.eval()(image), network(image)[0])
    run = Path(ckpt).parent / "config.yaml"
    visualize(["--cfg", str(run), "--student-ckpt", ckpt, "--out", "pictures"])
    assert Path("pictures/tsne.png").stat().st_size > 1000
