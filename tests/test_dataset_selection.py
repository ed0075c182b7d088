"""DATASET.SUBSET, SUBSET_SEED and HOLDOUT: which images are trained on and validated on."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mdistiller.config import identity
from mdistiller.config.names import identity_settings
from mdistiller.dataset import get_dataset
from mdistiller.dataset._selection import select
from mdistiller.engine.cfg import CFG, load_cfg
from mdistiller.engine.rundir.resume import config_changes, relevant_config
from mdistiller.errors import DataError
from mdistiller.experiments.estimate import images_of
from mdistiller.experiments.schema import settings_of
from tests.test_dataset_folder import big as big  # noqa: PLC0414 (a fixture)
from tests.test_dataset_folder import config as folder_config
from tests.test_dataset_sets import config

DIGITS = 1347


def chosen(targets, subset: int = 0, holdout: int = 0, seed: int = 0, run_seed: int = 0):
    cfg = CFG.clone()
    cfg.DATASET.SUBSET, cfg.DATASET.HOLDOUT, cfg.DATASET.SUBSET_SEED = subset, holdout, seed
    cfg.EXPERIMENT.SEED = run_seed
    return select(cfg, torch.as_tensor(targets))


def digits(subset: int = 0, holdout: int = 0, **keys: object):
    cfg = config("digits")
    cfg.DATASET.SUBSET, cfg.DATASET.HOLDOUT = subset, holdout
    for key, value in keys.items():
        group, _, leaf = key.partition("__")
        cfg[group][leaf] = value
    return get_dataset(cfg)


labels = st.lists(st.integers(0, 5), min_size=2, max_size=60)


# --- which images


def test_nothing_is_chosen_by_default():
    assert chosen([0, 1, 1]).train is None
    assert chosen([0, 1, 1]).holdout is None


@given(labels, st.floats(0, 1))
def test_a_subset_is_as_even_as_the_classes_allow(targets, share):
    number = 1 + int(share * (len(targets) - 1))
    index = chosen(targets, number).train
    assert len(set(index.tolist())) == number
    assert index.tolist() == sorted(index.tolist())
    sizes = torch.bincount(torch.tensor(targets), minlength=6)
    counts = torch.bincount(torch.tensor(targets)[index], minlength=6)
    # A class that has images left has no fewer in the subset than any other, but for one.
    for left in (counts < sizes).nonzero().flatten():
        assert counts[left] >= counts.max() - 1


@given(labels, st.floats(0, 1))
def test_held_out_images_are_as_even_and_the_rest_is_for_training(targets, share):
    number = 1 + int(share * (len(targets) - 2))
    both = chosen(targets, 0, number)
    assert sorted([*both.train.tolist(), *both.holdout.tolist()]) == list(range(len(targets)))
    assert len(both.holdout) == number
    sizes = torch.bincount(torch.tensor(targets), minlength=6)
    counts = torch.bincount(torch.tensor(targets)[both.holdout], minlength=6)
    for left in (counts < sizes).nonzero().flatten():
        assert counts[left] >= counts.max() - 1


@given(st.integers(2, 6), st.integers(1, 12), st.floats(0, 1), st.floats(0, 1))
def test_subset_and_held_out_images_are_disjoint_and_independent(classes, each, share, rest):
    """With classes of one size every pair of numbers that fits is possible."""
    targets = list(range(classes)) * each
    subset = 1 + int(share * (len(targets) - 2))
    holdout = 1 + int(rest * (len(targets) - subset - 1))
    both = chosen(targets, subset, holdout)
    assert not set(both.train.tolist()) & set(both.holdout.tolist())
    assert torch.equal(both.train, chosen(targets, subset).train)
    assert torch.equal(both.holdout, chosen(targets, 0, holdout).holdout)


def test_a_smaller_subset_is_part_of_a_larger_one():
    targets = [i % 7 for i in range(200)]
    small, large = chosen(targets, 20).train, chosen(targets, 90).train
    assert set(small.tolist()) < set(large.tolist())


def test_only_the_subset_seed_decides():
    targets = [i % 7 for i in range(200)]
    first = chosen(targets, 50, 20)
    for same in (chosen(targets, 50, 20, run_seed=9), chosen(targets, 50, 20)):
        assert torch.equal(first.train, same.train)
        assert torch.equal(first.holdout, same.holdout)
    other = chosen(targets, 50, 20, seed=1)
    assert not torch.equal(first.train, other.train)
    assert not torch.equal(first.holdout, other.holdout)
    # Random within a class, neither its first images nor every second one.
    assert first.train.tolist() != list(range(50))
    # Whoever changes this changes every result on a subset.
    assert first.train[:8].tolist() == [11, 13, 15, 17, 24, 26, 29, 32]


@pytest.mark.parametrize(
    ("subset", "holdout", "message"),
    [
        (11, 0, "DATASET.SUBSET 11 is too large: there are 10 training images; at most 10 can"),
        (0, 10, "DATASET.HOLDOUT 10 is too large: there are 10 training images; at most 9 can"),
        (6, 6, "DATASET.SUBSET 6 and DATASET.HOLDOUT 6 would share 2 images of the 10"),
        # Of the second class there is one image, which both take.
        (2, 2, "DATASET.SUBSET 2 and DATASET.HOLDOUT 2 would share 1 images of the 10"),
    ],
)
def test_more_than_there_is(subset, holdout, message):
    with pytest.raises(DataError, match=re.escape(message)):
        chosen([0] * 9 + [1] if subset == 2 else [0, 1] * 5, subset, holdout)


# --- the loaders


def test_loaders_of_a_subset():
    whole = digits()[0].dataset
    train, val, num_data, num_classes = digits(100, 50)
    assert (len(train.dataset), num_data, len(val.dataset), num_classes) == (100, 100, 50, 10)
    assert torch.bincount(train.dataset.targets).tolist() == [10] * 10
    assert torch.bincount(val.dataset.targets).tolist() == [5] * 10
    picked = chosen(whole.targets, 100, 50)
    for loader, index in ((train, picked.train), (val, picked.holdout)):
        assert torch.equal(loader.dataset.images, whole.images[index])
        assert torch.equal(loader.dataset.targets, whole.targets[index])
    assert (train.dataset.padding, val.dataset.padding) == (4, 0)
    index = torch.cat([batch[2] for batch in train])
    assert sorted(index.tolist()) == list(range(100))


def test_without_holdout_the_test_images_validate():
    assert torch.equal(digits(100)[1].dataset.images, digits()[1].dataset.images)
    assert len(digits(0, 47)[0].dataset) == DIGITS - 47


def test_runs_with_other_seeds_have_the_same_images():
    one, other = digits(60, 30), digits(60, 30, EXPERIMENT__SEED=5)
    for a, b in zip(one[:2], other[:2], strict=True):
        assert torch.equal(a.dataset.images, b.dataset.images)
    assert not torch.equal(next(iter(one[0]))[2], next(iter(other[0]))[2])


def test_contrastive_samples_are_of_the_subset():
    cfg = config("digits", TYPE="CRD")
    cfg.DATASET.SUBSET, cfg.CRD.NCE.K = 40, 20
    train, _, num_data, _ = get_dataset(cfg)
    targets = train.dataset.targets
    for _, target, index, contrast in train:
        assert torch.equal(contrast[:, 0], index)
        assert int(contrast.max()) < num_data == 40
        assert (targets[contrast[:, 1:]] != target[:, None]).all()


def test_folders_have_subsets_too(big):
    cfg = folder_config("imagenet", big.parent)
    whole = get_dataset(cfg)[0].dataset
    cfg.DATASET.SUBSET, cfg.DATASET.HOLDOUT = 3, 3
    train, val, num_data, num_classes = get_dataset(cfg)
    assert (num_data, num_classes) == (3, 3)
    assert sorted(train.dataset.targets) == sorted(val.dataset.targets) == [0, 1, 2]
    picked = chosen(whole.targets, 3, 3)
    for loader, index in ((train, picked.train), (val, picked.holdout)):
        assert loader.dataset.samples == [whole.samples[i] for i in index]
    (image, target), *rest = list(val)
    assert not rest
    assert target.tolist() == [0, 1, 2]
    again = next(iter(get_dataset(cfg)[1]))[0]
    assert torch.equal(image, again)  # prepared as for validation: nothing random
    cfg.DATASET.SUBSET = 1000
    with pytest.raises(DataError, match="DATASET.SUBSET 1000 is too large"):
        get_dataset(cfg)


# --- what a run is


def test_a_run_on_everything_is_the_run_that_it_was():
    cfg = load_cfg("configs/digits/kd.yaml")
    keys = identity_settings(settings_of(cfg))
    assert not any(key.startswith("DATASET.") and "SUB" in key for key in keys)
    old = {k: v for k, v in relevant_config(cfg).items() if "SUBSET" not in k and "HOLD" not in k}
    assert config_changes(old, relevant_config(cfg)) == []


@pytest.mark.parametrize("key", ["DATASET.SUBSET", "DATASET.SUBSET_SEED", "DATASET.HOLDOUT"])
def test_a_run_on_other_images_is_another_run(key):
    cfg, other = (load_cfg("configs/digits/kd.yaml", opts) for opts in ((), (key, "5")))
    assert identity(cfg) != identity(other)
    assert config_changes(relevant_config(cfg), relevant_config(other)) == [f"{key}: 0 -> 5"]


def test_estimates_count_the_images_that_are_used():
    files = {"glyphs": (145_888, 16_168), "digits": (DIGITS, 450)}
    for dataset, (train, tested) in files.items():
        base = ("configs/digits/kd.yaml", ("DATASET.TYPE", dataset))
        assert images_of(load_cfg(*base)) == (train, tested)
        held = load_cfg(base[0], (*base[1], "DATASET.HOLDOUT", "7"))
        assert images_of(held) == (train - 7, 7)
    less = load_cfg("configs/digits/kd.yaml", ("DATASET.SUBSET", "100", "DATASET.HOLDOUT", "7"))
    assert images_of(less) == (100, 7)
