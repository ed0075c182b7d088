"""The samples that CRD contrasts an image with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mdistiller.dataset import ContrastiveSampler, ContrastiveSettings, _contrastive
from mdistiller.dataset._contrastive import contrastive_settings
from mdistiller.engine.cfg import CFG
from mdistiller.errors import ConfigError, DataError
from tests.golden_rules import golden_json

LABELS = torch.tensor([0, 2, 1, 0, 1, 1, 0, 2, 1, 1, 2, 1])


@st.composite
def label_lists(draw):
    labels = draw(st.lists(st.integers(0, 4), min_size=2, max_size=60))
    labels[0] = 5  # at least two classes
    return torch.tensor(labels)


@given(
    label_lists(),
    st.integers(1, 80),
    st.sampled_from(["exact", "relax"]),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_positive_and_negatives_come_from_the_right_classes(labels, k, mode, replace, seed):
    sampler = ContrastiveSampler(labels, ContrastiveSettings(k, mode, replace))
    index = torch.arange(len(labels))
    drawn = sampler.sample(index, seed)
    assert drawn.shape == (len(labels), k + 1)
    assert drawn.dtype == torch.int64
    assert torch.equal(labels[drawn[:, 0]], labels)
    if mode == "exact":
        assert torch.equal(drawn[:, 0], index)
    assert (labels[drawn[:, 1:]] != labels[:, None]).all()
    for row, label in zip(drawn[:, 1:], labels, strict=True):
        # Golden: with replacement only if K exceeds the number of candidates.
        if not replace and k <= (labels != label).sum():
            assert len(row.unique()) == k


def test_all_candidates_are_taken_where_k_is_their_number():
    sampler = ContrastiveSampler(LABELS, ContrastiveSettings(9))
    drawn = sampler.sample(torch.tensor([0, 3]), 0)
    for row in drawn[:, 1:]:
        assert row.sort().values.tolist() == torch.nonzero(LABELS != 0).flatten().tolist()


def _frequencies(settings: ContrastiveSettings, column: slice, rounds: int) -> np.ndarray:
    sampler = ContrastiveSampler(LABELS, settings)
    drawn = torch.cat([sampler.sample(torch.tensor([2] * 64), 0, r) for r in range(rounds)])
    return torch.bincount(drawn[:, column].flatten(), minlength=len(LABELS)).numpy()


@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("replace", [False, True])
def test_negatives_are_uniform(k, replace):
    counts = _frequencies(ContrastiveSettings(k, "exact", replace), slice(1, None), rounds=80)
    others = (LABELS != 1).numpy()
    assert counts[~others].sum() == 0
    expected = 64 * 80 * k / others.sum()
    assert np.abs(counts[others] - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize("margin", [6.0, 0.0, -1.0])
def test_every_set_of_distinct_negatives_is_equally_likely(monkeypatch, margin):
    # Without the margin, often too few are drawn at first.
    monkeypatch.setattr(_contrastive, "_MARGIN", margin)
    sampler = ContrastiveSampler(LABELS, ContrastiveSettings(2))
    drawn = torch.cat([sampler.sample(torch.tensor([2] * 64), 1, r) for r in range(60)])
    pairs, counts = drawn[:, 1:].sort(dim=1).values.unique(dim=0, return_counts=True)
    assert len(pairs) == 15  # 6 candidates, choose 2
    expected = 64 * 60 / 15
    assert (counts - expected).abs().max() < 5 * expected**0.5


def test_relaxed_positive_is_uniform_in_its_class():
    counts = _frequencies(ContrastiveSettings(1, "relax"), slice(0, 1), rounds=60)
    own = (LABELS == 1).numpy()
    assert counts[~own].sum() == 0
    expected = 64 * 60 / own.sum()
    assert np.abs(counts[own] - expected).max() < 5 * np.sqrt(expected)


def test_rows_are_independent_and_seeds_decide():
    sampler = ContrastiveSampler(torch.arange(500) % 10, ContrastiveSettings(40))
    same = torch.tensor([7, 7])
    first, second = sampler.sample(same, 0, "train", 1), sampler.sample(same, 0, "train", 2)
    assert set(first[0, 1:].tolist()) != set(first[1, 1:].tolist())
    assert not torch.equal(first, second)
    assert torch.equal(first, sampler.sample(same, 0, "train", 1))


@pytest.mark.parametrize("replace", [False, True])
def test_large_draws_stay_in_range(replace):
    labels = torch.arange(5000) % 100
    sampler = ContrastiveSampler(labels, ContrastiveSettings(4900, with_replacement=replace))
    drawn = sampler.sample(torch.arange(64), 0)
    assert drawn.min() >= 0
    assert drawn.max() < 5000
    assert (labels[drawn[:, 1:]] != labels[:64, None]).all()
    distinct = [len(row.unique()) for row in drawn[:, 1:]]
    assert (min(distinct) == 4900) is not replace


def test_one_class_has_nothing_to_contrast():
    with pytest.raises(DataError, match="label 3"):
        ContrastiveSampler(torch.tensor([3, 3, 3]), ContrastiveSettings(1))


def test_settings_come_from_the_configuration():
    cfg = CFG.clone()
    assert contrastive_settings(cfg) is None
    for distiller in ("CRD", "CROSSBATCH_CRD"):
        cfg.DISTILLER.TYPE = distiller
        assert contrastive_settings(cfg) == ContrastiveSettings(16384, "exact", False)
    cfg.CRD.MODE, cfg.CRD.NCE.K = "relax", 5
    assert contrastive_settings(cfg, True) == ContrastiveSettings(5, "relax", True)
    assert "mode relax" in golden_json("configs")["dataset"]["crd_sampling"]["cifar100"]


@pytest.mark.parametrize(
    ("k", "mode", "key"), [(0, "exact", "CRD.NCE.K"), (1, "Exact", "CRD.MODE")]
)
def test_impossible_settings_name_their_key(k, mode, key):
    with pytest.raises(ConfigError, match=key):
        ContrastiveSettings(k, mode)
