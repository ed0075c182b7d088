"""Drawing the characters of fonts, and splitting fonts into training and test."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFont

from mdistiller.dataset.glyphs.render import CHARACTERS, render_file
from mdistiller.dataset.glyphs.split import split_packages, twins
from tests.glyph_fonts import FONTS, changed_font, collection, copy_font, remapped


def reason_of(path: Path) -> str:
    (face,) = render_file(path)
    assert face.images is None
    return face.reason


# --- drawing


def test_the_classes_are_the_printable_characters():
    assert "".join(CHARACTERS) == "".join(chr(c) for c in range(33, 127))
    assert (CHARACTERS[0], CHARACTERS[ord("A") - 33], CHARACTERS[-1]) == ("!", "A", "~")


@pytest.mark.parametrize("name", ["DejaVuSans", "STIXGeneral", "cmr10"])
def test_characters_fill_24_pixels_in_the_middle(name):
    (face,) = render_file(FONTS / f"{name}.ttf")
    assert face.images.shape == (94, 32, 32)
    assert face.images.dtype == np.uint8
    for image in face.images:
        rows, columns = (np.flatnonzero(image.any(axis=axis)) for axis in (1, 0))
        sides = [int(line[-1] - line[0]) + 1 for line in (rows, columns)]
        assert max(sides) == 24
        for line, side in zip((rows, columns), sides, strict=True):
            assert line[0] == (32 - side) // 2
        assert image.max() > 100


def test_images_show_the_characters():
    """Letters that are told apart by where their ink is."""
    images = {
        c: image.astype(float)
        for c, image in zip(
            CHARACTERS, render_file(FONTS / "DejaVuSans.ttf")[0].images, strict=True
        )
    }
    assert images["L"][16:].sum() > 1.3 * images["L"][:16].sum()
    assert images["T"][:16].sum() > 1.3 * images["T"][16:].sum()
    assert images["E"][:, :16].sum() > 1.3 * images["E"][:, 16:].sum()
    assert images["J"][:, 16:].sum() > 1.3 * images["J"][:, :16].sum()
    assert images["|"].any(axis=0).sum() < 5 < 20 < images["|"].any(axis=1).sum()
    assert images["_"].any(axis=1).sum() < 5 < 20 < images["_"].any(axis=0).sum()
    assert images["."][4:28, 4:28].mean() > 200


def test_a_character_is_its_own_reduced_drawing():
    """Against Pillow's own drawing of the outline, enlarged and averaged in another way."""
    (face,) = render_file(FONTS / "DejaVuSans.ttf")
    font = ImageFont.truetype(str(FONTS / "DejaVuSans.ttf"), 1024, layout_engine=0)
    for character in "gQ%@&":
        mask, _ = font.getmask2(character, mode="L")
        large = np.asarray(mask, dtype=float).reshape(mask.size[::-1])
        ink = large[np.ix_(large.any(axis=1), large.any(axis=0))]
        image = face.images[CHARACTERS.index(character)]
        assert image.sum() == pytest.approx(ink.sum() * (24 / max(ink.shape)) ** 2, rel=0.03)


def test_equal_files_give_equal_images(tmp_path):
    copied = copy_font("cmr10", tmp_path / "other.otf")
    one, other = render_file(FONTS / "cmr10.ttf")[0], render_file(copied)[0]
    assert one.sha256 == other.sha256 == hashlib.sha256(copied.read_bytes()).hexdigest()
    assert np.array_equal(one.images, other.images)


def test_a_collection_has_several_fonts(tmp_path):
    faces = render_file(collection(tmp_path / "both.ttc", "cmr10", "cmtt10"))
    assert [face.index for face in faces] == [0, 1]
    assert [face.family for face in faces] == ["cmr10", "cmtt10"]
    for face, name in zip(faces, ("cmr10", "cmtt10"), strict=True):
        assert np.array_equal(face.images, render_file(FONTS / f"{name}.ttf")[0].images)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (remapped({"q": None}), "lacks characters"),
        (remapped({"q": " "}), "a character is blank"),
        (remapped(dict.fromkeys("abcd", "e")), "placeholders instead of characters"),
        (lambda font: font["cmap"].tables.clear(), "no Unicode character map"),
        (lambda font: font.__delitem__("glyf"), "bitmap font"),
    ],
)
def test_unusable_fonts(change, reason, tmp_path):
    assert reason_of(changed_font("STIXGeneral", tmp_path / "bad.ttf", change)) == reason


