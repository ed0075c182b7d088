"""All networks against the golden facts: names, state dicts, initial weights, values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mdistiller.errors import CheckpointError, UnknownNameError
from mdistiller.listing import count_macs
from mdistiller.models import cifar_model_dict, imagenet_model_dict, tiny_imagenet_model_dict
from mdistiller.models._common import average_pool, channel_shuffle
from mdistiller.models.cifar.convnet import ConvNet
from mdistiller.models.cifar.resnet import ResNet as CifarResNet
from mdistiller.models.cifar.wrn import WideResNet
from tests.golden_rules import fill, golden_json, golden_npz, images
from tests.toys import mostly_slow

GOLDEN = golden_json("models")
MODELS = GOLDEN["models"]
FORWARD = golden_json("forward")["models"]
REGISTRIES = {
    "cifar": cifar_model_dict,
    "tiny_imagenet": tiny_imagenet_model_dict,
    "imagenet": imagenet_model_dict,
}
RTOL = 1e-9
# One of each family (kind of block, stem, pooling).
FAMILIES = ("cifar/resnet8x4", "cifar/ResNet18", "cifar/ResNet50", "cifar/wrn_16_2", "cifar/vgg8")
FAMILIES += ("cifar/MobileNetV2", "cifar/ShuffleV1", "cifar/ShuffleV2")
FAMILIES += ("tiny_imagenet/MobileNetV2", "imagenet/ResNet18", "imagenet/MobileNetV1")

# This project's own: of no golden fact.
CONVNETS = {"convnet12": (85_738, 486_912), "convnet48": (498_190, 5_928_960)}

# Beyond the one of each family only: these take most of the time.
LARGE = {k for k, v in MODELS.items() if v["num_parameters"] > 4e6} - set(FAMILIES)
# The same networks for larger images.
LARGE |= {k.replace("cifar/", "tiny_imagenet/") for k in LARGE}


def small_first(keys: Iterable[str]) -> list[Any]:
    """``keys`` for parametrize, those in :data:`LARGE` with make test-slow only."""
    return mostly_slow(keys := list(keys), *(k for k in keys if k not in LARGE))


every_model = pytest.mark.parametrize("key", MODELS)
# ResNet50 takes as long as all others together; its values are looked at in every run.
every_family = pytest.mark.parametrize(
    "key", mostly_slow(FAMILIES, *(k for k in FAMILIES if k != "cifar/ResNet50"))
)


def build(key: str, device: str = "cpu") -> nn.Module:
    registry, name = key.split("/")
    entry = REGISTRIES[registry][name]
    constructor = entry if registry == "imagenet" else entry[0]
    with torch.device(device):
        return constructor(num_classes=GOLDEN["num_classes"][registry])


def build_filled(key: str) -> nn.Module:
    """The network in float64 with the golden contents, without drawing initial weights."""
    template = {k: torch.empty(s, dtype=getattr(torch, d)) for k, s, d in MODELS[key]["state_dict"]}
    contents = {k: v.double() if v.is_floating_point() else v for k, v in fill(template).items()}
    net = build(key, "meta")
    net.load_state_dict(contents, assign=True)
    return net


def feature_maps(features: dict[str, Any]) -> dict[str, Tensor]:
    """All features by the names of forward.json."""
    maps = {"pooled_feat": features["pooled_feat"]}
    for kind in ("feats", "preact_feats"):
        maps |= {f"{kind}.{i}": f for i, f in enumerate(features.get(kind, ()))}
    return maps


def assert_close(found: Tensor, expected: np.ndarray) -> None:
    """To RTOL of the largest value, as the golden README says."""
    assert found.shape == expected.shape
    assert np.abs(found.numpy() - expected).max() <= RTOL * np.abs(expected).max()


# --- registries -------------------------------------------------------------------------------


@pytest.mark.parametrize("registry", REGISTRIES)
def test_upstream_names_come_first(registry: str) -> None:
    order = GOLDEN["registry_order"][registry]
    assert list(REGISTRIES[registry])[: len(order)] == order


def test_cifar_registers_also_what_upstream_only_defines_and_what_it_has_not() -> None:
    more = [v["name"] for v in MODELS.values() if not v["in_registry"]]
    assert more == ["ResNet34", "ResNet101", "ResNet152"]
    assert list(cifar_model_dict) == GOLDEN["registry_order"]["cifar"] + [
        "ResNet34",
        "ResNet101",
        "ResNet152",
        *CONVNETS,
    ]


@pytest.mark.parametrize("registry", ["cifar", "tiny_imagenet"])
def test_checkpoint_paths(registry: str) -> None:
    expected = {
        v["name"]: v["teacher_checkpoint"]
        for v in MODELS.values()
        if v["registry"] == registry and v["in_registry"]
    }
    paths = {name: path for name, (_, path) in REGISTRIES[registry].items()}
    assert {name: paths[name] for name in expected} == expected
    others = {name: path for name, path in paths.items() if name not in expected and path}
    resnet101 = "download_ckpts/cifar_teachers/ResNet101_vanilla/ckpt_epoch_240.pth"
    assert others == ({"ResNet101": resnet101} if registry == "cifar" else {})


def test_tiny_imagenet_has_every_cifar_name() -> None:
    assert set(tiny_imagenet_model_dict) == set(cifar_model_dict)


@pytest.mark.parametrize("registry", REGISTRIES)
def test_unknown_name_is_explained(registry: str) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'ResNet18'"):
        REGISTRIES[registry]["resnet_18"]


@pytest.mark.parametrize("depth", [-4, 2, 21])
def test_impossible_depth_of_a_residual_network(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"6 n \+ 2 with n > 0, got {depth}"):
        CifarResNet(depth)


@pytest.mark.parametrize("depth", [-2, 4, 39])
def test_impossible_depth_of_a_wide_residual_network(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"6 n \+ 4 with n > 0, got {depth}"):
        WideResNet(depth, 2)


# --- structure --------------------------------------------------------------------------------


@every_model
def test_state_dict_is_upstreams(key: str) -> None:
    net = build(key, "meta")
    own = [[k, list(v.shape), str(v.dtype)[6:]] for k, v in net.state_dict().items()]
    assert own == MODELS[key]["state_dict"]
    assert sum(p.numel() for p in net.parameters()) == MODELS[key]["num_parameters"]
    assert sum(b.numel() for b in net.buffers()) == MODELS[key]["num_buffers_elements"]
    buffers = {k for k, _ in net.named_buffers()}
    assert [k for k, _ in net.named_parameters()] == [k for k, *_ in own if k not in buffers]


@every_model
def test_helper_methods_are_upstreams(key: str) -> None:
    net = build(key, "meta")
    names = {id(module): name for name, module in net.named_modules()}
    methods = MODELS[key]["methods"]
    if methods["get_stage_channels"]["exists"]:
        assert net.get_stage_channels() == methods["get_stage_channels"]["value"]
    if "items" in methods["get_bn_before_relu"]:
        found = net.get_bn_before_relu()
        expected = methods["get_bn_before_relu"]["items"]
        assert [names[id(bn)] for bn in found] == [e["module"] for e in expected]
        assert [type(bn) for bn in found] == [nn.BatchNorm2d] * len(expected)
    if methods["get_feat_modules"]["exists"]:
        found = net.get_feat_modules()
        assert isinstance(found, nn.ModuleList)
        assert [type(m).__name__ for m in found] == methods["get_feat_modules"]["classes"]
        assert all(id(m) in names for m in found)
    if MODELS[key]["has_encode"]:
        assert callable(net.encode)


@pytest.mark.parametrize("key", small_first(MODELS))
def test_initial_weights(key: str) -> None:
    """As statistics: ours and the golden ones are two samples of the same distribution."""
    torch.manual_seed(1)
    golden = golden_json("init_stats")["models"][key]["parameters"]
    for name, parameter in build(key).named_parameters():
        if name not in golden:  # a batch norm's
            assert bool((parameter == (1 if name.endswith("weight") else 0)).all()), name
            continue
        mean, std, largest = golden[name]
        n = parameter.numel()
        ours = parameter.detach().double()
        spread = math.sqrt(2 / n)  # of the difference of two means, in deviations
        assert abs(ours.mean().item() - mean) <= 6 * std * spread, name
        # A normal deviation is known to 1 / sqrt(2 n), a uniform one better.
        assert abs(ours.std(correction=0).item() - std) <= 6 * std / math.sqrt(n), name
        if std and n >= 256:  # normal or uniform?
            assert (ours.abs().max().item() > 2 * std) == (largest > 2 * std), name


# --- values -----------------------------------------------------------------------------------


def assert_golden_forward(net: nn.Module, key: str, mode: str, x: Tensor) -> None:
    with torch.no_grad():
        logits, features = net.train(mode == "train")(x)
    assert_close(logits, golden_npz("forward")[f"{key}/{mode}_f64"])
    assert set(features) == set(MODELS[key]["feature_keys"])
    maps = feature_maps(features)
    expected = FORWARD[key][f"{mode}_features_f64"]
    assert set(maps) == set(expected)
    for name, stats in expected.items():
        found, rms = maps[name], stats["l2"] / math.sqrt(maps[name].numel())
        assert list(found.shape) == stats["shape"], name
        assert abs(found.mean().item() - stats["mean"]) <= RTOL * rms, name
        assert abs(found.std(correction=0).item() - stats["std"]) <= RTOL * rms, name
        assert abs(found.norm().item() - stats["l2"]) <= RTOL * stats["l2"], name
        kind, _, index = name.partition(".")
        nonnegative = MODELS[key]["nonnegative"][kind]
        assert bool((found >= 0).all()) == (nonnegative[int(index)] if index else nonnegative), name


def assert_golden_statistics(net: nn.Module, key: str) -> None:
    """The batch norms after one forward in train mode."""
    state = net.state_dict()
    for which in ("first", "last"):
        name = FORWARD[key][f"bn_{which}"]
        for short in ("mean", "var"):
            expected = golden_npz("forward")[f"{key}/bn_{which}_{short}_f64"]
            assert_close(state[f"{name}.running_{short}"], expected)
    for short in ("mean", "var"):
        running = [v.flatten() for k, v in state.items() if k.endswith(f"running_{short}")]
        expected = FORWARD[key][f"all_running_{short}_l2_f64"]
        assert abs(torch.cat(running).norm().item() - expected) <= RTOL * expected
    steps = {k: v.item() for k, v in state.items() if k.endswith("num_batches_tracked")}
    assert {k: v for k, v in steps.items() if v != 1} == FORWARD[key][
        "bn_num_batches_tracked_not_1"
    ]


@pytest.mark.parametrize("key", small_first(k for k, v in FORWARD.items() if "error" not in v))
def test_values_are_upstreams(key: str) -> None:
    net = build_filled(key)
    batch, _, size, _ = FORWARD[key]["input_shape"]
    x = images(0, batch, size).double()
    assert_golden_forward(net, key, "eval", x)
    assert_golden_forward(net, key, "train", x)
    assert_golden_statistics(net, key)


@pytest.mark.parametrize("key", small_first(f"tiny_imagenet/{n}" for n in tiny_imagenet_model_dict))
def test_runs_on_64x64(key: str) -> None:
    """Also the networks that upstream cannot run there, with maps twice as large as on 32x32."""
    net, name = build(key).eval(), key.split("/")[1]
    with torch.no_grad():
        logits, features = net(images(1, 1, 64))
        _, small = net(images(1, 1, 32))
    assert logits.shape == (1, 200)
    assert bool(logits.isfinite().all())
    assert features["pooled_feat"].shape == small["pooled_feat"].shape
    expected = [2 * f.shape[-1] for f in small["feats"]]
    if name.startswith("vgg"):
        expected[-1] //= 2  # its last pooling is for large images only
    if name == "MobileNetV2":
        expected = [66, 33, 17, 9, 9]  # its stem pads
    assert [f.shape[-1] for f in features["feats"]] == expected


@every_family
def test_every_parameter_learns_from_logits_and_features(key: str) -> None:
    """Losses on any feature can be differentiated, and what they reach is a whole network."""
    net = build(key).train()
    size = 64 if key.startswith("imagenet") else 32
    logits, features = net(images(2, 2, size))
    logits.square().mean().backward(retain_graph=True)
    assert [n for n, p in net.named_parameters() if p.grad is None] == []
    # A bias before a batch norm has no effect in train mode, so look at the weights.
    weights = {n: p for n, p in net.named_parameters() if n.endswith("weight")}
    assert [n for n, p in weights.items() if not p.grad.any()] == []
    for name, feature in feature_maps(features).items():
        (gradient,) = torch.autograd.grad(
            feature.square().mean(), next(net.parameters()), retain_graph=True
        )
        assert bool(gradient.any()), name


@every_family
def test_same_image_same_features_in_any_batch(key: str) -> None:
    net = build_filled(key).eval()
    x = images(3, 2, 64 if key.startswith("imagenet") else 32).double()
    with torch.no_grad():
        both = feature_maps(net(x)[1])
        one = feature_maps(net(x[1:])[1])
    for name, feature in one.items():
        torch.testing.assert_close(feature, both[name][1:], rtol=1e-9, atol=0.0, msg=name)


# --- single families --------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["cifar/ResNet18", "cifar/ResNet50"])
def test_encode_is_one_stage(key: str) -> None:
    net = build_filled(key).eval()
    with torch.no_grad():
        preact = net(images(4, 1, 32).double())[1]["preact_feats"]
        for idx in (-4, -3, -2, -1):
            assert bool((net.encode(preact[idx - 1], idx) == preact[idx]).all())
    for idx in (-5, 0):
        with pytest.raises(ValueError, match=f"got {idx}"):
            net.encode(preact[0], idx)


@pytest.mark.parametrize(
    "key", [k for k in FAMILIES if "preact_feats" in MODELS[k]["feature_keys"]]
)
def test_bn_before_relu_fits_the_maps(key: str) -> None:
    """OFD needs a batch norm for each channel of the last maps before their ReLU."""
    net = build(key).eval()
    with torch.no_grad():
        maps = net(images(5, 1, 64))[1]["preact_feats"]
    widths = [bn.num_features for bn in net.get_bn_before_relu()]
    assert widths == [f.shape[1] for f in maps][-len(widths) :]


def test_shuffle_v1_stage_channels() -> None:
    net = build("cifar/ShuffleV1", "meta")
    expected = MODELS["cifar/ShuffleV1"]["features"]["feats"]
    assert net.get_stage_channels() == [shape[1] for shape in expected]
    assert net.get_bn_before_relu() == [s[-1].bn3 for s in (net.layer1, net.layer2, net.layer3)]


def test_shuffle_v2_gathers_the_batch_norm_of_each_channel() -> None:
    """With zero convolutions a channel shows the bias of the batch norm it went through."""
    net = build("cifar/ShuffleV2").eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.zero_()
            elif isinstance(module, nn.BatchNorm2d):
                module.bias.uniform_(0.1, 1.0)
                module.weight.copy_(2 * module.bias)
                module.running_var.copy_(3 * module.bias)
        preact = net(images(6, 1, 32))[1]["preact_feats"]
    layers = net.get_bn_before_relu()
    for bn, feature in zip(layers, preact[1:], strict=True):
        assert bool((feature == bn.bias.detach()[None, :, None, None]).all())
        assert bool((bn.weight == 2 * bn.bias).all())
        assert bool((bn.running_var == 3 * bn.bias).all())
        assert bn.bias.unique().numel() == bn.num_features


def test_channel_shuffle_matches_pytorchs() -> None:
    x = images(7, 2, 6).repeat(1, 4, 1, 1)
    expected = torch.nn.functional.channel_shuffle(x, 3)
    assert bool((channel_shuffle(x, 3) == expected).all())


@pytest.mark.parametrize("name", CONVNETS)
def test_convnets(name: str) -> None:
    """Sizes, features, what learns, and that no image sees the others in eval mode."""
    width = int(name.removeprefix("convnet"))
    torch.manual_seed(0)
    net = cifar_model_dict[name][0](num_classes=94)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        net(images(1, 1, 32))
    parameters = sum(p.numel() for p in net.parameters())
    assert (parameters, flops.get_total_flops() // 2) == CONVNETS[name]
    for image in (images(1, 2, 32), images(1, 2, 64)):
        net.train()
        logits, features = net(image)
        assert logits.shape == (2, 94)
        maps, side = feature_maps(features), image.shape[-1]
        assert features["pooled_feat"].shape == (2, 64 * width)
        expected = [(2, width * 2**i, side >> i + 1, side >> i + 1) for i in range(3)]
        for kind in ("feats", "preact_feats"):
            assert [tuple(f.shape) for f in features[kind]] == expected
        assert net.get_stage_channels() == [shape[1] for shape in expected]
        assert all((m >= 0).all() == (k[:6] != "preact" or k[-1] == "0") for k, m in maps.items())
        for feature, preact in zip(features["feats"], features["preact_feats"], strict=True):
            assert torch.equal(feature, preact.relu())
        bns = net.get_bn_before_relu()
        assert [bn.num_features for bn in bns] == net.get_stage_channels()[1:]
        logits.square().mean().backward()
        assert all(p.grad.any() for p in net.parameters())
        net.eval()
        torch.testing.assert_close(net(image[1:])[0], net(image)[0][1:])
    first = net.conv1.weight
    assert abs(first.std().item() / math.sqrt(2 / (9 * width)) - 1) < 0.2  # He, fan out


def test_a_convnet_needs_a_width() -> None:
    with pytest.raises(ValueError, match="width must be 1 or greater, got 0"):
        ConvNet(0)


# --- ImageNet's weights -----------------------------------------------------------------------

RESNETS = [name for name in imagenet_model_dict if name.startswith("ResNet")]


@pytest.mark.parametrize("name", RESNETS)
def test_state_dict_is_torchvisions(name: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name.lower())
    ours = build(f"imagenet/{name}", "meta").state_dict()
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50"])
def test_values_are_torchvisions(name: str) -> None:
    theirs = torchvision.models.get_model(name.lower()).eval()
    ours = build(f"imagenet/{name}").eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = images(8, 1, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[0], theirs(x), rtol=1e-4, atol=1e-5)


@pytest.fixture
def download(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for torch.hub: hands out ``result`` (or raises it) and keeps the ``url``."""
    box: dict[str, Any] = {}

    def fetch(url: str, **options: Any) -> dict[str, Tensor]:
        box.update(options, url=url)
        if isinstance(box["result"], Exception):
            raise box["result"]
        return box["result"]

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    return box


