"""Networks of torchvision, timm and files: their features, weights, input, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mdistiller.commands import eval as evaluation
from mdistiller.commands import export
from mdistiller.commands.train import main as train
from mdistiller.dataset import build_model, get_dataset, load_teacher
from mdistiller.engine.cfg import CFG
from mdistiller.engine.check import check_config
from mdistiller.engine.runtime.precision import FrozenTeacher
from mdistiller.engine.settle import settle_statistics
from mdistiller.engine.teacher import build_teacher
from mdistiller.errors import ConfigError, MdistillerError
from mdistiller.models import Foreign
from mdistiller.models.foreign import adapt_input, bare
from mdistiller.models.heads import head_of
from mdistiller.weighting import frozen_statistics

from . import file_network
from .networks_table import FILE, WORKS, cells_on_the_page, on_the_page, rows, shortened, tables

ROOT = Path(__file__).resolve().parents[1]
SMALL, QUICK = f"{FILE}:small", f"{FILE}:quick"
RESNET, TIMM = "torchvision:resnet18", "timm:test_resnet"


def made(name, size=32, features=()):
    torch.manual_seed(0)
    return build_model("digits", name, 10, input_size=size, features=features)


def count_hooks(network):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def config(*opts):
    cfg = CFG.clone()
    cfg.merge_from_list(["DATASET.TYPE", "digits", "SOLVER.DEVICE", "cpu", *opts])
    return cfg


def line_of(function, *args, **kwargs):
    with pytest.raises(MdistillerError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_methods_of_every_need_on_every_kind_are_as_the_page_says():
    pytest.importorskip("timm")
    for method in ("AT", "CATKD", "KD", "OFD", "RKD"):
        assert {k: v for k, v in cells_on_the_page().items() if k[1] == method} == {
            (role, method, kind): text if text == WORKS else shortened(text)
            for role, kind, text in rows(method)
        }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_method_on_every_kind_is_as_the_page_says():
    pytest.importorskip("timm")
    assert on_the_page() == tables()


# ---- features ----------------------------------------------------------------------------------


def test_features_are_what_the_network_computes():
    network = made(RESNET).train()
    image = torch.randn(3, 3, 32, 32)
    alone = copy.deepcopy(network.net)
    logits, features = network(image)
    net = alone
    x = [net.relu(net.bn1(net.conv1(image)))]
    x.append(net.layer1(net.maxpool(x[0])))
    for stage in (net.layer2, net.layer3, net.layer4):
        x.append(stage(x[-1]))
    pooled = net.avgpool(x[-1]).flatten(1)
    assert torch.equal(logits, net.fc(pooled))
    assert torch.equal(features["pooled_feat"], pooled)
    # Of 32 pixels, layer4 has one left.
    assert len(features["feats"]) == len(features["preact_feats"]) == 4
    for found, before, expected in zip(
        features["feats"], features["preact_feats"], x, strict=False
    ):
        assert torch.equal(found, expected)
        assert torch.equal(F.relu(before), expected) and (before < 0).any()
    assert [bn.num_features for bn in network.get_bn_before_relu()] == [64, 128, 256]


def test_named_features_and_a_module_that_is_called_twice():
    network = made(SMALL, features=("norm1", "same", "conv3")).eval()
    net, image = network.net, torch.randn(2, 3, 32, 32)
    _, features = network(image)
    norm1 = net.norm1(net.conv1(image))
    second = F.relu(net.norm2(net.conv2(F.relu(norm1))))
    twice = net.same(net.same(second))
    expected = [norm1, twice, net.conv3(second + F.relu(twice))]
    assert all(map(torch.equal, features["feats"], expected))
    assert "preact_feats" not in features


@pytest.mark.filterwarnings("ignore")
def test_the_map_that_the_classifier_pools():
    pytest.importorskip("timm")
    image = torch.randn(2, 3, 32, 32)
    for name, module in ((TIMM, "layer4"), (SMALL, "norm3"), (RESNET, "layer4")):
        network = made(name).eval()
        logits, features = network(image)
        assert network.plan.pooled.module.startswith(module)
        found, head = features["pooled_map"], head_of(network)
        torch.testing.assert_close(found.mean((2, 3)), features["pooled_feat"])
        maps = F.conv2d(found, head.weight[..., None, None])
        torch.testing.assert_close(maps.mean((2, 3)) + head.bias, logits)
    # Layers between the pooling and the classifier, or none to classify with.
    for name in ("torchvision:mobilenet_v3_small", "torchvision:squeezenet1_1"):
        assert "pooled_map" not in made(name)(image)[1]


def test_tokens_are_no_maps_and_channels_come_first():
    swin = made("torchvision:swin_t", 64)
    logits, features = swin(torch.randn(2, 3, 64, 64))
    assert [tuple(f.shape[1:]) for f in features["feats"]] == [
        (96, 16, 16),
        (192, 8, 8),
        (384, 4, 4),
        (768, 2, 2),
    ]
    assert features["pooled_feat"].shape == (2, 768)


def test_a_map_that_is_changed_later_on_is_kept_as_it_was():
    class InPlace(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, stride=2)
            self.head = nn.Linear(4, num_classes)

        def forward(self, x):
            x = self.a(x)
            x += 1
            return self.head(self.b(x).mean((2, 3)))

    network = Foreign(InPlace(10), "mine", 32).eval()
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(network(image)[1]["feats"][0], network.net.a(image))


def test_a_compiler_leaves_the_hooks_to_python():
    """Also of a network that comes out of a file, for which nothing was constructed."""
    network = pickle.loads(pickle.dumps(made(SMALL))).eval()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(network, backend=backend)
    for image in torch.randn(2, 1, 3, 32, 32):
        for found, expected in zip(
            compiled(image)[1]["feats"], network(image)[1]["feats"], strict=True
        ):
            assert torch.equal(found, expected)
    assert graphs == []


def test_no_hook_and_no_tensor_outlives_a_forward_pass():
    network = made(SMALL).train()
    image = torch.randn(2, 3, 32, 32)
    before = pickle.dumps(network.net.state_dict()), count_hooks(network), set(vars(network))
    expected = network(image)[0]
    assert (count_hooks(network), set(vars(network))) == before[1:]
    with pytest.raises(RuntimeError):
        network(torch.randn(2, 5, 32, 32))
    assert count_hooks(network) == before[1]
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(other(image)[0], expected)
        assert other(image)[1]["feats"][0].shape == (2, 8, 32, 32)
        other.net.head.bias.data.add_(1)
    assert torch.equal(network(image)[0], expected)
    with pytest.raises(ValueError, match="more than 1 value"):
        made("torchvision:mobilenet_v3_small").train().net(image[:1])
    assert made("torchvision:mobilenet_v3_small").train()(image[:1])[0].isfinite().all()
    buffers = [b.clone() for b in network.buffers()]
    with frozen_statistics(network):
        network(image)
    assert all(map(torch.equal, buffers, network.buffers()))


@pytest.mark.parametrize("name", [RESNET, SMALL])
def test_a_folded_teacher_answers_alike(name):
    network, image = made(name).eval(), torch.randn(2, 3, 32, 32)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    logits, features = network(image)
    folded, others = FrozenTeacher(network, fold=True, bf16=False)(image)
    torch.testing.assert_close(folded, logits, rtol=1e-3, atol=1e-4)
    assert features.keys() == others.keys()
    for key in ("feats", "pooled_feat"):
        torch.testing.assert_close(others[key], features[key], rtol=1e-3, atol=1e-4)


# ---- weights -----------------------------------------------------------------------------------


def test_the_state_dict_is_the_bare_networks(tmp_path):
    from torchvision.models import resnet18

    network, plain = made(RESNET), resnet18(num_classes=10)
    assert list(network.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(network.state_dict())
    whole = nn.ModuleDict({"student": network})
    assert list(whole.state_dict()) == [f"student.{k}" for k in plain.state_dict()]
    nn.init.ones_(plain.fc.bias)
    network.load_state_dict(plain.state_dict())
    assert (network.net.fc.bias == 1).all()
    other = nn.ModuleDict({"student": made(RESNET)})
    other.load_state_dict(whole.state_dict())
    assert (other["student"].net.fc.bias == 1).all()
    torch.save({"state_dict": plain.state_dict()}, tmp_path / "theirs.pth")
    loaded = load_teacher("digits", RESNET, 10, str(tmp_path / "theirs.pth"))
    assert (loaded.net.fc.bias == 1).all() and not loaded.training
    message = line_of(load_teacher, "digits", RESNET, 7, str(tmp_path / "theirs.pth"))
    assert "the file has 10 classes, the network 7" in message


def test_published_weights(monkeypatch):
    pytest.importorskip("timm")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in (TIMM, RESNET):
        message = line_of(load_teacher, "digits", name, 10, "pretrained")
        assert "are of 1000 classes, the data set has 10" in message
    assert "no published weights" in line_of(load_teacher, "digits", SMALL, 10, "pretrained")
    import timm.models._builder as builder

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(builder, "load_state_dict_from_hf", unreachable)
    message = line_of(load_teacher, "digits", TIMM, 1000, "pretrained")
    assert "no route to host" in message and "TEACHER_CKPT" in message
    message = line_of(load_teacher, "digits", TIMM, 10)
    assert "DISTILLER.TYPE NONE" in message and "pretrained" in message


def test_a_network_with_features_of_its_own_is_taken_as_it_is():
    network = made(f"{FILE}:own_features")
    assert not isinstance(network, Foreign) and bare(network) is network


# ---- the teacher's input -----------------------------------------------------------------------


def test_the_teacher_sees_images_as_it_was_trained_to(tmp_path):
    name = tmp_path / "teacher"
    torch.save(made(SMALL).state_dict(), name)
    opts = ("DISTILLER.TEACHER", SMALL, "DISTILLER.TEACHER_CKPT", str(name))
    other = ("DISTILLER.TEACHER_MEAN", "[0.5, 0.4, 0.3]", "DISTILLER.TEACHER_STD", "[0.2, 1, 0.3]")
    loader = get_dataset(config())[1]
    image, _ = next(iter(loader))
    plain = build_teacher(config(*opts), 10, loader)
    pixels = image * torch.tensor(loader.std).view(3, 1, 1)
    pixels = pixels + torch.tensor(loader.mean).view(3, 1, 1)
    assert pixels.min() > -1e-5 and pixels.max() < 1 + 1e-5
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.2, 1.0, 0.3]))
    teacher = build_teacher(config(*opts, *other, "DISTILLER.TEACHER_SIZE", 48), 10, loader)
    wanted = F.interpolate((pixels - mean) / std, (48, 48), mode="bilinear", antialias=True)
    logits, features = teacher(image)
    torch.testing.assert_close(logits, plain(wanted)[0], rtol=1e-3, atol=1e-4)
    assert features["feats"][0].shape[2:] == (48, 48)
    # A copy has an adapter of its own; the weights are the bare network's.
    assert torch.equal(copy.deepcopy(teacher)(image)[0], logits)
    assert list(teacher.state_dict()) == list(plain.state_dict())
    folded, _ = FrozenTeacher(teacher, fold=True, bf16=False)(image)
    torch.testing.assert_close(folded, logits, rtol=1e-3, atol=1e-4)
    # A network of this project's, too.
    own = build_model("digits", "resnet8", 10).eval()
    before, keys = own(wanted)[0], list(own.state_dict())
    adapt_input(own, loader, (0.5, 0.4, 0.3), (0.2, 1.0, 0.3), 48)
    torch.testing.assert_close(own(image)[0], before, rtol=1e-3, atol=1e-4)
    assert list(own.state_dict()) == keys
    # Published weights say what they were trained with.
    plain.expects = (0.5,) * 3, (0.5,) * 3
    expected = plain((pixels - 0.5) / 0.5)[0]
    adapt_input(plain, loader)
    torch.testing.assert_close(plain(image)[0], expected, rtol=1e-3, atol=1e-4)
    assert "mean and std" in line_of(adapt_input, plain, object())


# ---- what is refused ---------------------------------------------------------------------------

REFUSED = {
    "torchvison:resnet18": "unknown library 'torchvison'; did you mean torchvision:resnet18?",
    "torchvision:resnet19": "torchvision has no network 'resnet19'; did you mean",
    "timm:resnet10": "timm has no network 'resnet10'; did you mean timm:resnet10t?",
    "nowhere.py:Net": "no such file",
    f"{FILE}:smal": "did you mean",
}


def test_names_that_do_not_exist(monkeypatch):
    pytest.importorskip("timm")
    for name, words in REFUSED.items():
        message = line_of(check_config, config("DISTILLER.STUDENT", name))
        assert "DISTILLER.STUDENT: " in message
        assert all(part in message for part in words.split("; ")), message
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = line_of(check_config, config("DISTILLER.STUDENT", TIMM))
    assert "run `pip install timm`" in message


def test_networks_that_cannot_be_used():
    broken = FILE
    assert "must take num_classes" in line_of(made, f"{broken}:without_classes")
    assert "must return a torch.nn.Module" in line_of(made, f"{broken}:no_network")
    assert "cannot take images of 32x32" in line_of(made, f"{broken}:only_large")
    made(f"{broken}:only_large", 64)
    message = line_of(made, RESNET, features=("layer1", "layr2"))
    assert message.startswith("DISTILLER.FEATURES.STUDENT") and "did you mean layer2?" in message
    assert "gives no map" in line_of(made, RESNET, features=("layer1", "fc"))
    assert "two modules or more" in line_of(made, RESNET, features=("layer1",))
    message = line_of(check_config, config("DISTILLER.FEATURES.STUDENT", "[layer1, layer2]"))
    assert "leave it empty" in message
    with pytest.raises(ConfigError, match="three numbers"):
        check_config(config("DISTILLER.TEACHER_MEAN", "[0.5]"))


# ---- the whole way -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cfg", ["crossbatch_kd", pytest.param("kd", marks=pytest.mark.slow)])
def test_students_learn_and_are_exported_without_the_wrapper(tmp_path, capsys, cfg):
    timm = pytest.importorskip("timm")
    shared = [
        *("SOLVER.EPOCHS", "2", "SOLVER.LR_DECAY_STAGES", "[1]", "SOLVER.BATCH_SIZE", "16"),
        *("DATASET.SUBSET", "640"),
        *("LOG.PREFIX", str(tmp_path), "EXPERIMENT.PROJECT", "p", "SOLVER.DEVICE", "cpu"),
    ]

    def run(cfg, *opts):
        file = str(ROOT / f"configs/digits/{cfg}.yaml")
        train(["--cfg", file, "EXPERIMENT.NAME", cfg, *shared, *opts])
        folder = tmp_path / "p" / cfg
        return folder / "student_latest", json.loads((folder / "result.json").read_text())

    teacher, result = run("vanilla", "DISTILLER.STUDENT", TIMM)
    assert result["last_top1"] > 60
    capsys.readouterr()
    pair = ("DISTILLER.TEACHER", TIMM, "DISTILLER.TEACHER_CKPT", str(teacher))
    student, result = run(cfg, *pair, "DISTILLER.STUDENT", QUICK)
    assert result["last_top1"] > 80
    assert "BatchNorm momentum 0.01 raised to 0.1" in capsys.readouterr().out
    evaluation.main(["-m", QUICK, "-c", str(student), "-d", "digits", "--device", "cpu"])
    assert f"top-1 {result['last_top1']:.2f}" in capsys.readouterr().out
    out = ("--out", str(tmp_path), "--format", "state_dict")
    image = torch.randn(5, 3, 32, 32)
    for name, ckpt, plain, *others in (
        (QUICK, student, file_network.quick(10), "torch_export"),
        (TIMM, teacher, timm.create_model("test_resnet", num_classes=10)),
    ):
        export.main(["-m", name, "-c", str(ckpt), "-d", "digits", *out, *others])
        network = load_teacher("digits", name, 10, str(ckpt))
        file = tmp_path / f"{name.rpartition(':')[2]}_state_dict.pth"
        plain.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(plain.eval()(image), network(image)[0])
    # Loaded and compared with the network before it has got this name.
    assert (tmp_path / "quick.pt2").exists()


def test_momentum_is_raised_where_a_run_is_short_for_it(capsys):
    def momenta(steps, *found):
        network = nn.Sequential(*(nn.BatchNorm2d(1, momentum=m) for m in found))
        settle_statistics(network, steps)
        return [m.momentum for m in network]

    assert momenta(200, 0.01, 0.1, 0.3, None, 0.0) == [0.1, 0.1, 0.3, None, 0.0]
    assert momenta(1000, 0.01, 0.05) == [0.02, 0.05]
    assert "momentum 0.01 raised to 0.02; in 1000 steps" in capsys.readouterr().out
    assert momenta(2000, 0.01) == [0.01]
    assert momenta(100, 0.1) == [0.1]
    assert not capsys.readouterr().out.count("1000")
