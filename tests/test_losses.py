"""The losses: golden values and gradients, and what must hold where upstream breaks."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mdistiller.distillers.AT import at_loss
from mdistiller.distillers.DKD import dkd_loss
from mdistiller.distillers.KD import kd_loss
from mdistiller.distillers.KDSVD import kdsvd_loss
from mdistiller.distillers.NST import nst_loss
from mdistiller.distillers.OFD import bn_margin
from mdistiller.distillers.PKT import pkt_loss
from mdistiller.distillers.ReviewKD import hcl_loss
from mdistiller.distillers.RKD import rkd_loss
from mdistiller.distillers.SP import sp_loss
from mdistiller.engine.cfg import CFG
from tests.golden_rules import fill, golden_json, golden_npz, normal, seed

LOSSES = {
    f.__name__: f
    for f in (
        at_loss, dkd_loss, hcl_loss, kd_loss, kdsvd_loss, nst_loss, pkt_loss, rkd_loss, sp_loss,
    )
}  # fmt: skip
CASES = golden_json("losses")["cases"]
CLASSES = {"FITNET": "FitNet", "REVIEWKD": "ReviewKD"}
DTYPES = {"f32": torch.float32, "f64": torch.float64}


def make_input(case: str, spec: dict) -> torch.Tensor:
    name, shape = f"golden:loss:{case}:{spec['name']}", tuple(spec["shape"])
    if spec["transform"] == "randint":
        draw = np.random.RandomState(seed(name)).randint(0, spec["high"], size=shape)
        return torch.from_numpy(draw).long()
    n = normal(name, shape)
    values = {
        "n": lambda: spec["scale"] * n,
        "relu": lambda: spec["scale"] * np.maximum(n, 0),
        "svd": lambda: np.abs(n) * 2.0 ** -np.arange(shape[-1]),
    }[spec["transform"]]()
    return torch.from_numpy(values.astype(np.float32))


def make_inputs(case: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    inputs = {}
    for spec in CASES[case]["inputs"]:
        x = make_input(case, spec)
        listed = x.sum() if "sum" in spec else x.double().norm()
        assert listed.item() == pytest.approx(spec.get("sum", spec.get("l2")), rel=1e-9)
        inputs[spec["name"]] = x.to(dtype) if x.is_floating_point() else x
        inputs[spec["name"]].requires_grad_(spec["role"] == "student")
    return inputs


class Stub(nn.Module):
    """A network whose outputs are given."""

    def __init__(self, who: str, inputs: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.logits = inputs[f"logits_{who}"]
        self.features = {"pooled_feat": inputs[f"pooled_{who}"]}
        for key in ("feats", "preact_feats"):
            maps = [v for k, v in inputs.items() if k.startswith(f"{key}_{who}_")]
            if maps:
                self.features[key] = maps

    def forward(self, image):
        return self.logits, self.features


class StubTeacher(Stub):
    """With the BatchNorm layers that OFD asks for."""

    def __init__(self, inputs, case: str) -> None:
        super().__init__("teacher", inputs)
        notes = CASES[case].get("notes_f64", {})
        self.bns = nn.ModuleList(nn.BatchNorm2d(f.shape[1]) for f in self.stages())
        for i, bn in enumerate(self.bns):
            for leaf, offset in (("weight", 1), ("bias", 0)):
                n = normal(f"golden:loss:{case}:bn{i}.{leaf}", (bn.num_features,))
                values = torch.from_numpy((offset + 0.1 * n).astype(np.float32))
                if "special" in case:
                    values[:6] = torch.tensor(notes[f"special_first_six_{leaf}"])
                getattr(bn, leaf).data = values

    def stages(self):
        return self.features.get("preact_feats", [])[1:]

    def get_bn_before_relu(self):
        return list(self.bns)


def make_distiller(case: str, inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> nn.Module:
    entry = CASES[case]
    name = entry["distiller"]
    cls = getattr(import_module(f"mdistiller.distillers.{CLASSES.get(name, name)}"),
                  CLASSES.get(name, name))  # fmt: skip
    cfg = CFG.clone()
    cfg.merge_from_list(entry["cfg"])
    extra = {"num_data": entry["num_data"]} if "num_data" in entry else {}
    student, teacher = Stub("student", inputs), StubTeacher(inputs, case)
    distiller = cls(student, teacher, cfg, **extra).train()
    own = own_state(distiller)
    distiller.load_state_dict(fill(own, f"golden:loss:{case}:"), strict=False)
    return distiller.to(dtype)


def own_state(distiller: nn.Module) -> dict[str, torch.Tensor]:
    state = distiller.state_dict()
    return {k: v for k, v in state.items() if not k.startswith(("student.", "teacher."))}


def step_arguments(case: str, inputs: dict[str, torch.Tensor]) -> dict:
    entry = CASES[case]
    kwargs = {"image": torch.zeros(8, 3, 32, 32), "target": inputs["target"]}
    if "epoch" in entry:
        kwargs["epoch"] = entry["epoch"]
    if "contrast" in inputs:
        kwargs["index"] = torch.tensor(entry["notes_f64"]["index"])
        kwargs["contrastive_index"] = inputs["contrast"].clone()
        kwargs["contrastive_index"][:, 0] = kwargs["index"]
    return kwargs


def call_function(case: str, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    entry = CASES[case]
    args = dict(entry["args"])
    if "s0" in inputs:
        parts = [[v for k, v in inputs.items() if k[0] == who] for who in "st"]
        if args.pop("stages_used", "").startswith("last"):
            parts = [p[-1:] for p in parts]
        return {"loss": LOSSES[entry["function"]](*parts, **args)}
    return {"loss": LOSSES[entry["function"]](**inputs, **args)}


def check_gradients(case: str, which: str, inputs: dict[str, torch.Tensor], rtol: float) -> None:
    entry = CASES[case]
    for name, l2 in entry[f"grad_l2_{which}"].items():
        if l2 is None:
            assert inputs[name].grad is None
        else:
            assert inputs[name].grad.double().norm().item() == pytest.approx(l2, rel=rtol)
    name = entry["full_gradient_of"]
    expected = golden_npz("losses")[f"{case}/{'grad' if which == 'f32' else 'grad_f64'}/{name}"]
    found = inputs[name].grad.numpy()
    if entry.get("function") == "kdsvd_loss":
        a, b = found.astype(float).ravel(), expected.astype(float).ravel()
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.999
    else:
        assert np.abs(found - expected).max() <= rtol * np.abs(expected).max()


def check_modules(case: str, which: str, distiller: nn.Module, rtol: float) -> None:
    entry = CASES[case]
    state = own_state(distiller)
    assert [[k, list(v.shape)] for k, v in state.items()] == entry["module_keys"]
    gradients = {k: p.grad for k, p in distiller.named_parameters() if p.grad is not None}
    for key, l2 in entry.get(f"module_grad_l2_{which}", {}).items():
        # A bias in front of a BatchNorm has no gradient but rounding errors.
        floor = 1e-5 if which == "f32" else 1e-12
        assert gradients[key].double().norm().item() == pytest.approx(l2, rel=rtol, abs=floor)
    for key, l2 in entry.get("module_running_l2_after_f64", {}).items():
        assert state[key].double().norm().item() == pytest.approx(l2, rel=rtol)


@pytest.mark.parametrize("which", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_golden(case, which):
    entry = CASES[case]
    rtol = entry["fair_rtol"][which]
    inputs = make_inputs(case, DTYPES[which])
    distiller = None
    if "function" in entry:
        losses = call_function(case, inputs)
    else:
        distiller = make_distiller(case, inputs, DTYPES[which])
        _, losses = distiller(**step_arguments(case, inputs))
        assert list(losses) == entry["loss_keys"]
    for key, expected in entry[f"values_{which}"].items():
        assert list(losses[key].shape) == entry["value_shapes"][key]
        assert losses[key].dtype == DTYPES[which]
        assert losses[key].item() == pytest.approx(expected, rel=rtol)
    sum(loss.sum() for loss in losses.values()).backward()
    check_gradients(case, which, inputs, rtol)
    if distiller is not None:
        check_modules(case, which, distiller, rtol)


def test_golden_second_call_of_crd():
    notes = CASES["crd"]["notes_f64"]
    inputs = make_inputs("crd", torch.float64)
    distiller = make_distiller("crd", inputs, torch.float64)
    memories = (distiller.contrast.memory_v1, distiller.contrast.memory_v2)
    for call in (1, 2):
        _, losses = distiller(**step_arguments("crd", inputs))
        params = distiller.contrast.params.tolist()
        assert params == pytest.approx(notes[f"params_buffer_after_call_{call}"], rel=1e-9)
        l2 = [m.norm().item() for m in memories]
        assert l2 == pytest.approx(notes[f"memory_l2_after_call_{call}"], rel=1e-9)
        total = [m.sum().item() for m in memories]
        assert call == 2 or total == pytest.approx(notes["memory_sum_after_call_1"], rel=1e-9)
    expected = notes["loss_kd_of_call_2_same_inputs"]
    assert losses["loss_kd"].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("case", ["ofd_k1", "ofd_k3", "ofd_special_bn"])
def test_golden_margins_of_ofd(case):
    distiller = make_distiller(case, make_inputs(case, torch.float32), torch.float32)
    notes = CASES[case]["notes_f64"]
    assert [list(m.shape) for m in distiller.margins] == notes["margin_shape"]
    for margin, expected in zip(distiller.margins, notes["margins"], strict=True):
        assert margin.flatten().tolist() == pytest.approx(expected, rel=1e-6)


def test_golden_log_scales_of_vid():
    distiller = make_distiller("vid", make_inputs("vid", torch.float32), torch.float32)
    notes = CASES["vid"]["notes_f64"]
    listed = zip(notes["log_scale_value_per_stage"], notes["log_scale_lengths"], strict=True)
    assert [s.tolist() for s in distiller.log_scales] == [[value] * n for value, n in listed]


def test_margin_of_a_channel_that_does_not_vary():
    bn = nn.BatchNorm2d(3)
    bn.weight.data.zero_()
    bn.bias.data = torch.tensor([-0.5, 0.0, 0.5])
    # Always negative: its own value; never negative: no margin below zero.
    assert bn_margin(bn).flatten().tolist() == [-0.5, 0.0, 0.0]


@given(st.integers(0, 99), st.floats(0.5, 8), st.integers(0, 4))
def test_dkd_is_kd_where_beta_is_the_mass_beside_the_target(stream, temperature, target):
    generator = torch.Generator().manual_seed(stream)
    s, t = torch.randn(2, 1, 5, generator=generator, dtype=torch.float64) * 3
    beta = 1 - torch.softmax(t / temperature, dim=1)[0, target]
    found = dkd_loss(s, t, torch.tensor([target]), 1.0, beta, temperature)
    assert found.item() == pytest.approx(kd_loss(s, t, temperature).item(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_dkd_is_finite_for_certain_predictions(sign):
    s = (sign * 1e4 * torch.eye(3)).requires_grad_()
    loss = dkd_loss(s, torch.eye(3), torch.arange(3), 1.0, 8.0, 1.0)
    loss.backward()
    assert loss.isfinite()
    assert s.grad.isfinite().all() and s.grad.any()


def test_rkd_follows_no_rounding_noise():
    f_s, f_t = torch.rand(6, 8) + 1, torch.rand(6, 8)
    f_s[1], f_t[1] = f_s[0] * (1 + 2e-7), f_t[0] * (1 + 2e-7)
    f_s.requires_grad_()
    rkd_loss(f_s, f_t, distance_weight=0).backward()
    assert 0 < f_s.grad.norm() < 100


@pytest.mark.parametrize("eps", [0.0, 1e-12])
@pytest.mark.parametrize("squared", [True, False])
def test_rkd_of_features_without_relations(eps, squared):
    for student in (torch.rand(1, 4), torch.ones(3, 4)):
        student.requires_grad_()
        loss = rkd_loss(student, student.detach().clone(), squared, eps)
        loss.backward()
        assert loss == 0
        assert student.grad.isfinite().all()


def test_pkt_at_a_zero_row_keeps_its_value_and_moves_the_others():
    f_s, f_t = torch.rand(4, 6), torch.rand(4, 6)
    f_s[2] = 0
    tiny = f_s.clone()
    tiny[2] = 1e-12
    f_s.requires_grad_()
    loss = pkt_loss(f_s, f_t)
    loss.backward()
    assert loss.item() == pytest.approx(pkt_loss(tiny, f_t).item(), rel=1e-3)
    assert not f_s.grad[2].any()
    assert f_s.grad[[0, 1, 3]].any(dim=1).all()


def test_kdsvd_of_repeated_singular_values():
    maps = [torch.eye(4).expand(2, 1, 4, 4).clone().requires_grad_() for _ in range(2)]
    kdsvd_loss(maps, [torch.rand(2, 1, 4, 4) for _ in range(2)], 1).backward()
    for m in maps:
        assert m.grad.isfinite().all()
        assert m.grad.norm() < 100


def test_kdsvd_shows_what_is_not_finite():
    maps = [torch.rand(2, 2, 4, 4) for _ in range(2)]
    broken = [maps[0], torch.full_like(maps[1], torch.nan)]
    assert kdsvd_loss(broken, maps, 1).isnan()
