"""Pictures of student and teacher: what is in them, and what is refused."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from torch import nn

from mdistiller.dataset import build_model, get_dataset
from mdistiller.engine.cfg import CFG
from mdistiller.report import visualize as module
from mdistiller.report.visualize import (
    MIN_IMAGES,
    Responses,
    collect,
    correlation,
    draw_difference,
    draw_maps,
    embed,
)
from tools.visualize import main

from . import commands
from .test_rooms import modules
from .toys import few_digits

ROOT = Path(__file__).resolve().parents[1]
KD, VANILLA = (str(ROOT / "configs" / "digits" / f"{name}.yaml") for name in ("kd", "vanilla"))


# To validate on where all of them are drawn; t-SNE takes seconds for all 450.
IMAGES = 120
# Of other sizes than each other, and a thirtieth of the computations of what the files name.
CONVNETS = "DISTILLER.STUDENT convnet12 DISTILLER.TEACHER convnet48"


def saved(path: Path, model: str) -> nn.Module:
    network = build_model("digits", model, 10).eval()
    torch.save({"model": network.state_dict()}, path)
    return network


def arguments(folder: Path, **changed: str) -> list[str]:
    """The command line of a student and a teacher in ``folder``; ``opts`` are overrides."""
    opts = changed.pop("opts", "").split()
    options = {"cfg": KD, "student-ckpt": f"{folder}/student", "out": f"{folder}/out", **changed}
    flags = [x for key, value in options.items() for x in (f"--{key}", value)]
    return [*flags, "DISTILLER.TEACHER_CKPT", f"{folder}/teacher", *opts]


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


def validation_logits(network: nn.Module) -> np.ndarray:
    cfg = CFG.clone()
    cfg.merge_from_list(["DATASET.TYPE", "digits", "SOLVER.DEVICE", "cpu"])
    with torch.no_grad():
        return torch.cat([network(image)[0] for image, _ in get_dataset(cfg)[1]]).double().numpy()


def test_both_pictures_of_all_images(tmp_path, capsys, monkeypatch):
    figures = []
    save = module._save

    def save_and_keep(figure, path):
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(module, "_save", save_and_keep)
    student = saved(tmp_path / "student", "convnet12")
    teacher = saved(tmp_path / "teacher", "convnet48")
    with few_digits(64, IMAGES):
        main(arguments(tmp_path, opts=CONVNETS))
        a, b = (np.corrcoef(validation_logits(network).T) for network in (student, teacher))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}/out/tsne.png: features of {IMAGES} validation images"
    assert lines[1].startswith(f"{tmp_path}/out/correlation_difference.png: ")
    assert float(lines[1].split()[-1]) == pytest.approx(abs(a - b).mean(), abs=6e-5)
    for name in ("tsne.png", "correlation_difference.png"):
        assert min(png_size(tmp_path / "out" / name)) >= 600
    maps, difference = figures
    assert f"{IMAGES} validation images of digits" in maps.get_suptitle()
    assert [axes.get_title() for axes in maps.axes] == ["student convnet12", "teacher convnet48"]
    heat = difference.axes[0]
    for words in ("student convnet12", "teacher convnet48", "digits", lines[1].split()[-1]):
        assert words in heat.get_title()
    np.testing.assert_allclose(heat.images[0].get_array(), abs(a - b), atol=1e-5)
    for axes in (*maps.axes, heat):
        assert axes.get_xlabel()
        assert axes.get_ylabel()


def test_the_same_seed_draws_the_same_pictures_and_another_seed_other_images(tmp_path):
    saved(tmp_path / "student", "convnet12")
    saved(tmp_path / "teacher", "convnet48")
    found = []
    before = dict(matplotlib.rcParams)
    for number, seed in enumerate("001"):
        torch.manual_seed(number)
        np.random.seed(number)
        out = tmp_path / f"out{number}"
        main(
            arguments(
                tmp_path, images="50", out=str(out), opts=f"{CONVNETS} EXPERIMENT.SEED {seed}"
            )
        )
        found.append([(out / f"{n}.png").read_bytes() for n in ("tsne", "correlation_difference")])
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]
    assert found[0][1] != found[2][1]
    assert dict(matplotlib.rcParams) == before


def test_a_student_that_equals_its_teacher_does_not_differ(tmp_path, capsys):
    saved(tmp_path / "student", "convnet12")
    teacher = f"DISTILLER.TEACHER convnet12 DISTILLER.TEACHER_CKPT {tmp_path}/student"
    opts = f"DISTILLER.STUDENT convnet12 {teacher}"
    main(arguments(tmp_path, images=str(MIN_IMAGES), opts=opts))
    assert capsys.readouterr().out.endswith(" 0.0000\n")


BAD_INPUT = {
    "missing student": ({"student-ckpt": "no/such"}, 1, "no/such: no such file"),
    "missing teacher": ({"opts": "DISTILLER.TEACHER_CKPT no/such"}, 1, "no/such: no such file"),
    "other student": ({"student-ckpt": "{tmp}/teacher"}, 1, "does not fit"),
    "other teacher": ({"opts": "DISTILLER.TEACHER resnet32"}, 1, "does not fit"),
    "unknown network": ({"opts": "DISTILLER.STUDENT resnet9"}, 2, "DISTILLER.STUDENT: unknown"),
    "unknown data set": ({"opts": "DATASET.TYPE digit"}, 2, "DATASET.TYPE: unknown"),
    "unknown key": ({"opts": "DATASET.KIND digits"}, 2, "DATASET.KIND"),
    "missing configuration": ({"cfg": "no.yaml"}, 2, "no.yaml: no such"),
    "no teacher": ({"cfg": VANILLA}, 2, "DISTILLER.TYPE NONE has no teacher"),
    "too few images": ({"images": "30"}, 2, "--images must be at least 31"),
    "folder is a file": ({"out": "{tmp}/teacher"}, 1, "give another --out"),
    "not finite": ({"student-ckpt": "{tmp}/nan"}, 1, "numbers that are not finite"),
    "dead": ({"student-ckpt": "{tmp}/dead"}, 1, "student resnet8 are the same for all images"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_a_status(case, tmp_path, capsys):
    saved(tmp_path / "teacher", "resnet20")
    student = saved(tmp_path / "student", "resnet8")
    for name, value in (("nan", float("nan")), ("dead", 0.0)):
        for parameter in student.parameters():
            parameter.data.fill_(value)
        torch.save({"model": student.state_dict()}, tmp_path / name)
    changed, status, words = BAD_INPUT[case]
    filled = {key: value.format(tmp=tmp_path) for key, value in changed.items()}
    with pytest.raises(SystemExit) as stop:
        main(arguments(tmp_path, **{"images": str(MIN_IMAGES), **filled}))
    printed = capsys.readouterr()
    assert stop.value.code == status
    assert printed.err.startswith("error: ")
    assert words in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not list(tmp_path.glob("out/*"))


def test_too_small_a_data_set_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "MIN_IMAGES", 451)
    saved(tmp_path / "student", "resnet8")
    saved(tmp_path / "teacher", "resnet20")
    with pytest.raises(SystemExit) as stop:
        main(arguments(tmp_path, images="1000"))
    assert stop.value.code == 1
    assert "digits has 450 validation images, but t-SNE needs 451" in capsys.readouterr().err


class Pixels(nn.Module):
    """Features are the image's first channel, logits twice that."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        feature = x[:, :1]
        return self.weight * feature.flatten(1), {"pooled_feat": feature}


