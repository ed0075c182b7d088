"""Which image files of a folder count, under which label, and what their pixels are."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder

from mdistiller.dataset._decode import read_image
from mdistiller.dataset._files import ImageFiles
from mdistiller.dataset.glyphs.font_packages import folder_packages
from mdistiller.dataset.tiny_imagenet import sort_val
from mdistiller.errors import DataError

HIDDEN_FOLDERS = (
    *(".ipynb_checkpoints", ".git", "__MACOSX", "@eaDir", "lost+found", ".Trash-1000"),
    *("$RECYCLE.BIN", "System Volume Information", "#recycle", "__pycache__", "@Recycle"),
)
HIDDEN_FILES = ("Thumbs.db", "desktop.ini", ".DS_Store", "._0.png", ".hidden.jpg", "ehthumbs.db")


def save(path: Path, content: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (content, 0, 0)).save(path, "PNG")


@pytest.fixture
def root(tmp_path) -> Path:
    """Two classes of two images and one of four, two of them deeper."""
    for label, name in enumerate(("a", "b", "c")):
        for n in range(2):
            save(tmp_path / "set" / name / f"{n}.png", 10 * label + n)
    for name in ("x/0.png", "x.0.PNG", "notes.txt", "0.jpeg"):
        save(tmp_path / "set" / "c" / name)
    return tmp_path / "set"


def test_the_order_is_torchvision_s(root):
    save(root / "c" / "x.d" / "z.png")
    ours, theirs = ImageFiles(root), ImageFolder(root)
    assert ours.samples == theirs.samples
    assert (ours.classes, ours.targets) == (theirs.classes, theirs.targets)
    assert len(ours) == 10


def labelled(files: ImageFiles) -> list[tuple[str, str]]:
    """(path below the root, class) of each image."""
    return [(os.path.relpath(p, files.root), files.classes[label]) for p, label in files.samples]


def test_hidden_and_system_folders_and_files_are_left_out_with_a_word(root):
    before = labelled(ImageFiles(root))
    for name in HIDDEN_FOLDERS:
        save(root / name / "0.png")
        save(root / "a" / name / "1.png")
    for name in HIDDEN_FILES:
        save(root / name)
        save(root / "b" / name)
    with pytest.warns(UserWarning, match="left out: 34 hidden or of the system") as caught:
        files = ImageFiles(root)
    assert labelled(files) == before
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)


def test_images_beside_the_classes_are_left_out_with_a_word(root):
    before = labelled(ImageFiles(root))
    save(root / "stray.png")
    (root / "README.txt").write_text("")
    with pytest.warns(UserWarning, match=r"1 beside the folders of the classes \(stray.png\)"):
        assert labelled(ImageFiles(root)) == before


@pytest.mark.parametrize(
    ("link", "target", "words"),
    [
        ("a/up", ".", "links to a folder above"),
        ("a/up", "../..", "links to a folder above"),
        ("a/up", "..", "links to a folder above"),
        ("c/x/up", "../../..", "links to a folder above"),
        ("a/side", "../b", "counts already"),
        ("a/2.png", "0.png", "counts already"),
        ("b/2.png", "../a/0.png", "counts already"),
    ],
)
def test_links_back_add_nothing(root, link, target, words):
    save(root.parent / "other" / "a" / "9.png")
    before = labelled(ImageFiles(root))
    (root / link).symlink_to(target)
    with pytest.warns(UserWarning, match=words):
        assert labelled(ImageFiles(root)) == before


def test_links_to_what_is_nowhere_else_count_once(root):
    store = root.parent / "store"
    for n in range(3):
        save(store / f"{n}.png", n)
    save(store / "more" / "3.png")
    (store / "more" / "loop").symlink_to(store)
    (root / "d").symlink_to(store / "more")
    (root / "a" / "far.png").symlink_to(store / "0.png")
    (root / "b" / "far.png").symlink_to(store / "0.png")
    (root / "b" / "gone.png").symlink_to(store / "missing.png")  # met when it is read
    with pytest.warns(UserWarning, match=r"above \(d/loop\).*already \(b/far.png\)"):
        found = labelled(ImageFiles(root))
    assert [x for x in found if x[0].startswith("d")] == [("d/3.png", "d")]
    assert [x for x in found if "far" in x[0]] == [("a/far.png", "a")]
    assert ("b/gone.png", "b") in found


def test_pipes_and_devices_are_not_opened(root):
    """Whoever opens a pipe waits for ever."""
    before = labelled(ImageFiles(root))
    os.mkfifo(root / "a" / "pipe.png")
    (root / "b" / "device.png").symlink_to("/dev/zero")
    (root / "b" / "piped.png").symlink_to(root / "a" / "pipe.png")
    with pytest.warns(UserWarning, match=r"left out: 3 pipes or devices \(a/pipe.png, b/dev"):
        assert labelled(ImageFiles(root)) == before


def test_links_around_in_a_circle_end(root):
    for name, other in (("one", "two"), ("two", "one")):
        save(root.parent / name / f"{name}.png")
        (root.parent / name / "next").symlink_to(root.parent / other)
    (root / "a" / "circle").symlink_to(root.parent / "one")
    with pytest.warns(UserWarning, match="left out"):
        found = labelled(ImageFiles(root))
    assert [x for x in found if "circle" in x[0]] == [
        ("a/circle/one.png", "a"),
        ("a/circle/next/two.png", "a"),
    ]


def test_a_root_behind_a_link_is_like_any_other(root):
    (root.parent / "link").symlink_to(root)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert labelled(ImageFiles(root.parent / "link")) == labelled(ImageFiles(root))


@pytest.mark.parametrize("name", ["missing", "empty", "hidden", "linked"])
def test_a_class_without_images_is_named(root, name):
    folder = root / "d"
    if name == "linked":
        folder.symlink_to(root / "a")
    elif name != "missing":
        folder.mkdir()
    if name == "hidden":
        save(folder / ".0.png")
    with pytest.raises(DataError, match="not a folder of images by class") as caught:
        ImageFiles(root if name != "missing" else folder)
    assert "d" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fonts_that_are_hidden_do_not_count(tmp_path):
    for name in ("one/a.ttf", "one/._a.ttf", "one/.git/b.ttf", "__MACOSX/c.ttf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [(p.name, p.files) for p in folder_packages(tmp_path)] == [
        ("one", (tmp_path / "one" / "a.ttf",))
    ]


def test_sorting_tiny_imagenet_minds_no_system_files(tmp_path):
    for name in ("train/n01/0.JPEG", "val/images/0.JPEG", "val/images/.DS_Store"):
        save(tmp_path / name)
    (tmp_path / "val" / "val_annotations.txt").write_text("0.JPEG\tn01\t0\t0\t1\t1\n")
    sort_val(tmp_path)
    assert sorted(p.name for p in (tmp_path / "val").iterdir()) == [
        ".DS_Store",
        "n01",
        "val_annotations.txt",
    ]


# ---- pixels ----------------------------------------------------------------------------------

RAMP = np.array([[0, 1, 128, 129], [256, 257, 32768, 32896], [65279, 65406, 65407, 65535]])
SCALED = np.array([[0, 0, 0, 1], [1, 1, 128, 128], [254, 254, 255, 255]])


def pixels(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize(("name", "order"), [("x.png", "<"), ("x.tif", "<"), ("x.tif", ">")])
def test_grey_of_16_bits_is_scaled(tmp_path, name, order):
    values = RAMP.astype(f"{order}u2")
    mode = "I;16" if order == "<" else "I;16B"
    image = Image.frombytes(mode, values.shape[::-1], values.tobytes())
    image.save(tmp_path / name)
    with Image.open(tmp_path / name) as found:
        assert found.mode in ("I;16", "I;16B", "I")
    expected = np.repeat(SCALED[:, :, None], 3, axis=2)
    assert (pixels(tmp_path / name) == expected).all()


def test_grey_of_16_bits_in_a_pgm_is_scaled(tmp_path):
    head = b"P5 4 3 65535\n"
    (tmp_path / "x.pgm").write_bytes(head + RAMP.astype(">u2").tobytes())
    assert (pixels(tmp_path / "x.pgm")[:, :, 1] == SCALED).all()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 65535), min_size=1, max_size=50))
def test_16_bits_become_the_nearest_of_8(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "row.png"
    Image.fromarray(np.array([values], dtype=np.uint16)).save(path)
    assert (pixels(path)[0, :, 0] == np.rint(np.array(values) / 257)).all()


@pytest.mark.parametrize(("mode", "dtype"), [("I", np.int32), ("F", np.float32)])
def test_grey_without_a_known_white_is_refused(tmp_path, mode, dtype):
    Image.fromarray(RAMP.astype(dtype)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=f"mode {mode}, .*8 or 16 bits") as caught:
        read_image(tmp_path / "x.tif")
    assert "\n" not in str(caught.value)


def test_grey_palette_cmyk_and_transparent_images_become_rgb(tmp_path):
    grey = Image.new("L", (2, 2), 70)
    opaque = Image.new("RGBA", (2, 2), (10, 20, 30, 255))
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    half = Image.new("LA", (2, 2), (0, 128))
    palette = Image.new("RGB", (2, 2), (1, 2, 3)).convert("P")
    see_through = palette.copy()
    see_through.info["transparency"] = see_through.getpixel((0, 0))
    for image, colour in (
        (grey, (70, 70, 70)),
        (grey.convert("1"), None),
        (opaque, (10, 20, 30)),
        (clear, (255, 255, 255)),
        (half, (127, 127, 127)),
        (palette, tuple(palette.convert("RGB").getpixel((0, 0)))),
        (see_through, (255, 255, 255)),
    ):
        image.save(tmp_path / "x.png")
        found = pixels(tmp_path / "x.png")[0, 0]
        assert colour is None or tuple(found) == colour, image.mode
    Image.new("CMYK", (2, 2), (0, 0, 0, 255)).save(tmp_path / "x.jpg")
    assert pixels(tmp_path / "x.jpg").max() < 5


def test_cameras_photographs_are_turned_on_request(tmp_path):
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").size == (4, 2)
    assert read_image(tmp_path / "x.jpg", upright=True).size == (2, 4)


def test_the_cases_on_record_hold_different_pixels():
    """16-bit PNGs of three classes, which were all white."""
    shared = Path(__file__).resolve().parents[2] / "shared/cases/png16/tiny-imagenet-200/train"
    if not shared.is_dir():
        pytest.skip("the cases are not beside this checkout")
    means = torch.tensor([pixels(path).mean() for path in sorted(shared.rglob("*.png"))])
    assert means.max() < 250
    assert len(means.unique()) > 3
