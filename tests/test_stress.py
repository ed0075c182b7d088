"""Labels and teachers that are wrong on purpose, and the look at a teacher before a training."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mdistiller.config import identity
from mdistiller.config.names import identity_settings
from mdistiller.dataset import ArrayLoader, ImageArray, Recipe, dataset_dict, get_dataset
from mdistiller.dataset._noise import noisy_targets
from mdistiller.dataset._selection import select
from mdistiller.engine.cfg import CFG, load_cfg
from mdistiller.engine.check import check_config
from mdistiller.engine.run import build_distiller, run_training
from mdistiller.engine.teacher import (
    Agreement,
    Look,
    agreement,
    derangement,
    log_teacher,
    look_at_teacher,
    permute_classes,
)
from mdistiller.errors import ConfigError
from mdistiller.experiments.estimate import images_of
from mdistiller.experiments.schema import settings_of
from mdistiller.models import cifar_model_dict, imagenet_model_dict
from tests.test_dataset_folder import big as big  # noqa: PLC0414 (a fixture)
from tests.test_dataset_folder import config as folder_config

from .toys import ToyNet, batches, config

DIGITS = 1347


def noise_config(**dataset):
    cfg = CFG.clone()
    cfg.DATASET.merge_from_other_cfg(type(cfg)({"TYPE": "digits", **dataset}))
    cfg.SOLVER.DEVICE = "cpu"
    return cfg


def labels(**dataset):
    cfg = noise_config(**dataset)
    targets = torch.arange(5000) % 10
    noisy, fraction = noisy_targets(cfg, targets, 10, select(cfg, targets))
    return targets, noisy, fraction


# --- labels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["symmetric", "pair"])
@pytest.mark.parametrize("rate", [0.1, 0.4, 0.9])
def test_so_many_labels_are_wrong(kind, rate):
    targets, noisy, fraction = labels(LABEL_NOISE=rate, LABEL_NOISE_KIND=kind)
    wrong = noisy != targets
    assert fraction == wrong.double().mean().item()
    assert abs(fraction - rate) < 5 * math.sqrt(rate * (1 - rate) / 5000)
    counts = torch.bincount((noisy - targets)[wrong] % 10, minlength=10)
    if kind == "pair":
        assert counts[1] == wrong.sum()
    else:  # every other class equally often: chi squared with 8 degrees of freedom
        expected = wrong.sum().item() / 9
        assert ((counts[1:] - expected) ** 2 / expected).sum() < 32


def test_labels_are_right_by_default():
    targets, noisy, fraction = labels()
    assert fraction == 0
    assert noisy is targets


def test_wrong_labels_depend_on_the_subset_seed_alone_and_grow():
    targets, first, _ = labels(LABEL_NOISE=0.4)
    assert torch.equal(first, labels(LABEL_NOISE=0.4, SUBSET=900, HOLDOUT=0)[1])
    assert not torch.equal(first, labels(LABEL_NOISE=0.4, SUBSET_SEED=1)[1])
    more, less = labels(LABEL_NOISE=0.6)[1], labels(LABEL_NOISE=0.2)[1]
    for few, many in ((less, first), (first, more)):
        wrong = few != targets
        assert torch.equal(few[wrong], many[wrong])
    # Whoever changes this changes every result with noise.
    assert first[:12].tolist() == FIRST_LABELS


FIRST_LABELS = [0, 4, 2, 3, 8, 5, 9, 3, 4, 9, 0, 1]


def test_held_out_and_test_images_keep_their_labels():
    right = [loader.dataset.targets for loader in get_dataset(noise_config())[:2]]
    every = {"SUBSET": 800, "HOLDOUT": 300, "LABEL_NOISE": 0.5}
    chosen = select(noise_config(**every), right[0])
    _, val, *_ = get_dataset(noise_config(**every))
    assert torch.equal(val.dataset.targets, right[0][chosen.holdout])
    train, val, *_ = get_dataset(noise_config(SUBSET=800, LABEL_NOISE=0.5))
    assert torch.equal(val.dataset.targets, right[1])
    wrong = (train.dataset.targets != right[0][chosen.train]).double().mean()
    assert train.wrong_labels == pytest.approx(wrong.item())
    # Trained on beside the others, the held-out ones are still right.
    both = noise_config(**every, TRAIN_ON_HOLDOUT=True)
    train, _, number, _ = get_dataset(both)
    assert number == 1100 == images_of(both)[0]
    held = torch.isin(select(both, right[0]).train, chosen.holdout)
    same = train.dataset.targets == right[0][select(both, right[0]).train]
    assert same[held].all()
    assert torch.equal(same[~held], ~(get_noisy(every) != right[0][chosen.train]))


def get_noisy(dataset):
    return get_dataset(noise_config(**dataset))[0].dataset.targets


def test_folders_have_wrong_labels_too(big):
    cfg = folder_config("imagenet", big.parent)
    right = get_dataset(cfg)[0].dataset
    cfg.DATASET.LABEL_NOISE = 0.5
    train, val, *_ = get_dataset(cfg)
    assert [path for path, _ in train.dataset.samples] == [path for path, _ in right.samples]
    wrong = [a != b for a, b in zip(train.dataset.targets, right.targets, strict=True)]
    assert 0 < sum(wrong) == round(train.wrong_labels * len(wrong)) < len(wrong)
    assert [t for _, t in train.dataset.samples] == train.dataset.targets
    assert [t for _, target in val for t in target.tolist()] == val.dataset.targets
    assert (
        val.dataset.targets == get_dataset(folder_config("imagenet", big.parent))[1].dataset.targets
    )


def test_a_data_set_that_knows_no_noise_says_so(monkeypatch):
    monkeypatch.setitem(dataset_dict, "mine", lambda cfg: (list(batches(0)), [], 24, 5))
    assert get_dataset(noise_config(TYPE="mine"))[2] == 24
    with pytest.raises(ConfigError, match=r"DATASET.LABEL_NOISE has no effect on mine"):
        get_dataset(noise_config(TYPE="mine", LABEL_NOISE=0.1))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("DATASET.LABEL_NOISE", 1.0), "DATASET.LABEL_NOISE must be in [0, 1), not 1.0"),
        (("DATASET.LABEL_NOISE_KIND", "odd"), "must be one of symmetric, pair, not 'odd'"),
        (("DISTILLER.TEACHER_FAULT", "odd"), "must be one of none, permute, random, not 'odd'"),
        (("DATASET.TRAIN_ON_HOLDOUT", True), "DATASET.TRAIN_ON_HOLDOUT needs DATASET.HOLDOUT"),
        (
            ("DATASET.TRAIN_ON_HOLDOUT", True, "DATASET.HOLDOUT", 9),
            "would validate on images that are trained on; set DATASET.VALIDATE to test",
        ),
    ],
)
def test_what_is_refused(opts, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_config(load_cfg("configs/digits/kd.yaml", opts))


def test_stress_is_part_of_what_a_run_is():
    plain = load_cfg("configs/digits/kd.yaml")
    assert not any(
        "NOISE" in key or "FAULT" in key for key in identity_settings(settings_of(plain))
    )
    for opts in (("DATASET.LABEL_NOISE", 0.4), ("DISTILLER.TEACHER_FAULT", "permute")):
        assert identity(load_cfg("configs/digits/kd.yaml", opts)) != identity(plain)


# --- teachers ---------------------------------------------------------------------------------


@given(st.integers(2, 40), st.integers(0, 10**6))
def test_a_derangement_moves_everything(count, seed):
    order = derangement(count, seed)
    assert sorted(order.tolist()) == list(range(count))
    assert all(i != j for i, j in enumerate(order.tolist()))
    assert torch.equal(order, derangement(count, seed))


def test_one_class_cannot_be_permuted():
    with pytest.raises(ConfigError, match="needs two classes"):
        derangement(1, 0)
    with pytest.raises(ConfigError, match="ends in a linear layer"):
        permute_classes(ToyNet(), derangement(4, 0))


def test_a_permuted_teacher_has_other_logits_and_the_same_features():
    """In every family: the classifier has another name in each."""
    names = ("convnet12", "resnet8", "ResNet18", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1")
    networks = [cifar_model_dict[n][0](num_classes=7) for n in (*names, "ShuffleV2")]
    networks += [imagenet_model_dict["MobileNetV1"](num_classes=7)]
    image, order = torch.randn(2, 3, 32, 32), derangement(7, 3)
    for network in networks:
        network.eval()
        size = 64 if network is networks[-1] else 32
        picture = torch.nn.functional.interpolate(image, size=size)
        with torch.no_grad():
            logits, features = network(picture)
            permute_classes(network, order)
            permuted, same = network(picture)
        torch.testing.assert_close(permuted, logits[:, order])
        assert torch.equal(features["pooled_feat"], same["pooled_feat"])


def faulty(teacher_file, fault, seed=0):
    opts = ("DISTILLER.TEACHER_FAULT", fault, "EXPERIMENT.SEED", seed)
    opts += ("DISTILLER.TEACHER", "convnet12", "DISTILLER.TEACHER_CKPT", str(teacher_file))
    return load_cfg("configs/digits/kd.yaml", opts)


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "weights"
    torch.manual_seed(0)
    torch.save({"model": cifar_model_dict["convnet12"][0](num_classes=10).state_dict()}, path)
    return path


def test_faults_come_from_the_runs_seed(teacher_file):
    def teacher(fault, seed=0):
        return build_distiller(faulty(teacher_file, fault, seed), 10, 1).teacher.state_dict()

    right, permuted, other = teacher("none"), teacher("permute"), teacher("permute", 1)
    changed = {k for k in right if not torch.equal(right[k], permuted[k])}
    assert changed == {"fc.weight", "fc.bias"}
    order = derangement(10, 0)
    assert torch.equal(permuted["fc.weight"], right["fc.weight"][order])
    assert not torch.equal(permuted["fc.bias"], other["fc.bias"])
    teacher_file_is_not_read = faulty("/nonexistent", "random")
    a, b = (build_distiller(teacher_file_is_not_read, 10, 1).teacher for _ in range(2))
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    assert not torch.equal(
        a.fc.weight, build_distiller(faulty("x", "random", 1), 10, 1).teacher.fc.weight
    )


# --- the look at a teacher --------------------------------------------------------------------


@given(st.integers(2, 100), st.integers(16, 300), st.integers(0, 1000))
def test_guesses_are_at_chance_and_knowledge_is_not(classes, images, seed):
    rng = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (images,), generator=rng)
    assert not agreement(target, target).at_chance or (target == target[0]).all()
    never = agreement((target + 1) % classes, target)
    assert never.at_chance
    assert never.same == 0
    # One class for all, however frequent it is, is a guess.
    most = torch.full_like(target, int(target.mode().values))
    assert agreement(most, target).at_chance


def test_chance_is_rarely_taken_for_knowledge():
    rng = torch.Generator().manual_seed(0)
    for classes in (2, 10, 100):
        guess, target = torch.randint(classes, (2, 2000, 64), generator=rng)
        found = [agreement(g, t) for g, t in zip(guess, target, strict=True)]
        assert sum(not f.at_chance for f in found) / 2000 < 0.03
        expected = sum(f.by_chance for f in found) / 2000
        assert expected == pytest.approx(64 / classes, rel=0.05)


def test_few_images_tell_nothing():
    assert not Agreement(0, 15, 1.5).at_chance
    assert Agreement(0, 16, 1.6).at_chance


class Knows(ToyNet):
    """Says the class that the first pixel holds."""

    def forward(self, x):
        logits, features = super().forward(x)
        return logits * 0 + torch.nn.functional.one_hot(x[:, 0, 0, 0].long(), 5), features


def loaders(shift=0):
    """Images that hold their class plus ``shift`` in every pixel, for training and validation."""
    targets = torch.arange(100) % 5
    pixels = ((targets + shift) % 5).to(torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
    data = ImageArray(pixels.contiguous(), targets, 5)
    recipe = Recipe((0.0,) * 3, (1 / 255,) * 3, flip=False)
    kinds = {"recipe": recipe, "device": torch.device("cpu")}
    return [ArrayLoader(data, 32, train=train, **kinds) for train in (True, False)]


def look(tmp_path, capsys, *loaders, teacher=None, opts=()):
    cfg = config(tmp_path, "DISTILLER.TEACHER", "resnet56", *opts)
    found = look_at_teacher(cfg, teacher or Knows(), *loaders)
    log_teacher(cfg, found)
    return found, capsys.readouterr().out


def test_a_good_teacher_is_reported_without_a_warning(tmp_path, capsys):
    train, val = loaders()
    found, printed = look(tmp_path, capsys, train, val, opts=("DATASET.TYPE", "digits"))
    assert (
        printed == "teacher resnet56: top-1 100.00, predicts 32 of 32 labels of a training batch\n"
    )
    assert found.results == {"teacher_top1": 100.0, "teacher_agreement": 100.0}
    # Of a stream of its own: the training's first epoch is still to come.
    assert torch.equal(next(iter(train))[2], next(iter(loaders()[0]))[2])


def test_a_teacher_with_another_class_order_is_called_that(tmp_path, capsys):
    train, val = loaders(shift=1)
    teacher = Knows().train()
    found, printed = look(
        tmp_path, capsys, train, val, teacher=teacher, opts=("DATASET.TYPE", "digits")
    )
    assert found.results == {"teacher_top1": 0.0, "teacher_agreement": 0.0}
    assert "predicts 0 of 32 labels" in printed
    assert "warning: teacher resnet56 is at chance level: it predicts 0 of 32" in printed
    assert "wrong class order? other normalisation? trained on another data set?" in printed
    assert teacher.training
    fault = ("DISTILLER.TEACHER_FAULT", "permute", "DATASET.TYPE", "imagenet")
    found, printed = look(tmp_path, capsys, train, val, opts=fault)
    assert "(DISTILLER.TEACHER_FAULT is permute)" in printed
    assert found.results == {"teacher_agreement": 0.0}  # all of ImageNet's would take too long


def test_a_teacher_far_below_its_published_accuracy_is_noticed(tmp_path, capsys):
    found, printed = look(tmp_path, capsys, [], list(batches(0)), teacher=ToyNet())
    assert f"top-1 {found.top1:.2f} (published 72.34)\n" in printed
    assert "warning: teacher resnet56 is" in printed
    assert "below its published accuracy" in printed
    log_teacher(config(tmp_path), Look())
    assert capsys.readouterr().out == ""


def test_a_training_tells_of_noise_and_of_its_teacher(tmp_path, teacher_file, capsys):
    opts = ("DATASET.SUBSET", 128, "DATASET.LABEL_NOISE", 0.4, "LOG.PREFIX", str(tmp_path))
    opts += ("SOLVER.EPOCHS", 1, "SOLVER.LR_DECAY_STAGES", [], "DISTILLER.STUDENT", "convnet12")
    opts += ("DISTILLER.TEACHER", "convnet12", "DISTILLER.TEACHER_CKPT", str(teacher_file))
    result = run_training(load_cfg("configs/digits/kd.yaml", opts))
    printed = capsys.readouterr().out
    assert 25 < result["wrong_labels"] < 55
    wrong = f"{result['wrong_labels']:.2f} % of the training labels are wrong"
    assert f"label noise, symmetric: {wrong}" in printed
    same = round(result["teacher_agreement"] * 64 / 100)
    assert f"predicts {same} of 64 labels of a training batch" in printed
    assert "warning: teacher convnet12 is at chance level" in printed
