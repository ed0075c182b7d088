"""Exported files hold the network; those that do not never get their name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mdistiller import export
from mdistiller.dataset import build_model
from mdistiller.errors import MdistillerError, UnknownNameError
from mdistiller.export import FORMATS, export_checkpoint, image_size
from tools.export import main

from .commands import run
from .toys import mostly_slow

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
FAMILIES = ("resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2")


def need_onnx() -> None:
    for package in ONNX_PACKAGES:
        pytest.importorskip(package)


def saved(path: Path, model: str, dataset: str = "digits", classes: int = 10) -> nn.Module:
    """A network whose batch norms have seen data, in eval mode; its weights are at ``path``."""
    network = build_model(dataset, model, classes)
    network(torch.randn(16, 3, 32, 32) + 0.5)
    torch.save({"model": network.state_dict()}, path)
    return network.eval()


def load(form: str, path: Path, network: nn.Module):
    """The function from images to logits in a file, read as its users would."""
    if form == "state_dict":
        state = torch.load(path, weights_only=True)
        assert type(state) is dict
        assert all(type(value) is torch.Tensor for value in state.values())
        for parameter in network.parameters():
            parameter.data.zero_()
        network.load_state_dict(state, strict=True)
        return lambda image: network(image)[0]
    if form == "torch_export":
        return torch.export.load(path).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [put.name for put in session.get_inputs()] == ["image"]
    assert [put.name for put in session.get_outputs()] == ["logits"]
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def run_main(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


def failure(capsys, *arguments: object) -> tuple[int, str]:
    """Exit status and the line on stderr of a run that must fail."""
    with pytest.raises(SystemExit) as stop:
        run_main(*arguments)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return stop.value.code, printed.err


@pytest.mark.parametrize(
    "case",
    mostly_slow(
        [f"{model} {form}" for model in FAMILIES for form in FORMATS],
        *("wrn_16_1 torch_export", "MobileNetV2 state_dict"),  # ONNX: test_all_formats
    ),
)
def test_a_file_computes_what_the_network_does(case, tmp_path):
    model, form = case.split()
    if form == "onnx":
        need_onnx()
    network = saved(tmp_path / "ckpt", model)
    images, expected = some_images(network)
    (file,) = export_checkpoint(model, tmp_path / "ckpt", "digits", [form], tmp_path / "out")
    assert [*(tmp_path / "out").iterdir()] == [file.path]
    assert file.size == file.path.stat().st_size > 0
    assert 0 <= file.difference <= 1e-4
    assert_it_computes(form, file.path, network, images, expected)


def some_images(network: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Batches of three sizes, and the network's logits."""
    images = [torch.randn(count, 3, 32, 32) for count in (1, 2, 7)]
    with torch.no_grad():
        return images, [network(image)[0] for image in images]


def assert_it_computes(form, path, network, images, expected) -> None:
    function = load(form, path, network)
    for image, logits in zip(images, expected, strict=True):
        found = function(image)
        assert isinstance(found, torch.Tensor)
        assert not found.requires_grad or form == "state_dict"
        torch.testing.assert_close(found.detach(), logits, rtol=1e-4, atol=1e-4)
    if form == "torch_export":
        with pytest.raises((AssertionError, RuntimeError)):
            function(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("dataset", "model", "classes", "size"),
    [("tiny_imagenet", "vgg8", 200, 64), ("imagenet", "MobileNetV1", 7, 224)],
)
def test_image_size_is_the_data_sets_and_classes_are_the_checkpoints(
    dataset, model, classes, size, tmp_path, monkeypatch
):
    """What a format is given; a compiler's work on it would take seconds."""
    given = []

    def write(network, example, path):
        given.append((example.shape[1:], network(example)[0].shape[1:]))
        FORMATS["state_dict"].write(network, example, path)

    seen = export._Format("_seen.pth", write, FORMATS["state_dict"].read)
    monkeypatch.setattr(export, "FORMATS", {"seen": seen})
    saved(tmp_path / "ckpt", model, dataset, classes)
    (file,) = export_checkpoint(model, tmp_path / "ckpt", dataset, ["seen"], tmp_path, batch_size=2)
    assert given == [((3, size, size), (classes,))] and file.path.exists()
    assert image_size("digits") == image_size("cifar100") == 32


def test_all_formats_print_a_line_each(tmp_path, capsys):
    need_onnx()
    network = saved(tmp_path / "ckpt", "convnet12")
    images, expected = some_images(network)
    run_main("-m", "convnet12", "-c", tmp_path / "ckpt", "-d", "digits", "--format", "all", "--out",
             tmp_path / "a" / "b", "--batch-size", 1)  # fmt: skip
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert printed.err == ""
    files = [tmp_path / "a" / "b" / f"convnet12{form.suffix}" for form in FORMATS.values()]
    for line, file in zip(lines, files, strict=True):
        assert line.startswith(f"{file}  {file.stat().st_size:,} bytes  max difference ")
        assert float(line.split()[-1]) <= 1e-4
    assert sorted((tmp_path / "a" / "b").iterdir()) == sorted(files)
    # The state dict last: reading it empties the network.
    for form, file in sorted(zip(FORMATS, files, strict=True), reverse=True):
        assert_it_computes(form, file, network, images, expected)