def test_collect_takes_the_chosen_images_in_order():
    images = torch.randn(10, 3, 2, 2)
    labels = torch.arange(10)
    loader = list(zip(images.split(3), labels.split(3), strict=True))
    chosen = torch.zeros(10, dtype=torch.bool)
    # None of the second batch.
    chosen[[0, 2, 7, 9]] = True
    found, [first, second] = collect([Pixels(), Pixels()], loader, chosen)
    assert found.tolist() == [0, 2, 7, 9]
    for features, logits in (first, second):
        assert torch.equal(features, images[chosen, 0].flatten(1))
        assert torch.equal(logits, 2 * features)


@given(st.integers(0, 99), st.integers(2, 6), st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_correlation_is_pearsons_and_knows_no_scale(seed, classes, scale, shift):
    logits = torch.randn(40, classes, generator=torch.Generator().manual_seed(seed)).double()
    found = correlation(logits)
    np.testing.assert_allclose(found, np.corrcoef(logits.numpy().T), atol=1e-9)
    np.testing.assert_allclose(correlation(scale * logits + shift), found, atol=1e-9)


def test_a_constant_logit_correlates_with_nothing():
    logits = torch.randn(40, 3)
    logits[:, 1] = 5
    found = correlation(logits)
    assert found[1].tolist() == found[:, 1].tolist() == [0, 0, 0]
    assert found[0, 0] == pytest.approx(1)


def test_embed_keeps_groups_apart():
    centres = torch.tensor([[0.0] * 5, [30.0] * 5]).repeat_interleave(40, dim=0)
    network = Responses("x", centres + torch.randn(80, 5), torch.zeros(80, 2))
    points = embed(network, seed=1)
    assert points.shape == (80, 2)
    np.testing.assert_array_equal(points, embed(network, seed=1))
    near, far = points[:40], points[40:]
    gap = np.linalg.norm(near.mean(axis=0) - far.mean(axis=0))
    spread = max(np.linalg.norm(p - p.mean(axis=0), axis=1).max() for p in (near, far))
    assert gap > 2 * spread


def maps_of(classes: int):
    labels = np.arange(60) % classes
    points = np.random.RandomState(0).randn(60, 2)
    return draw_maps([("one", points), ("two", points)], labels, classes, "title"), labels, points


@pytest.mark.parametrize("classes", [2, 10, 20])
def test_few_classes_have_a_legend_and_looks_of_their_own(classes):
    figure, labels, points = maps_of(classes)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [str(i) for i in range(classes)]
    assert len(figure.axes) == 2
    drawn = figure.axes[1].collections
    looks = set()
    for number, cloud in enumerate(drawn):
        np.testing.assert_array_equal(cloud.get_offsets(), points[labels == number])
        shape = cloud.get_paths()[0].vertices.round(6).tobytes()
        looks.add((to_hex(cloud.get_facecolor()[0]), shape))
    assert len(looks) == len(drawn) == classes


def test_many_classes_have_a_colour_bar():
    figure, labels, points = maps_of(21)
    assert not figure.legends
    *maps, bar = figure.axes
    assert bar.get_ylabel() == "class"
    for axes in maps:
        (cloud,) = axes.collections
        np.testing.assert_array_equal(cloud.get_offsets(), points)
        np.testing.assert_array_equal(cloud.get_array(), labels)
        assert cloud.get_clim() == (0, 20)


def test_a_class_without_images_is_in_the_legend():
    points = np.random.RandomState(0).randn(40, 2)
    figure = draw_maps([("one", points)], np.zeros(40, dtype=int), 3, "title")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["0", "1", "2"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["0"]


@pytest.mark.parametrize(("classes", "every_tick"), [(20, True), (100, False)])
def test_difference_names_every_class_while_there_is_room(classes, every_tick):
    figure = draw_difference(np.eye(classes), "title")
    heat, bar = figure.axes
    assert (len(heat.get_xticks()) == classes) is every_tick
    assert heat.get_title() == f"title\nmean absolute difference {1 / classes:.4f}"
    assert heat.images[0].get_clim() == (0, 1)
    assert bar.get_ylabel()


def test_as_a_command(tmp_path):
    saved(tmp_path / "student", "convnet12")
    saved(tmp_path / "teacher", "convnet48")
    words = arguments(tmp_path, images=str(MIN_IMAGES), opts=CONVNETS)
    done = commands.run("visualize", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("tsne.png", "correlation_difference.png")
    }


def test_pyplot_whose_figures_are_global_is_not_imported(monkeypatch):
    for name, path in modules().items():
        assert "pyplot" not in path.read_text(encoding="utf-8"), name
    # Nor by what draws: an import would fail here.
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    draw_difference(np.eye(3), "three classes").savefig(io.BytesIO())
    draw_maps([("a", np.eye(3, 2))], np.arange(3), 3, "three images").savefig(io.BytesIO())