@pytest.mark.parametrize("name", RESNETS)
def test_pretrained_takes_torchvisions_weights(name: str, download: dict[str, Any]) -> None:
    state = build(f"imagenet/{name}", "meta").state_dict()
    expected = {k: torch.full_like(v, i, device="cpu") for i, (k, v) in enumerate(state.items())}
    download["result"] = expected
    net = imagenet_model_dict[name](pretrained=True)
    weights = torchvision.models.get_model_weights(name.lower()).IMAGENET1K_V1
    assert download["url"] == weights.url
    assert download["check_hash"] and download["weights_only"]
    assert all(bool((v == expected[k]).all()) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    "error", [URLError("no\nroute"), RuntimeError("invalid hash value"), TimeoutError()]
)
def test_failed_download_is_one_line(error: Exception, download: dict[str, Any]) -> None:
    download["result"] = error
    with pytest.raises(
        CheckpointError, match=r"cannot download ResNet18_Weights.*TEACHER_CKPT"
    ) as e:
        imagenet_model_dict["ResNet18"](pretrained=True)
    assert "\n" not in str(e.value)


def test_pretrained_needs_imagenets_classes(download: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="1000 classes, the data set has 10"):
        imagenet_model_dict["ResNet18"](pretrained=True, num_classes=10)
    assert "url" not in download