def test_a_distillers_checkpoint_gives_its_student_and_a_format_named_twice_is_made_once(
    tmp_path, capsys
):
    network = build_model("digits", "resnet8", 10)
    state = {f"module.student.{key}": value for key, value in network.state_dict().items()}
    torch.save({"model": state, "epoch": 1}, tmp_path / "latest")
    run_main("-m", "resnet8", "-c", tmp_path / "latest", "-d", "digits",
             "--format", "state_dict", "state_dict", "--out", tmp_path)  # fmt: skip
    assert len(capsys.readouterr().out.splitlines()) == 1
    found = torch.load(tmp_path / "resnet8_state_dict.pth", weights_only=True)
    assert found.keys() == network.state_dict().keys()
    assert all(torch.equal(found[key], value) for key, value in network.state_dict().items())


BAD_INPUT = {
    "missing": ({"-c": "no/such"}, 1, "no/such: no such file"),
    "damaged": ({"-c": "{tmp}/damaged"}, 1, "damaged"),
    "other network": ({"-m": "resnet20"}, 1, "does not fit"),
    "other family": ({"-m": "vgg8"}, 1, "does not fit"),
    "unknown network": ({"-m": "resnet9"}, 2, "did you mean 'resnet8'"),
    "unknown data set": ({"-d": "digit"}, 2, "did you mean 'digits'"),
    "no images": ({"--batch-size": "0"}, 2, "--batch-size must be 1 or greater, not 0"),
    "folder is a file": ({"--out": "{tmp}/damaged"}, 1, "give another --out"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_leaves_nothing(case, tmp_path, capsys):
    saved(tmp_path / "ckpt", "resnet8")
    (tmp_path / "damaged").write_bytes(b"PK\x03\x04 not a checkpoint")
    usual = {"-m": "resnet8", "-c": "{tmp}/ckpt", "-d": "digits", "--out": "{tmp}/out"}
    changed, status, words = BAD_INPUT[case]
    options = [x.format(tmp=tmp_path) for pair in {**usual, **changed}.items() for x in pair]
    code, line = failure(capsys, *options, "--format", "state_dict")
    assert code == status
    assert line.startswith("error: ")
    assert words in line
    assert not list(tmp_path.glob("out/*"))


def test_unknown_formats_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run_main("-m", "resnet8", "-c", "x", "--format", "onx", "--out", tmp_path)
    assert stop.value.code == 2
    assert "'onx'" in capsys.readouterr().err
    with pytest.raises(UnknownNameError, match="did you mean 'onnx'"):
        list(export_checkpoint("resnet8", "x", "digits", ["onx"], tmp_path))


@pytest.mark.parametrize("package", ONNX_PACKAGES)
def test_without_the_onnx_packages_nothing_is_written(package, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    saved(tmp_path / "ckpt", "resnet8")
    code, line = failure(capsys, "-m", "resnet8", "-c", tmp_path / "ckpt", "-d", "digits",
                         "--format", "all", "--out", tmp_path / "out")  # fmt: skip
    assert code == 2
    assert package in line
    assert "pip install onnx onnxscript onnxruntime" in line
    assert not (tmp_path / "out").exists()


def test_a_file_that_differs_is_not_written(tmp_path, capsys, monkeypatch):
    def write(network, example, path):
        torch.save({key: value * 1.001 for key, value in network.state_dict().items()}, path)

    wrong = export._Format("_state_dict.pth", write, FORMATS["state_dict"].read)
    monkeypatch.setattr(export, "FORMATS", {"state_dict": wrong})
    saved(tmp_path / "ckpt", "resnet8")
    older = tmp_path / "out" / "resnet8_state_dict.pth"
    older.parent.mkdir()
    older.write_text("older")
    code, line = failure(capsys, "-m", "resnet8", "-c", tmp_path / "ckpt", "-d", "digits",
                         "--format", "state_dict", "--out", older.parent)  # fmt: skip
    assert code == 1
    assert "differ" in line
    assert [*older.parent.iterdir()] == [older]
    assert older.read_text() == "older"


def test_weights_that_are_not_numbers_are_an_error(tmp_path, capsys):
    network = saved(tmp_path / "ckpt", "resnet8")
    network.fc.bias.data[0] = float("nan")
    torch.save({"model": network.state_dict()}, tmp_path / "ckpt")
    code, line = failure(capsys, "-m", "resnet8", "-c", tmp_path / "ckpt", "-d", "digits",
                         "--format", "state_dict", "--out", tmp_path / "out")  # fmt: skip
    assert code == 1
    assert "numbers that are not finite (1 of" in line
    assert "fc.bias" in line
    assert not list(tmp_path.glob("out/*"))


def test_a_file_that_holds_for_one_batch_size_only_is_found(tmp_path):
    network = build_model("digits", "resnet8", 10).eval()
    batches = export._random_batches(4, 32)

    def read(path, make_network):
        return lambda image: network(image)[0] * (1 if len(image) == len(batches[-1]) else -1)

    wrong = export._Format(".pth", FORMATS["state_dict"].write, read)
    with pytest.raises(MdistillerError, match="differ"):
        export._export(network, wrong, batches, tmp_path / "resnet8.pth", lambda: network)
    assert not list(tmp_path.iterdir())


def test_as_a_command(tmp_path):
    saved(tmp_path / "ckpt", "resnet8")
    arguments = ("-m", "resnet8", "-d", "digits", "-c", "ckpt")
    done = run("export", *arguments, "--format", "state_dict", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["out/resnet8_state_dict.pth"]
