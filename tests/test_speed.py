"""Memory layout, merged BatchNorms, bf16 and compilation: what they may change, and what not."""

from __future__ import annotations

import copy
import resource
import shutil
import sys
import warnings
from functools import cache

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from mdistiller.dataset import model_dict_for
from mdistiller.distillers import KD, OFD, distiller_dict
from mdistiller.engine import CrossBatchTrainer
from mdistiller.engine.cfg import CFG
from mdistiller.engine.check import check_config
from mdistiller.engine.runtime import precision
from mdistiller.engine.runtime.folding import fold_batchnorm, foldable_pairs
from mdistiller.engine.runtime.host import keep_freed_memory
from mdistiller.engine.runtime.precision import FrozenTeacher
from mdistiller.errors import ConfigError
from mdistiller.models import cifar_model_dict, imagenet_model_dict, tiny_imagenet_model_dict

from .commands import CONTEXT
from .golden_rules import images, labels
from .toys import ListLoader, config, mostly_slow, networks

CrossBatchKD = distiller_dict["CROSSBATCH_KD"]
PLAIN = ("SOLVER.CHANNELS_LAST", False, "SOLVER.FOLD_TEACHER", False)
OPTIONS = {
    "channels last": ("SOLVER.CHANNELS_LAST", True),
    "merged teacher": ("SOLVER.FOLD_TEACHER", True),
    "bf16": ("SOLVER.AMP", "bf16"),
    "defaults": ("SOLVER.CHANNELS_LAST", True, "SOLVER.FOLD_TEACHER", True),
}
# Many processors emulate bf16, and take eight times as long; there test_fleet.py trains in it.
IN_HARDWARE = ("bf16",) if precision.has_native_bf16(torch.device("cpu")) else ()
EMULATED_IS_SLOW = () if IN_HARDWARE else pytest.mark.slow


def unlike_new(network: nn.Module) -> nn.Module:
    """``network`` in eval mode, with BatchNorms as a training leaves them."""
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean, std=0.1)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
            nn.init.uniform_(m.weight, 0.5, 1.2)
            nn.init.normal_(m.bias, std=0.1)
    return network.eval()


def batch_norms(network: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())


# ---- the merged teacher -------------------------------------------------------------------

FAMILIES = {"cifar100": cifar_model_dict, "tiny_imagenet": tiny_imagenet_model_dict}
FAMILIES["imagenet"] = imagenet_model_dict
# Each network once, although two data sets may share it.
TEACHERS = {
    (entry[0] if isinstance(entry, tuple) else entry): (data, name)
    for data, family in reversed(FAMILIES.items())
    for name, entry in family.items()
}.values()


@pytest.mark.parametrize(
    "teacher",
    mostly_slow(
        [f"{data} {name}" for data, name in TEACHERS],
        *(f"cifar100 {name}" for name in ("resnet8", "resnet8x4", "wrn_16_1", "vgg8", "ShuffleV1")),
        *("cifar100 ShuffleV2", "cifar100 ResNet50", "tiny_imagenet MobileNetV2"),
        *("imagenet ResNet18", "imagenet MobileNetV1"),
    ),
)
def test_merged_teacher_has_the_same_logits_and_features(teacher):
    data, name = teacher.split()
    entry = model_dict_for(data)[name]
    build = entry[0] if isinstance(entry, tuple) else entry
    network = unlike_new(build(num_classes=10)).double()
    state = copy.deepcopy(network.state_dict())
    image = torch.randn(1, 3, 32 if data == "cifar100" else 64, 32 if data == "cifar100" else 64)
    folded = fold_batchnorm(network, image.double())
    with torch.no_grad():
        (logits, features), (merged_logits, merged) = (n(image.double()) for n in (network, folded))
    assert features.keys() == merged.keys()
    pairs = zip(tree_leaves([logits, features]), tree_leaves([merged_logits, merged]), strict=True)
    assert all((a - b).abs().max() <= 1e-11 * a.abs().max() for a, b in pairs)
    # A wide residual network's block begins with a BatchNorm: that one has no convolution.
    left = batch_norms(folded)
    assert left == (batch_norms(network) // 2 + 1 if name.startswith("wrn") else 0)
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())


