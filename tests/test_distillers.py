"""Distillers as modules: what they add, what construction leaves alone, hard inputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mdistiller.dataset import model_dict_for
from mdistiller.distillers import CRD, distiller_dict
from mdistiller.distillers._common import probe
from mdistiller.distillers.AT import at_loss
from mdistiller.distillers.KDSVD import kdsvd_loss
from mdistiller.distillers.PKT import pkt_loss
from mdistiller.distillers.RKD import rkd_loss
from mdistiller.engine.cfg import CFG
from mdistiller.errors import ConfigError
from mdistiller.models import cifar_model_dict

from .golden_rules import golden_json

GOLDEN = golden_json("distillers")["distillers"]
SMALL = ("CRD.FEAT.STUDENT_DIM", 64, "CRD.FEAT.TEACHER_DIM", 64, "CRD.NCE.K", 8)


def build(name, student="resnet8", teacher="resnet14", opts=SMALL, registry=None):
    cfg = CFG.clone()
    cfg.merge_from_list(list(opts))
    models = registry or cifar_model_dict
    pair = [models[n][0](num_classes=100) for n in (student, teacher)]
    cls = distiller_dict[name]
    if name == "NONE":
        return cls(pair[0])
    return cls(*pair, cfg, *([200] if issubclass(cls, CRD) else []))


def step(distiller, size=32, batch=4, classes=100):
    index = torch.arange(batch)
    contrast = torch.randint(200, (batch, 9))
    contrast[:, 0] = index
    return distiller(
        image=torch.randn(batch, 3, size, size),
        target=torch.randint(classes, (batch,)),
        epoch=3,
        index=index,
        contrastive_index=contrast,
    )


@pytest.mark.parametrize("name", GOLDEN)
def test_contract_is_mdistillers(name):
    golden = GOLDEN[name]
    distiller = build(name, golden["student"], golden["teacher"], opts=())
    parameters = dict(distiller.named_parameters())
    names = {id(p): n for n, p in parameters.items()}
    learnable = [names[id(p)] for p in distiller.get_learnable_parameters()]
    extra = [n for n in learnable if not n.startswith("student.")]
    assert learnable[: len(learnable) - len(extra)] == [
        n for n in parameters if n[:8] == "student."
    ]
    assert sorted([n, list(parameters[n].shape)] for n in extra) == sorted(
        golden["learnable_extra"]
    )
    if golden["has_get_extra_parameters"]:
        numel = golden["get_extra_parameters"]
        # CRD counts its memory bank, whose size is that of the training set.
        if name != "CRD":
            assert distiller.get_extra_parameters() == numel
    state = {
        k: v
        for k, v in distiller.state_dict().items()
        if not k.startswith(("student.", "teacher."))
    }
    found = [[k, list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in state.items()]
    if name == "CRD":
        found, expected = ([e[0] for e in x] for x in (found, golden["extra_state_dict"]))
        assert found == expected
    else:
        assert found == golden["extra_state_dict"]
    distiller.train()
    assert distiller.student.training
    if distiller.teacher is not None:
        assert distiller.teacher.training == golden["after_train()"]["teacher_training"]
    if name != "CRD":
        logits, losses = step(distiller)
        assert logits.shape == (4, 100)
        assert list(losses) == golden["loss_keys"]
        assert {k: list(v.shape) for k, v in losses.items()} == golden["loss_shapes"]


@pytest.mark.parametrize("name", [n for n in GOLDEN if n != "NONE"])
def test_construction_leaves_networks_and_random_numbers_alone(name):
    torch.manual_seed(3)
    cfg = CFG.clone()
    cfg.merge_from_list(list(SMALL))
    pair = [cifar_model_dict[n][0](num_classes=100) for n in ("resnet8", "resnet14")]
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in pair]
    cls = distiller_dict[name]
    distiller = cls(*pair, cfg, *([200] if cls is CRD else []))
    for model, state in zip(pair, before, strict=True):
        assert model.training
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    distiller.eval()
    assert distiller(image=torch.randn(2, 3, 32, 32)).shape == (2, 100)
    assert not distiller.teacher.training


@pytest.mark.parametrize("name", [n for n in distiller_dict if n != "NONE"])
def test_teacher_gets_no_gradient(name):
    distiller = build(name).train()
    _, losses = step(distiller)
    sum(loss.mean() for loss in losses.values()).backward()
    assert all(p.grad is None for p in distiller.teacher.parameters())
    assert all(torch.isfinite(p.grad).all() for p in distiller.get_learnable_parameters())


@pytest.mark.parametrize("name", [n for n in distiller_dict if n != "NONE" and n[:5] != "CROSS"])
def test_every_method_works_with_the_small_convnets(name):
    if name in ("CATKD", "SIMKD"):  # their classifier must be that of a pooled map
        with pytest.raises(ConfigError, match="needs the map that the classifier pools"):
            build(name, "convnet12", "convnet48")
        return
    dims = ("CRD.FEAT.STUDENT_DIM", 768, "CRD.FEAT.TEACHER_DIM", 3072, "CRD.NCE.K", 8)
    distiller = build(name, "convnet12", "convnet48", opts=dims).train()
    _, losses = step(distiller)
    sum(loss.mean() for loss in losses.values()).backward()
    assert all(loss.isfinite().all() for loss in losses.values())
    assert all(p.grad.any() for p in distiller.student.conv1.parameters())


def test_ofd_teacher_mode():
    assert build("OFD").train().teacher.training
    assert not build("OFD", opts=(*SMALL, "OFD.TEACHER_TRAIN_MODE", False)).train().teacher.training
    assert not build("OFD").eval().teacher.training


def test_vid_learns_its_variance_if_asked():
    plain, learned = build("VID"), build("VID", opts=(*SMALL, "VID.LEARN_VARIANCE", True))
    more = set(learned.state_dict()) - set(plain.state_dict())
    assert len(more) == 3
    learned.train()
    _, losses = step(learned)
    losses["loss_kd"].backward()
    parameters = dict(learned.named_parameters())
    assert all(parameters[n].grad.any() for n in more)
    ids = {id(p) for p in learned.get_learnable_parameters()}
    assert all(id(parameters[n]) in ids for n in more)


# The pairs of mdistiller's tables for OFD, those with ShuffleNets among them.
@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ("resnet56", "resnet20"),
        ("resnet32x4", "resnet8x4"),
        ("wrn_40_2", "wrn_16_2"),
        ("vgg13", "vgg8"),
        ("resnet32x4", "ShuffleV1"),
        ("resnet32x4", "ShuffleV2"),
        ("wrn_40_2", "ShuffleV1"),
        ("ShuffleV1", "ShuffleV2"),
        ("ShuffleV2", "resnet8"),
    ],
)
def test_ofd_works_for_the_pairs_of_the_tables(teacher, student):
    distiller = build("OFD", student, teacher).train()
    _, losses = step(distiller, batch=2)
    assert torch.isfinite(losses["loss_kd"])
    assert losses["loss_kd"] > 0


@pytest.mark.parametrize(
    ("student", "teacher"),
    [("vgg8", "vgg13"), ("resnet8", "resnet56"), ("ShuffleV1", "resnet32x4")],
)
def test_reviewkd_infers_its_shapes(student, teacher):
    distiller = build("REVIEWKD", student, teacher).train()
    _, losses = step(distiller, batch=2)
    losses["loss_kd"].backward()
    assert torch.isfinite(losses["loss_kd"])
    assert all(p.grad is not None for p in distiller.abfs.parameters())


def test_reviewkd_at_64_pixels():
    opts = ("DATASET.TYPE", "tiny_imagenet")
    distiller = build(
        "REVIEWKD", "resnet8", "resnet14", opts, model_dict_for("tiny_imagenet")
    ).train()
    _, losses = step(distiller, size=64, batch=2)
    assert torch.isfinite(losses["loss_kd"])


@pytest.mark.parametrize("name", ["OFD", "REVIEWKD"])
def test_network_without_what_the_method_needs_is_named(name):
    with pytest.raises(ConfigError, match=f"{name}.*MobileNetV2"):
        step(build(name, "resnet8", "MobileNetV2").train())


@pytest.mark.parametrize(
    ("name", "opts", "message"),
    [
        ("FITNET", ("FITNET.HINT_LAYER", 9), "FITNET.HINT_LAYER 9 .* ResNet; it has 0 to 3"),
        ("VID", ("VID.INIT_PRED_VAR", 1e-6), "VID.INIT_PRED_VAR .* greater than VID.EPS"),
        ("AT", ("AT.P", 0.5), "AT.P 0.5 must be at least 1"),
        ("REVIEWKD", ("REVIEWKD.SHAPES", [1, 8]), "REVIEWKD: .* 'IN_CHANNELS': 3"),
        ("CRD", ("CRD.FEAT.TEACHER_DIM", 9), "CRD.FEAT.TEACHER_DIM is 9, .* ResNet has 64"),
    ],
)
def test_setting_that_does_not_fit_is_named(name, opts, message):
    if name == "REVIEWKD":  # two lists of unequal length, the others are inferred
        opts = (*opts, "REVIEWKD.IN_CHANNELS", [16, 32, 64])
    with pytest.raises(ConfigError, match=message):
        step(build(name, opts=(*SMALL, *opts)).train())


@pytest.mark.parametrize(
    ("name", "missing"),
    [("DKD", "epoch"), ("REVIEWKD", "epoch"), ("CRD", "index"), ("CRD", "contrastive_index")],
)
def test_missing_argument_of_a_step_is_named(name, missing):
    arguments = {
        "image": torch.randn(2, 3, 32, 32),
        "target": torch.tensor([0, 1]),
        "epoch": 1,
        "index": torch.arange(2),
        "contrastive_index": torch.zeros(2, 9, dtype=torch.long),
    }
    del arguments[missing]
    with pytest.raises(ConfigError, match=f"{name} needs '{missing}'"):
        build(name).train()(**arguments)


def test_kdsvd_names_maps_of_unequal_width():
    with pytest.raises(ConfigError, match="KDSVD .* ShuffleNetV2 has 16 .* ResNet 32"):
        step(build("KDSVD", "ShuffleV2", "resnet14").train(), batch=2)


def test_probe_restores_modes_and_draws_no_number():
    model = cifar_model_dict["resnet8"][0](num_classes=100).train()
    model.layer2.eval()
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    features = probe(model, (32, 32))
    assert features["pooled_feat"].shape == (1, 64)
    assert not features["pooled_feat"].requires_grad
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


# ---- hard inputs ---------------------------------------------------------------------------


def degenerate(kind: str, shape, generator) -> torch.Tensor:
    x = torch.randn(shape, generator=generator).relu()
    if kind == "identical":
        return x[:1].expand(shape).clone()
    if kind == "constant":
        return torch.full(shape, 0.7)
    if kind == "zero":
        return torch.zeros(shape)
    if kind == "one zero row":
        x[0] = 0
    return x


KINDS = ["random", "identical", "constant", "zero", "one zero row"]


@settings(max_examples=40)
@given(
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    batch=st.sampled_from([2, 3, 5]),
    seed=st.integers(0, 1000),
)
def test_losses_survive_degenerate_features(kinds, batch, seed):
    generator = torch.Generator().manual_seed(seed)
    flat = [degenerate(k, (batch, 6), generator) for k in kinds]
    maps = [[degenerate(k, (batch, 3, 4, 4), generator) for _ in range(3)] for k in kinds]
    for loss, arguments in (
        (rkd_loss, (False, 1e-12, 25, 50)),
        (pkt_loss, ()),
    ):
        student = flat[0].clone().requires_grad_()
        value = loss(student, flat[1], *arguments)
        value.backward()
        assert torch.isfinite(value), loss.__name__
        assert torch.isfinite(student.grad).all(), loss.__name__
    for loss, arguments in ((kdsvd_loss, (1,)), (kdsvd_loss, (3,)), (at_loss, (2,))):
        students = [m.clone().requires_grad_() for m in maps[0]]
        value = loss(students, maps[1], *arguments)
        if value.requires_grad:
            value.backward()
        assert torch.isfinite(value), loss.__name__
        for s in students:
            assert s.grad is None or torch.isfinite(s.grad).all(), loss.__name__


def test_kdsvd_gradient_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    decay = 2.0 ** -torch.arange(5, dtype=torch.float64)
    student, teacher = (
        [torch.rand(2, c, 3, 5, generator=generator, dtype=torch.float64) * decay for _ in range(2)]
        for c in (2, 3)
    )
    student = [s.requires_grad_() for s in student]
    assert torch.autograd.gradcheck(
        lambda *maps: kdsvd_loss(list(maps), teacher, 1), student, eps=1e-6, atol=1e-5
    )
