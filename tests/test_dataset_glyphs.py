"""The data set glyphs: finding fonts, building, the tool, loading, training."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mdistiller.commands.train import main as train
from mdistiller.dataset import get_dataset, glyphs
from mdistiller.dataset.glyphs import font_packages
from mdistiller.dataset.glyphs.build import build_glyphs
from mdistiller.dataset.glyphs.font_packages import (
    PACKAGE_LIST,
    FontPackage,
    debian_packages,
    folder_packages,
    read_package_list,
)
from mdistiller.dataset.glyphs.render import render_file
from mdistiller.errors import DataError
from tests.glyph_fonts import changed_font, copy_font, fake_dpkg, font_folder, renamed
from tests.test_dataset_sets import config, message_of
from tools import make_glyphs


@pytest.fixture(scope="module")
def fonts(tmp_path_factory) -> Path:
    return font_folder(tmp_path_factory.mktemp("fonts"))


@pytest.fixture(scope="module")
def built(fonts, tmp_path_factory) -> Path:
    """A DATASET.ROOT with a data set of three fonts."""
    root = tmp_path_factory.mktemp("data")
    build_glyphs(folder_packages(fonts), root / "glyphs")
    return root


@pytest.fixture
def copy(built, tmp_path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(built, tmp_path / "copy")


def manifest_of(root: Path) -> dict:
    return json.loads((root / "glyphs" / "manifest.json").read_text())


# --- building


def test_manifest_describes_the_files(built, fonts):
    manifest = manifest_of(built)
    listed = manifest["train"]["fonts"] + manifest["test"]["fonts"]
    assert sorted(Path(font["file"]).name for font in listed) == [
        *("STIXGeneral.ttf", "cmr10.ttf", "cmtt10.ttf")
    ]
    for font in listed:
        path = Path(font["file"])
        assert font["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert font["package"] == path.relative_to(fonts).parts[0]
        assert font["family"] in ("STIXGeneral", "cmr10", "cmtt10")
    for side in ("train", "test"):
        content = (built / "glyphs" / f"{side}.npy").read_bytes()
        assert manifest[side]["sha256"] == hashlib.sha256(content).hexdigest()
        assert manifest[side]["images"] == 94 * len(manifest[side]["fonts"])
        values = np.load(built / "glyphs" / f"{side}.npy") / 255
        assert manifest[side]["mean"] == pytest.approx(values.mean(), abs=1e-5)
        assert manifest[side]["std"] == pytest.approx(values.std(), abs=1e-5)
    assert manifest["skipped"] == {"the same file as another": 1}
    assert set(manifest["made_with"]) == {"pillow", "freetype", "fonttools"}


def test_images_are_in_the_order_of_the_manifest(built):
    for side, fonts_of_side in ((s, manifest_of(built)[s]["fonts"]) for s in ("train", "test")):
        images = np.load(built / "glyphs" / f"{side}.npy", allow_pickle=False)
        assert len(images) == len(fonts_of_side)
        for drawn, font in zip(images, fonts_of_side, strict=True):
            assert np.array_equal(drawn, render_file(Path(font["file"]))[0].images)


def test_two_builds_are_equal(built, fonts, tmp_path):
    """Whatever the order of the packages and the number of processes."""
    packages = folder_packages(fonts)[::-1]
    build_glyphs(packages, tmp_path / "glyphs", workers=2)
    for name in ("train.npy", "test.npy", "manifest.json"):
        first, second = (root / "glyphs" / name for root in (built, tmp_path))
        assert first.read_bytes() == second.read_bytes()


def test_a_font_is_used_once(tmp_path):
    folder = font_folder(tmp_path / "fonts")
    changed_font("cmtt10", folder / "fonts-zz" / "a.ttf", renamed("another name"))
    copy_font("cmss10", folder / "fonts-zz" / "b.ttf")
    (folder / "fonts-zz" / "c.woff2").write_bytes(b"")
    (folder / "fonts-zz" / "d.pcf.gz").write_bytes(b"")
    (folder / "fonts-zz" / "README").write_bytes(b"")
    manifest = build_glyphs(folder_packages(folder), tmp_path / "glyphs")
    names = [Path(f["file"]).name for s in ("train", "test") for f in manifest[s]["fonts"]]
    assert sorted(names) == ["STIXGeneral.ttf", "b.ttf", "cmr10.ttf", "cmtt10.ttf"]
    assert manifest["skipped"] == {
        "bitmap font": 1,
        "the same file as another": 1,
        "the same images as another": 1,
        "web font": 1,
    }


def test_too_few_fonts(fonts, tmp_path):
    packages = [p for p in folder_packages(fonts) if p.name == "fonts-roman"]
    for few, count in ((packages, 1), ([], 0)):
        with pytest.raises(DataError, match=f"{count} usable fonts.*more packages"):
            build_glyphs(few, tmp_path / "glyphs")
    assert list(tmp_path.iterdir()) == []


def test_an_older_set_is_replaced_and_nothing_else(fonts, copy, tmp_path):
    (copy / "glyphs" / "train.npy").write_bytes(b"old")
    build_glyphs(folder_packages(fonts), copy / "glyphs")
    assert len(get_dataset(config("glyphs", copy))[0].dataset) % 94 == 0
    (copy / "glyphs" / "mine.txt").write_text("mine")
    for path in (copy / "glyphs", copy / "glyphs" / "mine.txt"):
        with pytest.raises(DataError, match="exists and is no data set of glyphs"):
            build_glyphs(folder_packages(fonts), path)
    assert (copy / "glyphs" / "mine.txt").read_text() == "mine"
    with pytest.raises(DataError, match="cannot be written"):
        build_glyphs(folder_packages(fonts), copy / "glyphs" / "mine.txt" / "glyphs")


# --- packages


def test_shipped_list_of_packages():
    names = read_package_list(PACKAGE_LIST)
    assert len(names) == 212
    assert {"fonts-dejavu-core", "fonts-lmodern", "fonts-aenigma"} <= set(names)


def test_list_of_packages(tmp_path):
    path = tmp_path / "list"
    path.write_text("# comment\nfonts-b\n\nfonts-a # why\nfonts-b\n")
    assert read_package_list(path) == ["fonts-a", "fonts-b"]
    path.write_text("# nothing\n")
    with pytest.raises(DataError, match="names no package"):
        read_package_list(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_package_list(tmp_path / "none")


@pytest.fixture
def dpkg(tmp_path, monkeypatch, fonts) -> Path:
    monkeypatch.setenv("PATH", str(fake_dpkg(tmp_path, fonts)))
    return tmp_path


def test_packages_of_debian(dpkg, fonts):
    packages, missing = debian_packages(["fonts-roman", "fonts-stix", "fonts-typewriter", "none"])
    assert [(p.name, p.version) for p in packages] == [
        (name, "1:2.3-4") for name in ("fonts-roman", "fonts-stix", "fonts-typewriter")
    ]
    assert fonts / "fonts-roman" / "cmr10.ttf" in packages[0].files
    assert missing == ["none"]
    assert (dpkg / "asked").read_text().endswith("-- fonts-roman fonts-stix fonts-typewriter none")


def test_package_that_was_removed_is_missing(dpkg):
    packages, missing = debian_packages(["fonts-gone"])
    assert "fonts-gone" not in [package.name for package in packages]
    assert missing == ["fonts-gone"]


def test_system_without_dpkg(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="no dpkg-query.*--font-dir"):
        debian_packages(["fonts-roman"])


def test_folders_as_packages(fonts, tmp_path):
    found = folder_packages(fonts)
    assert [package.name for package in found] == ["fonts-roman", "fonts-stix", "fonts-typewriter"]
    assert isinstance(found[0], FontPackage)
    assert [path.name for path in found[2].files] == ["cmtt10.ttf", "twice.ttf"]
    for root in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError, match="no folders in it"):
            folder_packages(root)


# --- the tool


def tool(capsys, monkeypatch, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["make_glyphs.py", *map(str, arguments)])
    status = 0
    try:
        make_glyphs.main()
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_tool_refuses_missing_packages_unless_told(dpkg, tmp_path, capsys, monkeypatch):
    names = tmp_path / "names"
    names.write_text("fonts-roman\nfonts-stix\nfonts-typewriter\nnone-a\nnone-b\n")
    options = ("--packages", names, "--out", tmp_path / "glyphs", "--workers", 1)
    status, _, err = tool(capsys, monkeypatch, *options)
    assert status == 1
    assert err == (
        "error: 2 of 5 packages are not installed; run apt-get install --no-install-recommends "
        "none-a none-b, or do without them: --allow-missing\n"
    )
    assert not (tmp_path / "glyphs").exists()
    status, out, err = tool(capsys, monkeypatch, *options, "--allow-missing")
    assert (status, err) == (0, "")
    manifest = manifest_of(tmp_path)
    assert manifest["missing_packages"] == ["none-a", "none-b"]
    assert {f["version"] for f in manifest["train"]["fonts"]} == {"1:2.3-4"}
    assert f"SHA-256 {manifest['test']['sha256']}" in out
    assert "left out: 1 files (the same file as another)" in out


def test_tool_with_folders(fonts, built, tmp_path, capsys, monkeypatch):
    options = ("--font-dir", fonts, "--out", tmp_path / "glyphs")
    assert tool(capsys, monkeypatch, *options, "--workers", 0)[0] == 2
    status, out, _ = tool(capsys, monkeypatch, *options, "--workers", 1)
    assert status == 0
    assert out.endswith(f"ready in {tmp_path / 'glyphs'}\n")
    assert manifest_of(tmp_path) == manifest_of(built)


# --- loading and training


def test_loaders(built):
    train_loader, val_loader, num_data, num_classes = get_dataset(config("glyphs", built))
    assert (num_data, num_classes) == (188, 94)
    assert (len(train_loader.dataset), len(val_loader.dataset)) == (188, 94)
    assert (train_loader.dataset.padding, val_loader.dataset.padding) == (4, 0)
    for loader, side in ((train_loader, "train"), (val_loader, "test")):
        images = np.load(built / "glyphs" / f"{side}.npy").reshape(-1, 32, 32)
        assert np.array_equal(loader.dataset.images[:, 1], images)
        assert loader.dataset.targets.tolist() == list(range(94)) * (len(images) // 94)
    image, target, index = next(iter(train_loader))
    assert image.shape == (64, 3, 32, 32)
    assert torch.equal(image[:, 0], image[:, 2])
    assert torch.equal(target, index % 94)


def test_training_images_are_shifted_and_never_mirrored(built):
    """Each is one of the 81 crops of its own image; L and J are mirror images of one another."""
    train_loader = get_dataset(config("glyphs", built))[0]
    dataset = train_loader.dataset
    windows = dataset.padded[:, 0].unfold(1, 32, 1).unfold(2, 32, 1).flatten(1, 2)
    shifted = 0
    for image, _, index in train_loader:
        mean, std = (value[0] for value in (glyphs.RECIPE.mean, glyphs.RECIPE.std))
        pixels = ((image[:, 0] * std + mean) * 255).round().to(torch.uint8)
        same = (windows[index] == pixels[:, None]).flatten(2).all(2)
        assert same.any(1).all()
        shifted += int((pixels != dataset.images[index, 0]).flatten(1).any(1).sum())
    assert shifted > 150
    assert not glyphs.RECIPE.flip


def test_missing_set(tmp_path):
    message = message_of(config("glyphs", tmp_path))
    assert f"glyphs is not in DATASET.ROOT ({tmp_path}/glyphs)" in message
    assert f"tools/make_glyphs.py --out {tmp_path}/glyphs" in message


@pytest.mark.parametrize("position", [30, 5000, -1], ids=["header", "image", "last"])
@pytest.mark.parametrize("side", ["train", "test"])
def test_a_flipped_bit(copy, side, position):
    path = copy / "glyphs" / f"{side}.npy"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    message = message_of(config("glyphs", copy))
    assert message.startswith(f"{path}: corrupt, its SHA-256")
    assert "make_glyphs.py --out" in message


def test_damaged_files_of_the_set(copy):
    path = copy / "glyphs" / "test.npy"
    path.unlink()
    assert "test.npy: cannot be read, No such file" in message_of(config("glyphs", copy))
    manifest = copy / "glyphs" / "manifest.json"
    for text, what in (
        ("{", "no JSON"),
        ("[]", "this version's format"),
        ('{"format": 0}', "this version's format"),
        ('{"format": 1}', "this version's format"),
    ):
        manifest.write_text(text)
        assert what in message_of(config("glyphs", copy))


def test_a_training(built, tmp_path, capsys):
    arguments = [
        *("--cfg", "configs/glyphs/vanilla.yaml", "DATASET.ROOT", str(built)),
        *("LOG.PREFIX", str(tmp_path), "SOLVER.EPOCHS", "2", "SOLVER.LR_DECAY_STAGES", "[1]"),
        *("SOLVER.DEVICE", "cpu", "DATASET.SUBSET", "128", "DATASET.HOLDOUT", "47"),
    ]
    train(arguments)
    (folder,) = (tmp_path / "glyphs").glob("vanilla*")
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert json.loads((folder / "result.json").read_text())["epochs"] == 2
    weight = torch.load(folder / "student_latest", weights_only=True)["model"]["fc.weight"]
    assert len(weight) == 94
    assert all(torch.isfinite(weight).flatten())
    capsys.readouterr()


def test_font_libraries_are_requirements():
    """Pillow and fontTools are requirements of their own, not by way of another package."""
    lines = (Path(font_packages.__file__).parents[3] / "requirements.txt").read_text()
    assert "pillow>=" in lines and "fonttools>=" in lines