class Shared(nn.Module):
    """One convolution whose BatchNorm may be merged, and one that something else uses, too."""

    def __init__(self, use: str) -> None:
        super().__init__()
        self.use = use
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        before = self.conv2(x)
        after = self.bn2(before)
        if self.use == "skip":
            after = after + before
        if self.use == "in place":
            before.relu_()
        if self.use == "twice":
            after = self.bn2(after)
        feats = [before] if self.use == "feature" else [x]
        return after.mean((2, 3)), {"feats": feats}


@pytest.mark.parametrize("use", ["skip", "in place", "twice", "feature"])
def test_what_another_part_sees_is_not_merged(use):
    network = unlike_new(Shared(use))
    image = torch.randn(1, 3, 5, 5)
    assert foldable_pairs(network, image) == [("conv1", "bn1")]
    with torch.no_grad():
        expected, found = network(image), fold_batchnorm(network, image)(image)
    assert torch.allclose(expected[0], found[0], atol=1e-5)
    assert torch.allclose(expected[1]["feats"][0], found[1]["feats"][0], atol=1e-5)


def test_shared_network_without_sharing_is_merged_whole():
    assert len(foldable_pairs(unlike_new(Shared("")), torch.randn(1, 3, 5, 5))) == 2


def test_batch_norm_of_batch_statistics_is_not_merged():
    assert foldable_pairs(Shared("").train(), torch.randn(2, 3, 5, 5)) == []


def test_teacher_that_is_loaded_later_is_merged_again():
    network, other = (unlike_new(Shared("")) for _ in range(2))
    image = torch.randn(2, 3, 5, 5)
    run = FrozenTeacher(network, fold=True, bf16=False)
    first, _ = run(image)
    network.load_state_dict(other.state_dict())
    second, _ = run(image)
    assert not torch.allclose(first, second)
    assert torch.allclose(second, other(image)[0], atol=1e-5)


def test_teacher_in_train_mode_runs_as_it_is(tmp_path):
    """OFD's teacher normalises by batch statistics, and its running ones drift."""
    student, teacher = (cifar_model_dict[n][0](num_classes=5) for n in ("resnet8", "resnet14"))
    distiller = OFD(student, unlike_new(teacher), config(tmp_path))
    precision.prepare(distiller, config(tmp_path), torch.device("cpu"))
    before = teacher.bn1.running_mean.clone()
    distiller.train()
    distiller.forward_teacher(torch.randn(4, 3, 32, 32))
    assert not torch.equal(before, teacher.bn1.running_mean)


# ---- short trainings ----------------------------------------------------------------------


def trained(tmp_path, *opts, epochs: int = 2, size: int = 4, resume: bool = False):
    """A cross-batch trainer of resnet8 by resnet14 after ``epochs`` epochs of four batches."""
    cfg = config(tmp_path, "SOLVER.EPOCHS", epochs, *opts)
    torch.manual_seed(0)
    student, teacher = (cifar_model_dict[n][0](num_classes=10) for n in ("resnet8", "resnet14"))
    data, auxiliary = (
        [(images(s + i, size, 32), labels(s + 50 + i, size, 10)) for i in range(4)]
        for s in (0, 100)
    )
    data = ListLoader([(*pair, torch.arange(size)) for pair in data], auxiliary)
    trainer = CrossBatchTrainer(
        "run", CrossBatchKD(student, unlike_new(teacher), cfg), data, data[:1], cfg
    )
    trainer.train(resume=resume, allow_changes=resume)
    return trainer


