"""The newer methods' losses against numbers of their authors' code (golden/METHODS.md)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchjd.aggregation import MoDoWeighting, SDMGradWeighting

from mdistiller.distillers.CATKD import binarize, cat_loss
from mdistiller.distillers.CTKD import GlobalTemperature, reversal
from mdistiller.distillers.DIST import dist_loss, dist_terms
from mdistiller.distillers.DKD import dkd_loss
from mdistiller.distillers.EAKD import entropy_weights
from mdistiller.distillers.KD import kd_loss
from mdistiller.distillers.LSKD import standardize
from mdistiller.distillers.MLKD import batch_relations, class_relations, mlkd_losses
from mdistiller.distillers.NKD import nkd_loss, nkd_terms
from mdistiller.distillers.PLD import pld_loss
from mdistiller.distillers.RLD import masked_correlation_loss, sample_confidence_loss
from mdistiller.distillers.SIMKD import simkd_loss
from mdistiller.distillers.TTM import ttm_loss
from mdistiller.distillers.WSLD import wsld_loss, wsld_weights
from mdistiller.distillers.WTTM import wttm_loss
from mdistiller.models.heads import ReusedClassifier, make_projector

from .golden_rules import fill, golden_json, golden_npz

DOC = golden_json("methods")
CASES = DOC["cases"]
GROUPS = sorted({name.partition("/")[0] for name in CASES})
DTYPES = {"f32": torch.float32, "f64": torch.float64}


def dist(x, y, a):
    inter, intra = dist_terms(x["student"], x["teacher"], a["tau"])
    loss = dist_loss(x["student"], x["teacher"], a["beta"], a["gamma"], a["tau"])
    total = a["ce_weight"] * F.cross_entropy(x["student"], y) + a["kd_weight"] * loss
    return {"inter": inter, "intra": intra, "loss": loss, "total": total}


def lskd(x, y, a):
    s, t = standardize(x["student"]), standardize(x["teacher"])
    ce = a["ce_weight"] * F.cross_entropy(x["student"], y)
    kd = a["kd_weight"] * kd_loss(s, t, a["temperature"])
    return {"loss_ce": ce, "loss_kd": kd, "total": ce + kd}


def ls_dkd(x, y, a):
    s, t = standardize(x["student"]), standardize(x["teacher"])
    loss = dkd_loss(s, t, y, a["alpha"], a["beta"], a["temperature"])
    return {
        "loss_ce": a["ce_weight"] * F.cross_entropy(x["student"], y),
        "loss_kd": min(a["epoch"] / a["warmup"], 1.0) * loss,
    }


def mlkd_terms(x, y, a):
    s, t = x["student"], x["teacher"]
    terms = {}
    for temperature in a["temperatures"]:
        terms[f"instance_T{temperature:.0f}"] = kd_loss(s, t, temperature)
        terms[f"batch_T{temperature:.0f}"] = batch_relations(s, t, temperature).mean()
        terms[f"class_T{temperature:.0f}"] = class_relations(s, t, temperature).mean()
    return terms


def mlkd(x, y, a, standardized=False):
    weak, strong = x["student"], x["student_strong"]
    kd, bc, cc = mlkd_losses(
        (weak, x["teacher"]),
        (strong, x["teacher_strong"]),
        a["temperature"],
        standardized=standardized,
    )
    losses = {"loss_ce": a["ce_weight"] * (F.cross_entropy(weak, y) + F.cross_entropy(strong, y))}
    for key, value in (("loss_kd", kd), ("loss_bc", bc), ("loss_cc", cc)):
        losses[key] = a["kd_weight"] * value
    return losses | {"total": sum(losses.values())}


def nkd(x, y, a):
    s, t = x["student"], x["teacher"]
    of_target, of_others = nkd_terms(s, t, y, a["temperature"])
    loss = nkd_loss(s, t, y, a["gamma"], a["temperature"])
    return {
        "target": of_target,
        "nontarget": a["gamma"] * of_others,
        "loss": loss,
        "total": loss + F.cross_entropy(s, y),
    }


def wsld(x, y, a):
    s, t = x["student"], x["teacher"]
    loss = a["alpha"] * wsld_loss(s, t, wsld_weights(s, t, y), a["temperature"])
    return {"loss": loss, "total": loss + F.cross_entropy(s, y)}


def ctkd(x, y, a, change=lambda z: z):
    s, t = x["student"], x["teacher"]
    factor = reversal(a["epoch"])
    losses = {"lambda": torch.tensor(factor, dtype=torch.float64)}
    for key, scale in (("grad_theta", factor), ("grad_theta_plain", 1.0)):
        module = GlobalTemperature(a["t_start"], a["t_end"]).to(s.dtype)
        module.theta.data.fill_(a["theta"])
        temperature = module(scale)
        loss = kd_loss(change(s), change(t), temperature)
        total = a["ce_weight"] * F.cross_entropy(s, y) + a["kd_weight"] * loss
        (losses[key],) = torch.autograd.grad(total, module.theta, retain_graph=True)
        losses |= {"temperature": temperature, "loss_kd": loss, "total": total}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    module.theta.grad = losses["grad_theta"].clone()
    optimizer.step()
    return losses | {"theta_after_plain_sgd_step": module.theta.detach()}


def cat(x, y, a):
    teacher = binarize(x["teacher"]) if a.get("binarize") else x["teacher"]
    loss = cat_loss(x["student"], teacher, a["resolution"], a["normalize"])
    ce = a["ce_weight"] * F.cross_entropy(x["student"].mean((2, 3)), y)
    weighted = a["weight"] * loss
    return {"cat": loss, "loss_CAT": weighted, "loss_CE": ce, "total": ce + weighted}


class Trunk(nn.Module):
    """Returns the map that it gets."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, 7)

    def forward(self, x):
        return self.fc(x.mean((2, 3))), {"feats": [x], "preact_feats": [x]}