def test_glyph_for_missing_characters_does_not_pass(tmp_path):
    def change(font) -> None:
        for table in font["cmap"].tables:
            table.cmap[ord("q")] = font.getGlyphOrder()[0]

    assert reason_of(changed_font("cmr10", tmp_path / "bad.ttf", change)) == "lacks characters"


def test_capitals_for_small_letters_pass(tmp_path):
    small = "abcdefghijklmnopqrstuvwxyz"
    path = changed_font("cmr10", tmp_path / "caps.ttf", remapped({c: c.upper() for c in small}))
    (face,) = render_file(path)
    assert np.array_equal(face.images[ord("a") - 33], face.images[ord("A") - 33])


def test_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "none.ttf", tmp_path):
        assert reason_of(path) == "cannot be read"


def test_damaged_files(tmp_path):
    whole = (FONTS / "cmr10.ttf").read_bytes()
    for content in (b"", b"text", whole[:100], b"ttcf" + whole[4:]):
        path = tmp_path / "bad.ttf"
        path.write_bytes(content)
        assert reason_of(path) == "damaged"
    path.write_bytes(whole[: len(whole) // 2])
    assert reason_of(path) in ("damaged", "cannot be drawn")


# --- splitting


def random_fonts(number: int) -> np.ndarray:
    """No two of them near: what differs is the mean of blocks."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (number, 5, 2, 2), dtype=np.uint8)
    return blocks.repeat(4, axis=2).repeat(4, axis=3)


def test_no_package_is_on_both_sides_and_a_tenth_is_for_the_test():
    packages = [f"p{i // 3}" for i in range(300)]
    sides = split_packages(packages, [""] * 300, random_fonts(300))
    assert set(sides) == set(packages)
    assert sum(sides[name] == "test" for name in packages) == 30
    assert sides == split_packages(packages, [""] * 300, random_fonts(300))


def test_a_large_package_is_for_training():
    packages = ["large"] * 20 + [f"p{i}" for i in range(180)]
    for shift in range(10):  # wherever the seed puts it
        names = [f"{name}-{shift}" for name in packages]
        sides = split_packages(names, [""] * 200, random_fonts(200))
        assert sides[f"large-{shift}"] == "train"
        assert sum(side == "test" for side in sides.values()) == 20


@pytest.mark.parametrize("tie", ["family", "look"])
def test_packages_with_one_design_stay_together(tie):
    """p0 is tied to p1, p1 to p2 and so on up to p9, with another font of each."""
    images, families = random_fonts(220), [f"family {i}" for i in range(220)]
    packages = [f"p{i % 110}" for i in range(220)]
    for i in range(9):
        if tie == "family":
            families[i + 1] = families[i + 110].upper()
        else:
            images[i + 1] = images[i + 110]
            images[i + 1, 0, 0, 0] ^= 1
    sides = split_packages(packages, families, images)
    assert len({sides[f"p{i}"] for i in range(10)}) == 1
    assert sum(sides[name] == "test" for name in packages) > 10


def test_twins_are_pairs_below_the_distance():
    images = np.zeros((4, 2, 8, 8), dtype=np.uint8)
    images[1] += 12  # 12 / 255 is below 0.05, 13 / 255 above
    images[2] += 13
    images[3] += 200
    assert twins(images) == [(0, 1), (1, 2)]


def test_one_group_cannot_be_split():
    assert split_packages(["a", "b"], ["same", "Same"], random_fonts(2)) == {}
    assert split_packages([], [], random_fonts(0)) == {}


def test_two_packages_are_split_even_though_none_is_a_tenth():
    sides = split_packages(["a", "a", "b"], ["", "", ""], random_fonts(3))
    assert sides == {"a": "train", "b": "test"}