def weights(trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.distiller.student.parameters()])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Of a batch size the training with everything off: the student before, after, its trainer."""
    torch.manual_seed(0)
    start = cifar_model_dict["resnet8"][0](num_classes=10)
    start = torch.cat([p.detach().flatten() for p in start.parameters()])

    @cache
    def train(size):
        trainer = trained(tmp_path_factory.mktemp("plain"), *PLAIN, size=size)
        return start, weights(trainer), trainer

    return train


@pytest.mark.parametrize(
    ("option", "bound", "size"),
    [
        pytest.param("channels last", 5e-4, 16, marks=pytest.mark.slow),
        pytest.param("merged teacher", 1e-4, 16, marks=pytest.mark.slow),
        ("defaults", 5e-4, 16),
        pytest.param("bf16", 0.06, 4, marks=EMULATED_IS_SLOW),
    ],
)
def test_training_ends_near_the_plain_one(tmp_path, plain, option, bound, size):
    """The distance of the students after eight steps, relative to the way they have gone."""
    start, end, plain_trainer = plain(size)
    trainer = trained(tmp_path, *PLAIN, *OPTIONS[option], size=size)
    off = (weights(trainer) - end).norm() / (end - start).norm()
    assert 0 < off < bound
    expected, found = (t.distiller.state_dict() for t in (plain_trainer, trainer))
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
        k: (v.shape, v.dtype) for k, v in expected.items()
    }


@pytest.mark.parametrize("option", mostly_slow(OPTIONS, "defaults", *IN_HARDWARE))
def test_resumed_run_ends_with_the_same_bits(tmp_path, option):
    opts = (*PLAIN, *OPTIONS[option], "CROSSBATCH.REFERENCE", "previous")
    size = 2 if option == "bf16" else 4
    whole = trained(tmp_path / "whole", *opts, size=size)
    trained(tmp_path / "part", *opts, epochs=1, size=size)
    part = trained(tmp_path / "part", *opts, size=size, resume=True)
    assert torch.equal(weights(whole), weights(part))


def test_students_file_loads_into_a_plain_network(tmp_path):
    trainer = trained(tmp_path, "SOLVER.AMP", "bf16", epochs=1)
    saved = torch.load(trainer.log_path / "student_latest", weights_only=True)["model"]
    network = cifar_model_dict["resnet8"][0](num_classes=10)
    network.load_state_dict(saved)
    image = images(0, 4, 32)
    trainer.distiller.eval()
    with torch.no_grad():
        assert torch.allclose(network.eval()(image)[0], trainer.distiller(image=image), atol=1e-5)


def test_gradients_lie_in_memory_as_their_parameters_do(tmp_path):
    """Otherwise every update would walk through memory in two orders."""
    trainer = trained(tmp_path, epochs=1)
    parameters = list(trainer.distiller.student.parameters())
    assert any(not p.is_contiguous() for p in parameters)
    assert all(p.grad.stride() == p.stride() for p in parameters)


# ---- bf16 ---------------------------------------------------------------------------------


def test_networks_compute_in_bf16_and_losses_in_single_precision(tmp_path):
    cfg = config(tmp_path, "SOLVER.AMP", "bf16")
    student, teacher = (cifar_model_dict[n][0](num_classes=10) for n in ("resnet8", "resnet14"))
    distiller = KD(student, teacher, cfg)
    precision.prepare(distiller, cfg, torch.device("cpu"))
    seen = []
    student.layer1.register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    image, target = torch.randn(4, 3, 32, 32), torch.arange(4)
    logits, losses = distiller.train()(image=image, target=target)
    teacher_logits, features = distiller.forward_teacher(image)
    assert seen == [torch.bfloat16]
    single = [logits, teacher_logits, *losses.values(), *tree_leaves(dict(features))]
    assert {t.dtype for t in single} == {torch.float32}
    sum(losses.values()).backward()
    assert {p.grad.dtype for p in student.parameters()} == {torch.float32}
    # Validation measures the network that is saved.
    distiller.eval()(image=image)
    assert seen[1:] == [torch.float32]
    assert not torch.is_autocast_enabled("cpu")


def test_failed_forward_pass_leaves_bf16_off(tmp_path):
    cfg = config(tmp_path, "SOLVER.AMP", "bf16")
    distiller = KD(*networks(), cfg)
    precision.prepare(distiller, cfg, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="channels"):
        distiller.train()(image=torch.randn(2, 5, 8, 8), target=torch.arange(2))
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(("value", "message"), [("fp16", "one of off, bf16"), (True, "text")])
def test_other_modes_are_refused(value, message):
    cfg = CFG.clone()
    with pytest.raises(ConfigError, match=message):
        cfg.merge_from_list(["SOLVER.AMP", value])
        check_config(cfg)


@pytest.mark.filterwarnings("default:SOLVER.AMP bf16")
def test_bf16_that_a_cpu_only_emulates_is_said_and_auto_chooses(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    for native in (False, True):
        monkeypatch.setattr(precision, "has_native_bf16", lambda device, n=native: n)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            precision.check_amp("bf16", cpu)
            precision.check_amp("auto", cpu)
            precision.check_amp("off", cpu)
        found = [str(w.message) for w in said]
        assert len(found) == (not native)
        assert all("8 times" in text and "auto" in text for text in found)
        assert precision.uses_bf16("auto", cpu) is native
        assert precision.uses_bf16("bf16", cpu)
        assert not precision.uses_bf16("off", cpu)


def test_device_without_bf16_is_refused_with_one_line(monkeypatch):
    monkeypatch.setattr(precision, "_has_bf16", lambda device: False)
    cfg = CFG.clone()
    cfg.merge_from_list(["SOLVER.AMP", "bf16", "SOLVER.DEVICE", "cpu"])
    with pytest.raises(ConfigError, match="SOLVER.AMP bf16 is not supported") as caught:
        check_config(cfg)
    assert "\n" not in str(caught.value)


def test_compilation_without_a_compiler_is_refused_with_one_line(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    cfg = CFG.clone()
    cfg.merge_from_list(["SOLVER.COMPILE", True, "SOLVER.DEVICE", "cpu"])
    with pytest.raises(ConfigError, match=r"SOLVER.COMPILE needs a C\+\+ compiler"):
        check_config(cfg)


def test_yamls_bare_off_is_the_mode_off(tmp_path):
    (tmp_path / "run.yaml").write_text("SOLVER:\n  AMP: off\n")
    cfg = CFG.clone()
    cfg.merge_from_file(tmp_path / "run.yaml")
    assert cfg.SOLVER.AMP == "off"


# ---- compilation, memory ------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
def test_compiled_teacher_is_the_same_function_for_every_batch_size():
    network = unlike_new(Shared(""))
    run = FrozenTeacher(network, fold=True, bf16=False, compiled=True)
    for size in (4, 3, 4):
        image = torch.randn(size, 3, 8, 8)
        logits, features = run(image)
        with torch.no_grad():
            expected = network(image)
        pairs = zip(tree_leaves([logits, features]), tree_leaves(list(expected)), strict=True)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)


def count_faults(way: str, found) -> None:
    """Puts whether freed memory is kept, and the page faults of work that was done before."""
    kept = way == "keep" and keep_freed_memory()

    def work() -> None:
        for _ in range(5):
            kept_alive = [torch.ones(1 << 20) for _ in range(8)]
            del kept_alive

    work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    found.put((kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of Linux's glibc")
def test_freed_memory_is_not_mapped_again():
    found = CONTEXT.SimpleQueue()
    numbers = []
    for way in ("default", "keep"):  # what one sets, its process keeps
        process = CONTEXT.Process(target=count_faults, args=(way, found))
        process.start()
        process.join(100)
        assert process.exitcode == 0
        numbers.append(found.get())
    (_, default), (kept, faults) = numbers
    if not kept:
        pytest.skip("no glibc")
    assert faults < max(100, default / 10)