def simkd(x, y, a):
    # Inputs of both signs, so without the ReLU that a real last map goes through.
    s, t = x["student"], x["teacher"]
    projector = make_projector(s.shape[1], t.shape[1], a["factor"])
    reused = ReusedClassifier(
        Trunk(s.shape[1]), projector, nn.Linear(t.shape[1], 7), tuple(t.shape[2:])
    )
    both = nn.ModuleDict({"transfer": projector, "classifier": reused.classifier})
    both.load_state_dict(fill(both.state_dict(), a["fill_prefix"]))
    reused.to(s.dtype).train(a["mode"] == "train")
    projected = reused.project(s)
    loss = simkd_loss(projected, t)
    gradients = torch.autograd.grad(loss, list(projector.parameters()), retain_graph=True)
    named = zip((k for k, _ in projector.named_parameters()), gradients, strict=True)
    return {
        "loss": loss,
        "logits": reused.classifier(projected.mean((2, 3))),
        "projected_l2": projected.norm(),
        "target_l2": F.adaptive_avg_pool2d(t, projected.shape[2:]).norm(),
        "bn1_running_mean_l2_after": projector[1].running_mean.norm(),
        **{f"grad_l2.transfer.{k}": g.norm() for k, g in named},
    }


def rld(x, y, a):
    s, t = x["student"], x["teacher"]
    if a["logit_stand"]:
        s, t = standardize(s), standardize(t)
    scd = sample_confidence_loss(s, t, y, a["alpha_temperature"])
    mcd = masked_correlation_loss(s, t, y, a["temperature"])
    return {"scd": scd, "mcd": mcd, "loss": a["alpha"] * scd + a["beta"] * mcd}


def eakd(x, y, a):
    s, t = x["student"], x["teacher"]
    weights = entropy_weights(s, t, a["entropy_temperature"], a["H_ub"])
    parts = kd_loss(s, t, a["temperature"], per_sample=True)
    return {
        "weights": weights,
        "loss_ce": a["ce_weight"] * F.cross_entropy(s, y),
        "loss_kd": a["kd_weight"] * (weights * parts).mean(),
        "unweighted_kd": parts.mean(),
    }


def eadkd(x, y, a):
    s, t = x["student"], x["teacher"]
    weights = entropy_weights(s, t, a["entropy_temperature"], a["H_ub"], clamp=True)
    parts = dkd_loss(s, t, y, a["alpha"], a["beta"], a["temperature"], per_sample=True)
    return {
        "weights": weights,
        "loss_ce": F.cross_entropy(s, y),
        "loss_kd": (weights * parts).mean(),
    }


def pld(x, y, a):
    s, t = x["student"], x["teacher"]
    return {"loss": pld_loss(s, t, y, a["teacher_temperature"]), "ce": F.cross_entropy(s, y)}


