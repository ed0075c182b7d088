"""Reading checkpoints, whatever their format or damage, and loading teachers."""

from __future__ import annotations

import argparse
import gzip
import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from mdistiller import models
from mdistiller.dataset import build_model, load_teacher, model_dict_for, networks
from mdistiller.errors import CheckpointError, UnknownNameError
from mdistiller.models import PUBLISHED_TOP1
from mdistiller.models.checkpoints import load_weights, read_checkpoint, read_state_dict
from tests.golden_rules import golden_json, images

NAME, CLASSES = "resnet8", 10


@pytest.fixture
def net() -> nn.Module:
    return build_model("digits", NAME, CLASSES)


def save(path: Path, content: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, **options)
    return path


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def error_of(call: Any, *args: Any) -> str:
    """The message of the CheckpointError that the call raises; always a single line."""
    with pytest.raises(CheckpointError) as caught:
        call(*args)
    message = str(caught.value)
    assert message.isprintable(), message  # no line breaks, no escape sequences
    return message


# --- formats ----------------------------------------------------------------------------------


def numpy_optimizer() -> dict[str, Any]:
    """As mdistiller's ``latest`` after the first decay of the learning rate."""
    groups = [{"lr": np.float64(0.005), "momentum": 0.9, "nesterov": np.bool_(False)}]
    return {"state": {0: {"step": np.int64(3)}}, "param_groups": groups}


def contents(state: dict[str, Tensor]) -> dict[str, Any]:
    """Every accepted content of a file with the weights ``state``."""
    student = prefixed(state, "student.")
    teacher = prefixed({"fc.weight": torch.zeros(3, 3)}, "teacher.")
    run = {"epoch": 150, "optimizer": numpy_optimizer(), "best_acc": torch.tensor(70.0)}
    return {
        "bare": state,
        "ordered": OrderedDict(state),
        "model": {"model": state},
        "parallel": prefixed(state, "module."),
        "parallel model": {"model": prefixed(state, "module.")},
        "run": {"model": prefixed(student | teacher, "module."), **run},
        "bare run": student | teacher,
        "student of a run": {"model": student, **run},
    }


@pytest.mark.parametrize("kind", contents({}))
@pytest.mark.parametrize("new_format", [True, False])
def test_every_format_gives_the_same_weights(
    kind: str, new_format: bool, net: nn.Module, tmp_path: Path
) -> None:
    state = net.state_dict()
    content = contents(state)[kind]
    path = save(tmp_path / "ckpt", content, _use_new_zipfile_serialization=new_format)
    assert_same(read_state_dict(path), state)
    assert_same(read_state_dict(str(path)), state)


@given(
    st.dictionaries(
        st.text(st.sampled_from("ab."), min_size=1, max_size=4), st.integers(0, 3), min_size=1
    ),
    st.sampled_from(sorted(contents({}))),
)
def test_keys_come_back_as_they_were_saved(
    tmp_path_factory: pytest.TempPathFactory, sizes: dict[str, int], kind: str
) -> None:
    state = {key: torch.arange(float(size)) for key, size in sizes.items()}
    path = save(tmp_path_factory.mktemp("keys") / "ckpt", contents(state)[kind])
    assert_same(read_state_dict(path), state)


def test_a_part_called_module_keeps_its_name(tmp_path: Path) -> None:
    state = {"module.weight": torch.ones(2), "head.weight": torch.ones(3)}
    assert_same(read_state_dict(save(tmp_path / "ckpt", state)), state)


@pytest.mark.parametrize("dtype", [*"bBhHiIlLqQefdg?"])
def test_numpy_numbers_of_every_kind(dtype: str, tmp_path: Path) -> None:
    path = save(tmp_path / "ckpt", {"n": np.dtype(dtype).type(1), "w": torch.ones(1)})
    assert read_checkpoint(path)["n"] == 1


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numpy_numbers_of_old_and_new_numpy(module: str, tmp_path: Path) -> None:
    """numpy 2 renamed the module that a pickled number refers to."""
    path = save(tmp_path / "ckpt", {"lr": np.float64(0.5)}, _use_new_zipfile_serialization=False)
    written = np.float64(0).__reduce__()[0].__module__
    raw = path.read_bytes()
    assert f"c{written}\n".encode() in raw
    path.write_bytes(raw.replace(f"c{written}\n".encode(), f"c{module}\n".encode()))
    assert read_checkpoint(path) == {"lr": 0.5}