def test_mobilenet_v1_has_no_published_weights() -> None:
    with pytest.raises(CheckpointError, match="no published weights for MobileNetV1"):
        imagenet_model_dict["MobileNetV1"](pretrained=True)


def test_multiply_accumulates_are_those_of_torchs_counter():
    """Also of networks that call the functions themselves, or cannot do without an image."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, 2, groups=1)
            self.weight = nn.Parameter(torch.randn(8, 4, 3, 3))
            self.register_buffer("order", torch.arange(7).flip(0))
            self.scale = torch.ones(4, 1, 1)  # neither a parameter nor a buffer
            self.head = nn.Linear(4 * 5 * 5, 10)

        def forward(self, x):
            maps = self.stem(x - x.amax(0))[:, :, self.order]
            maps = nn.functional.conv2d(maps, self.weight, groups=2)[:, :4] * self.scale
            return self.head(maps.view(x.shape[0], -1))

    for build in (Own, cifar_model_dict["ShuffleV2"][0]):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            build().eval()(torch.zeros(1, 3, 16, 16))
        with torch.device("meta"):
            network = build().eval()
        assert count_macs(network, 16) == counter.get_total_flops() // 2


@given(
    windows=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    more=st.integers(0, 1),
)
def test_average_pooling_is_torchs(windows, size, more):
    """Also where windows overlap (``more``); and windows of 1, 2, 4 and 8 round alike."""
    shape = (2, 3, *(w * s + more for w, s in zip(windows, size, strict=True)))
    x = torch.randn(shape)
    ours, torchs = (x.clone().requires_grad_() for _ in range(2))
    found, wanted = average_pool(ours, *size), F.adaptive_avg_pool2d(torchs, size)
    torch.testing.assert_close(found, wanted)
    slope = torch.randn_like(found)
    found.backward(slope)
    wanted.backward(slope)
    torch.testing.assert_close(ours.grad, torchs.grad)
    if {*windows} <= {1, 2, 4, 8}:
        assert torch.equal(found, wanted) and torch.equal(ours.grad, torchs.grad)