CALLS = {
    "DIST": dist,
    "LSKD": lskd,
    "LS-DKD": ls_dkd,
    "MLKD-terms": mlkd_terms,
    "MLKD": mlkd,
    "LS-MLKD": lambda x, y, a: mlkd(x, y, a, standardized=True),
    "NKD": nkd,
    "WSLD": wsld,
    "TTM": lambda x, y, a: {"loss": ttm_loss(x["student"], x["teacher"], a["gamma"])},
    "WTTM": lambda x, y, a: {"loss": wttm_loss(x["student"], x["teacher"], a["gamma"])},
    "CTKD": ctkd,
    "LS-CTKD": lambda x, y, a: ctkd(x, y, a, standardize),
    "CAT-KD": cat,
    "SimKD": simkd,
    "RLD": rld,
    "EA-KD": eakd,
    "EA-DKD": eadkd,
    "PLD": pld,
}
# What a case lists beside losses: a count made for the page, not by a loss.
NO_LOSS = {"share_of_samples_in_mask"}


def tensor(name: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    stored = DOC["tensors"][name].get("equal_to", name)
    return torch.from_numpy(golden_npz("methods")[f"input/{stored}"]).to(dtype)


def inputs_of(case: dict, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    names = {k: v for k, v in case["inputs"].items() if k != "labels"}
    tensors = {k: tensor(v, dtype) for k, v in names.items()}
    for key, value in tensors.items():
        value.requires_grad_(key.startswith("student"))
    labels = case["inputs"].get("labels")
    return tensors, None if labels is None else torch.tensor(DOC["labels"][labels])


def assert_close(found, expected, which: str, slack) -> None:
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    bound = 1e-9 * abs(expected) + 1e-12 if which == "f64" else slack
    assert found.size == expected.size
    assert (abs(found.ravel() - expected.ravel()) <= np.ravel(bound)).all(), (found, expected)


def check_case(name: str, which: str) -> None:
    case, group = CASES[name], name.partition("/")[0]
    x, y = inputs_of(case, DTYPES[which])
    losses = CALLS[group](x, y, case["args"])
    for key in set(case["values"]) - NO_LOSS:
        expected = np.asarray(case["values"][key], float)
        single = np.asarray(case["values_f32"][key], float)
        slack = 1e-4 * abs(expected) + 10 * abs(single - expected)
        assert_close(losses[key].detach().numpy(), expected, which, slack)
    for entry in case["gradients"]:
        (gradient,) = torch.autograd.grad(losses[entry["of"]], x[entry["wrt"]], retain_graph=True)
        expected = golden_npz("methods")[entry["npz"]]
        slack = 1e-4 * entry["max_abs"] + 10 * entry["f32_max_abs_difference"]
        assert_close(gradient.numpy(), expected, which, np.full(expected.size, slack + 1e-12))


@pytest.mark.parametrize("group", [g for g in GROUPS if g in CALLS])
def test_values_and_gradients(group):
    names = [name for name in CASES if name.startswith(f"{group}/")]
    assert names
    for name in names:
        for which in DTYPES:
            try:
                check_case(name, which)
            except AssertionError as error:
                raise AssertionError(f"{name}, {which}: {error}") from error


def test_every_group_of_cases_is_checked():
    assert set(GROUPS) == {*CALLS, "MoDo", "SDMGrad"}
    assert len(CASES) == 115


@pytest.mark.parametrize("group", ["MoDo", "SDMGrad"])
def test_two_batch_weightings_of_torchjd(group):
    cls = {"MoDo": MoDoWeighting, "SDMGrad": SDMGradWeighting}[group]
    for name, case in CASES.items():
        if not name.startswith(f"{group}/"):
            continue
        options = dict(case["args"])
        if options.get("pref_vector") is not None:
            options["pref_vector"] = torch.tensor(options["pref_vector"], dtype=torch.float64)
        weighting = cls(**options)
        matrices = [tensor(m) for m in case["inputs"]["matrices"]]
        found = [weighting(m).tolist() for m in matrices]
        assert np.allclose(found, case["values"]["weights"], rtol=1e-9, atol=1e-12), name
        weighting.reset()
        again = weighting(matrices[0]).tolist()
        assert np.allclose(again, case["values"]["after_reset"], rtol=1e-9, atol=1e-12), name


def test_reversal_of_ctkd_by_epoch():
    for epoch, expected in DOC["facts"]["CTKD"]["lambda_by_epoch"].items():
        assert reversal(int(epoch)) == pytest.approx(expected, rel=1e-12)
    assert GlobalTemperature()(1.0).item() == pytest.approx(15.621171572600097)


def test_projectors_of_simkd():
    for entry in DOC["facts"]["SimKD"]["projectors"]:
        channels = entry["student_channels"], entry["teacher_channels"]
        projector = make_projector(*channels, entry["factor"])
        assert sum(p.numel() for p in projector.parameters()) == entry["parameters"]
        assert len(projector) == len(entry["layers"])