def test_reading_leaves_no_global_allowed(tmp_path: Path) -> None:
    path = save(tmp_path / "ckpt", {"lr": np.float64(0.5)})
    before = set(torch.serialization.get_safe_globals())
    read_checkpoint(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_map_location(tmp_path: Path) -> None:
    path = save(tmp_path / "ckpt", {"model": {"w": torch.ones(2)}})
    assert read_state_dict(path, map_location="meta")["w"].is_meta
    assert read_state_dict(path)["w"].device.type == "cpu"


# --- damage and malice ------------------------------------------------------------------------


class Malicious:
    """Would create the file ``flag`` when unpickled."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.flag),)


@pytest.mark.parametrize("new_format", [True, False])
def test_malicious_file_is_refused_and_not_executed(new_format: bool, tmp_path: Path) -> None:
    flag = tmp_path / "executed"
    content = {"model": {"w": torch.ones(1)}, "extra": Malicious(flag)}
    path = save(tmp_path / "ckpt", content, _use_new_zipfile_serialization=new_format)
    message = error_of(read_state_dict, path)
    assert str(path) in message
    assert "is refused" in message
    assert "mkdir" in message
    assert not flag.exists()
    torch.load(path, weights_only=False)  # the file would have done it
    assert flag.exists()


def test_a_bare_pickle_is_not_executed(tmp_path: Path) -> None:
    flag, path = tmp_path / "executed", tmp_path / "ckpt"
    path.write_bytes(pickle.dumps(Malicious(flag)))
    assert str(path) in error_of(read_state_dict, path)
    assert not flag.exists()


def test_whole_module_is_refused_with_advice(net: nn.Module, tmp_path: Path) -> None:
    message = error_of(read_state_dict, save(tmp_path / "ckpt", net))
    assert "mdistiller.models.cifar.resnet.ResNet" in message
    assert "save model.state_dict() instead" in message


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "no_such_file"
    assert error_of(read_state_dict, path) == f"{path}: no such file; check the path"


def test_folder(tmp_path: Path) -> None:
    message = error_of(read_state_dict, tmp_path)
    assert f"{tmp_path} cannot be read (Is a directory)" in message


@pytest.mark.parametrize("new_format", [True, False])
@given(cut=st.floats(0, 1, exclude_max=True))
@example(cut=0.0)
@example(cut=0.0008)  # one byte of the new format, which is a letter
@example(cut=0.0015)
def test_truncated_file(
    new_format: bool, cut: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / "ckpt"
    save(path, {"model": {"w": torch.ones(50)}}, _use_new_zipfile_serialization=new_format)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(cut * len(raw))])
    message = error_of(read_state_dict, path)
    assert str(path) in message
    # A cut through the name of a harmless object leaves an unknown name, which is refused.
    kinds = ("is damaged or no torch checkpoint", "is refused", "is empty")
    assert any(kind in message for kind in kinds)
    assert "fetch" in message


@settings(max_examples=200)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed_or_harmless(
    position: float, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("flip") / "ckpt"
    weights = torch.arange(500.0)
    save(path, {"model": {"w": weights}})
    raw = bytearray(path.read_bytes())
    raw[int(position * len(raw))] ^= 1 << bit
    path.write_bytes(raw)
    try:
        found = read_state_dict(path)
    except CheckpointError as error:
        assert str(path) in str(error)
    else:  # in the padding between the parts, or a name that is not used
        assert torch.equal(found["w"], weights)


def test_a_flipped_bit_in_a_weight_is_damage(tmp_path: Path) -> None:
    path = save(tmp_path / "ckpt", {"model": {"w": torch.full((500,), 1.5)}})
    raw = bytearray(path.read_bytes())
    raw[raw.index(np.float32(1.5).tobytes() * 400) + 801] ^= 1
    path.write_bytes(raw)
    torch.load(path, weights_only=True)  # torch does not notice
    assert "is damaged or no torch checkpoint (BadZipFile)" in error_of(read_state_dict, path)


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this torch always writes checksums")
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path / "ckpt", {"model": {"w": torch.ones(50)}})
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_state_dict(path)["w"].sum() == 50


@given(st.binary(max_size=200))
@example(b"<!DOCTYPE html><html></html>")
@example(b"version https://git-lfs.github.com/spec/v1\n")
@example(pickle.dumps({"w": 1}))
def test_arbitrary_bytes(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "ckpt"
    path.write_bytes(raw)
    assert str(path) in error_of(read_state_dict, path)


@pytest.mark.parametrize(
    "content", [{}, [], 3, "text", {"model": {}}, {"model": {"epoch": 1}}, [torch.ones(1)]]
)
def test_no_weights(content: Any, tmp_path: Path) -> None:
    path = save(tmp_path / "ckpt", content)
    message = error_of(read_state_dict, path)
    assert f"{path} holds no weights" in message
    assert "torch.save" in message


# --- files of other programs ------------------------------------------------------------------


class Settings(dict):
    """As other programs keep them beside the weights; this module is unknown to the product."""


def test_layouts_of_other_programs(net: nn.Module, tmp_path: Path) -> None:
    own, worse = net.state_dict(), build_model("digits", NAME, CLASSES).state_dict()
    layouts: dict[str, Any] = {
        "a key of its own": {"state_dict": own, "epoch": 3},
        "net": {"net": own, "acc": 71.0},
        "model_state": {"model_state": own, "optimizer_state": {"state": {}}},
        "model_state_dict": {"model_state_dict": prefixed(own, "module._orig_mod.")},
        "an average beside it": {"model_ema": worse, "state_dict": own, "ema_state_dict": worse},
        "an average alone": {"epoch": 1, "model_ema": own},
        "nested": {"checkpoint": {"model": prefixed(own, "module.")}},
        "Lightning's": {
            "state_dict": {**prefixed(own, "model."), "loss.weight": torch.ones(3)},
            "hyper_parameters": {"lr": 0.1},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
        },
        "compiled inside": {k.replace("layer1.", "layer1._orig_mod."): v for k, v in own.items()},
        "a distiller's": {"model": {**prefixed(worse, "teacher."), **prefixed(own, "student.")}},
        "settings beside": {"opt": argparse.Namespace(lr=0.1, path=Path("x")), "model": own},
        "counted": {
            "state_dict": {**own, "total_ops": torch.ones(1), "fc.total_params": torch.ones(1)}
        },
        "sharded inside": prefixed(own, "_fsdp_wrapped_module."),
        "a list": [3, own],
        "deep": {"model": {"model": {"model": {"model": own}}}},
        "numpy arrays": {"net": {k: v.numpy() for k, v in own.items()}},
        "a history beside": {"net": own, "losses": np.arange(3.0), "best": np.float32(1)},
        "unknown settings": {"cfg": Settings(lr=Settings()), "model": own},
    }
    for content in layouts.values():
        fresh = build_model("digits", NAME, CLASSES)
        load_weights(fresh, save(tmp_path / "ckpt", content))
        assert_same(fresh.state_dict(), own)


def test_weights_that_are_not_finite(net: nn.Module, tmp_path: Path) -> None:
    weights = {**net.state_dict(), "conv1.weight": net.state_dict()["conv1.weight"] / 0}
    path, fresh = save(tmp_path / "ckpt", weights), build_model("digits", NAME, CLASSES)
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    assert "the first is conv1.weight" in error_of(load_weights, fresh, path)
    assert_same(fresh.state_dict(), before)


def test_safetensors(net: nn.Module, tmp_path: Path) -> None:
    save_file(prefixed(net.state_dict(), "module."), tmp_path / "model.safetensors")
    assert set(read_state_dict(tmp_path / "model.safetensors")) == set(net.state_dict())
    load_weights(build_model("digits", NAME, CLASSES), tmp_path / "model.safetensors")


def test_what_is_no_checkpoint_is_called_what_it_is(net: nn.Module, tmp_path: Path) -> None:
    path, inner = tmp_path / "ckpt", save(tmp_path / "resnet8.pth", net.state_dict())
    with tarfile.open(path, "w") as archive:
        archive.add(inner, "teachers/resnet8.pth")
    assert "an archive of teachers/resnet8.pth" in error_of(read_state_dict, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(inner, "resnet8.pth")
    assert "an archive of resnet8.pth" in error_of(read_state_dict, path)
    for raw, kind in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>not found</html>", "a web page"),
        (gzip.compress(b"x"), "compressed with gzip"),
        (b'{"message": "Not Found"}', "a JSON text"),
        (b"Access denied\n", "a text ('Access denied')"),
        (bytes(2048), "damaged, it begins with zeros only"),
        (b"", "empty"),
    ):
        path.write_bytes(raw)
        assert f"{path} is {kind}" in error_of(read_state_dict, path)
    with zipfile.ZipFile(path, "w") as archive:  # as torch.jit.save lays it out
        archive.writestr("program/code/__torch__.py", "")
    assert "TorchScript" in error_of(read_state_dict, path)


# --- loading into a network -------------------------------------------------------------------


def test_loaded_network_computes_the_same(net: nn.Module, tmp_path: Path) -> None:
    path = save(tmp_path / "ckpt", {"model": net.state_dict()})
    other = build_model("digits", NAME, CLASSES)
    load_weights(other, path)
    x = images(0, 2, 32)
    assert torch.equal(other.eval()(x)[0], net.eval()(x)[0])


def test_file_without_batch_counters(net: nn.Module, tmp_path: Path) -> None:
    """The published teachers may be as old as torch 0.4.0, which had none."""
    state = {k: v + 1 for k, v in net.state_dict().items() if not k.endswith("tracked")}
    load_weights(net, save(tmp_path / "ckpt", state))
    assert torch.equal(net.fc.weight, state["fc.weight"])
    assert net.bn1.num_batches_tracked == 0


def test_wrong_class_count(net: nn.Module, tmp_path: Path) -> None:
    path = save(tmp_path / "ckpt", build_model("cifar100", NAME, 100).state_dict())
    before = {k: v.clone() for k, v in net.state_dict().items()}
    message = error_of(load_weights, net, path)
    assert f"{path} does not fit ResNet: the file has 100 classes, the network 10" in message
    assert "2 of another shape" in message
    assert "fc.weight (file [100, 64], network [10, 64])" in message
    assert "fc.bias (file [100], network [10])" in message
    assert "missing" not in message
    assert_same(net.state_dict(), before)


@pytest.mark.parametrize(
    ("dataset", "name"),
    [("cifar100", n) for n in ("vgg8", "wrn_16_1", "MobileNetV2", "ShuffleV1", "ShuffleV2")]
    + [("tiny_imagenet", "MobileNetV2"), ("imagenet", "MobileNetV1")],
)
def test_class_count_is_found_in_every_family(dataset: str, name: str, tmp_path: Path) -> None:
    path = save(tmp_path / "ckpt", build_model(dataset, name, 7).state_dict())
    message = error_of(load_weights, build_model(dataset, name, 5), path)
    assert "the file has 7 classes, the network 5; 2 of another shape" in message


def test_wrong_keys(net: nn.Module, tmp_path: Path) -> None:
    state = net.state_dict()
    for key in ("conv1.weight", "bn1.weight", "bn1.bias", "fc.bias"):
        del state[key]
    state["extra"] = torch.ones(1)
    state["bn1.running_mean"] = torch.ones(3)
    message = error_of(load_weights, net, save(tmp_path / "ckpt", state))
    assert "4 missing: conv1.weight, bn1.weight, bn1.bias, ...;" in message
    assert "1 unexpected: extra;" in message
    assert "1 of another shape: bn1.running_mean (file [3], network [16]);" in message
    assert "classes" not in message


def test_wrong_architecture(net: nn.Module, tmp_path: Path) -> None:
    path = save(tmp_path / "ckpt", build_model("digits", "vgg8", CLASSES).state_dict())
    message = error_of(load_weights, net, path)
    assert "use the architecture and the data set that the file was trained with" in message
    assert len(message) < 600


# --- teachers ---------------------------------------------------------------------------------


def test_published_accuracies_belong_to_published_teachers() -> None:
    order = golden_json("models")["registry_order"]["cifar"]
    registered = [
        name
        for name in order
        if golden_json("models")["models"][f"cifar/{name}"]["teacher_checkpoint"]
    ]
    assert list(PUBLISHED_TOP1) == registered
    assert PUBLISHED_TOP1["resnet32x4"] == 79.42


@pytest.mark.parametrize(
    ("dataset", "registry"),
    [
        ("cifar100", models.cifar_model_dict),
        ("fashion_mnist", models.cifar_model_dict),
        ("digits", models.cifar_model_dict),
        ("glyphs", models.cifar_model_dict),
        ("tiny_imagenet", models.tiny_imagenet_model_dict),
        ("imagenet", models.imagenet_model_dict),
    ],
)
def test_models_of_a_data_set(dataset: str, registry: dict[str, Any]) -> None:
    assert model_dict_for(dataset) is registry
    name = next(iter(registry))
    with torch.device("meta"):
        net = build_model(dataset, name, 7)
    assert len(list(net.parameters())[-1]) == 7


def test_unknown_names() -> None:
    with pytest.raises(
        UnknownNameError, match="unknown data set 'cifar10'; did you mean 'cifar100'"
    ):
        model_dict_for("cifar10")
    with pytest.raises(UnknownNameError, match="did you mean 'resnet56'"):
        build_model("cifar100", "resnet57", 100)
    with pytest.raises(UnknownNameError, match="ImageNet model"):
        load_teacher("imagenet", "vgg13", 1000)


def test_teacher_from_a_given_file(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "ckpt", {"model": net.state_dict()})
    monkeypatch.setenv("HOME", str(tmp_path))
    for ckpt in (str(tmp_path / "ckpt"), "~/ckpt"):
        teacher = load_teacher("digits", NAME, CLASSES, ckpt)
        assert not any(module.training for module in teacher.modules())
        assert_same(teacher.state_dict(), net.state_dict())


def test_given_file_that_is_missing(tmp_path: Path) -> None:
    ckpt = str(tmp_path / "ckpt")
    assert f"{ckpt}: no such file" in error_of(load_teacher, "cifar100", "resnet56", 100, ckpt)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """An empty current folder and an empty repository."""
    current, repository = tmp_path / "current", tmp_path / "repository"
    current.mkdir()
    monkeypatch.chdir(current)
    monkeypatch.setattr(networks, "checkout", lambda: repository)
    return current, repository


def test_repository_is_where_the_package_lies() -> None:
    assert Path(models.__file__).parent.parent.parent == networks.checkout()


@pytest.mark.parametrize(
    ("dataset", "name", "classes"),
    [("cifar100", "resnet56", 100), ("tiny_imagenet", "ResNet18", 200)],
)
def test_registered_file_is_searched_for_here_then_in_the_repository(
    dataset: str, name: str, classes: int, folders: tuple[Path, Path]
) -> None:
    current, repository = folders
    relative = model_dict_for(dataset)[name][1]
    here, there = build_model(dataset, name, classes), build_model(dataset, name, classes)
    save(repository / relative, {"model": there.state_dict()})
    teacher = load_teacher(dataset, name, classes)
    assert not teacher.training
    assert_same(teacher.state_dict(), there.state_dict())
    save(current / relative, {"model": here.state_dict()})
    assert_same(load_teacher(dataset, name, classes).state_dict(), here.state_dict())


def test_missing_published_teacher(folders: tuple[Path, Path]) -> None:
    message = error_of(load_teacher, "cifar100", "resnet56", 100)
    assert "download_ckpts/cifar_teachers/resnet56_vanilla/ckpt_epoch_240.pth" in message
    assert "python tools/download_teachers.py" in message
    assert "python tools/train.py --cfg configs/cifar100/teachers/resnet56.yaml" in message


def test_missing_teacher_that_nobody_published(folders: tuple[Path, Path]) -> None:
    message = error_of(load_teacher, "cifar100", "ResNet101", 100)
    assert "ResNet101_vanilla" in message
    assert "download" not in message.replace("download_ckpts", "")
    assert "python tools/train.py --cfg configs/cifar100/teachers/ResNet101.yaml" in message


def test_missing_teacher_of_tiny_imagenet(folders: tuple[Path, Path]) -> None:
    message = error_of(load_teacher, "tiny_imagenet", "ResNet18", 200)
    assert "ti_res18" in message
    assert "set DISTILLER.TEACHER_CKPT" in message


@pytest.mark.parametrize(
    ("dataset", "name"),
    [("cifar100", "resnet8"), ("tiny_imagenet", "resnet56"), ("digits", "resnet56")]
    + [("fashion_mnist", "vgg13"), ("glyphs", "ResNet101")],
)
def test_teacher_without_registered_file(
    dataset: str, name: str, folders: tuple[Path, Path]
) -> None:
    """Also where the networks are CIFAR's: its files are no teachers for other data."""
    for file in (name, "resnet56"):
        relative = f"download_ckpts/cifar_teachers/{file}_vanilla/ckpt_epoch_240.pth"
        save(folders[0] / relative, {"w": torch.ones(1)})
    message = error_of(load_teacher, dataset, name, 10)
    assert f"no checkpoint for the teacher {name} on {dataset}" in message
    assert "set DISTILLER.TEACHER_CKPT" in message


def test_imagenet_teacher_is_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = build_model("imagenet", "ResNet18", 1000).state_dict()
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda url, **options: expected
    )
    teacher = load_teacher("imagenet", "ResNet18", 1000)
    assert not teacher.training
    assert_same(teacher.state_dict(), expected)


def test_imagenet_teacher_from_a_given_file(tmp_path: Path) -> None:
    """Nothing is downloaded then, also for networks without published weights."""
    expected = build_model("imagenet", "MobileNetV1", 10).state_dict()
    ckpt = str(save(tmp_path / "ckpt", {"model": expected}))
    assert_same(load_teacher("imagenet", "MobileNetV1", 10, ckpt).state_dict(), expected)
    # A subset of ImageNet: what to do is said in settings that exist.
    advice = error_of(load_teacher, "imagenet", "ResNet18", 10)
    assert "1000 classes, the data set has 10" in advice
    assert "DISTILLER.TEACHER_CKPT" in advice
    assert "no published weights" in error_of(load_teacher, "imagenet", "MobileNetV1", 1000)
