"""Held-out references and the parameters that both losses reach (CROSSBATCH.REFERENCE, THETA)."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
import torch.nn.functional as F

from mdistiller.dataset import ArrayLoader, Recipe, get_dataset
from mdistiller.distillers import distiller_dict
from mdistiller.engine.cfg import CFG
from mdistiller.engine.check import check_config
from mdistiller.engine.trainers.crossbatch import _pass_number, endless
from mdistiller.errors import ConfigError
from mdistiller.weighting import CrossBatchWeighting, gramian

from .test_crossbatch import by_hand, crossbatch_trainer, flat, one_step, student_vector, train
from .test_resume import build, images
from .toys import CrossBatchToyHint, networks

HELDOUT = "regression on held-out images"
CrossBatchKD, CrossBatchRKD = distiller_dict["CROSSBATCH_KD"], distiller_dict["CROSSBATCH_RKD"]
SHARED = ("CROSSBATCH.THETA", "shared")

# ---- the reference from held-out images ----------------------------------------------------


def heldout_steps(trainer) -> list[torch.Tensor]:
    """The held-out batches that three epochs of training draw."""
    steps = []
    for epoch in (1, 2, 3):
        for batch in trainer.batches(epoch):
            if batch.auxiliary is not None:
                steps.append(batch.auxiliary.image)
    return steps


def test_reference_is_the_gradient_on_a_batch_of_held_out_images(tmp_path):
    trainer = build(tmp_path, HELDOUT)
    student, _ = networks()
    student.load_state_dict(trainer.distiller.student.state_dict())
    student.train()
    trainer.distiller.train()
    batch = next(iter(trainer.batches(1)))
    F.cross_entropy(student(batch.auxiliary.image)[0], batch.auxiliary.target).backward()
    trainer.step(batch, 1)
    expected = flat(p.grad for p in student.parameters())
    found = flat(v.contiguous() for v in trainer._gradients.views(trainer._gradients.buffer[2]))
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_held_out_batches_are_shuffled_augmented_and_never_end(tmp_path):
    trainer = build(tmp_path, HELDOUT)
    stream = trainer.auxiliary_loader
    assert stream.dataset is trainer.train_loader.heldout.dataset
    # 10 images in batches of 4: two passes and the first batch of a third in every epoch.
    assert [len(b) for b in heldout_steps(trainer)] == [4, 4, 2, 4, 4] * 3
    indices = []
    for number in (1, 2):
        stream.set_epoch(number)
        indices.append(torch.cat([index for _, _, index in stream]))
        assert sorted(indices[-1].tolist()) == list(range(10))
    assert not torch.equal(*indices)
    plain = ArrayLoader(
        images(3, 10, 1),
        10,
        recipe=Recipe((0.5,) * 3, (0.25,) * 3, flip=True),
        device=torch.device("cpu"),
        train=False,
    )
    stream.set_epoch(1)
    (still, _) = next(iter(plain))
    shown = torch.cat([image for image, _, _ in stream])
    assert not torch.allclose(shown, still[indices[0]])


def test_a_stream_of_its_own_depends_on_the_seed_and_not_on_the_training_set(tmp_path):
    one = build(tmp_path / "1", HELDOUT)
    again = build(tmp_path / "2", HELDOUT)
    other = build(tmp_path / "3", HELDOUT)
    other.auxiliary_loader.seed = 1
    a, b, c = (heldout_steps(t) for t in (one, again, other))
    assert all(map(torch.equal, a, b))
    assert not all(map(torch.equal, a, c))


def test_period_draws_a_held_out_batch_only_where_it_solves(tmp_path):
    trainer = build(tmp_path, HELDOUT, "CROSSBATCH.PERIOD", 2)
    assert len(heldout_steps(trainer)) == 8  # of 15 steps


def test_more_passes_than_thousand_in_an_epoch():
    class One(list):
        """A loader of one batch, its epoch's number."""

        def set_epoch(self, epoch):
            self[:] = [epoch]

    epochs = [[b for _, b in islice(endless(One([0]), e, 0), 2500)] for e in (1, 2, 3)]
    assert len({number for numbers in epochs for number in numbers}) == 3 * 2500
    assert epochs[1][:3] == [1001, 1002, 1003]  # as before there were so many
    assert next(endless(One([0]), 2, 2499)) == (0, epochs[1][2499])
    assert _pass_number(1, 0) == 1


def test_needs_held_out_images(tmp_path):
    cfg = CFG.clone()
    cfg.merge_from_list(
        [
            *("DATASET.TYPE", "digits", "DISTILLER.STUDENT", "resnet8", "SOLVER.DEVICE", "cpu"),
            *("DISTILLER.TYPE", "CROSSBATCH_KD", "SOLVER.TRAINER", "crossbatch"),
            *("DISTILLER.TEACHER", "resnet14", "CROSSBATCH.REFERENCE", "holdout"),
        ]
    )
    with pytest.raises(ConfigError, match="CROSSBATCH.REFERENCE holdout.*DATASET.HOLDOUT is 0"):
        check_config(cfg)
    cfg.DATASET.HOLDOUT = 100
    check_config(cfg)
    cfg.merge_from_list(["DATASET.TRAIN_ON_HOLDOUT", True, "DATASET.VALIDATE", "test"])
    with pytest.raises(ConfigError, match="DATASET.TRAIN_ON_HOLDOUT.*REFERENCE holdout"):
        check_config(cfg)
    with pytest.raises(ConfigError, match="holdout needs a second stream.*auxiliary_loader"):
        crossbatch_trainer(tmp_path, "CROSSBATCH.REFERENCE", "holdout")
    trainer = build(tmp_path, HELDOUT)
    trainer.train_loader.heldout = None
    with pytest.raises(ConfigError, match="DATASET.HOLDOUT"):
        trainer.train_loader.heldout_stream("heldout")


@pytest.mark.parametrize("validate", ["auto", "test"])
def test_held_out_images_are_never_trained_on_and_validation_is_as_asked(validate):
    def digits(**keys):
        cfg = CFG.clone()
        cfg.merge_from_list(["DATASET.TYPE", "digits", "SOLVER.DEVICE", "cpu"])
        for key, value in keys.items():
            cfg.DATASET[key] = value
        return get_dataset(cfg)

    plain, test, _, _ = digits()
    train_loader, val, number, _ = digits(HOLDOUT=100, VALIDATE=validate)
    held = train_loader.heldout_stream("heldout", 64)
    assert (len(held.dataset), number) == (100, len(plain.dataset) - 100)
    # Together they are the training set, each image once.
    both = torch.cat([train_loader.dataset.images, held.dataset.images]).flatten(1).long()
    key = torch.arange(both.shape[1]) % 9973 + 1
    everything = plain.dataset.images.flatten(1).long()
    assert sorted((both @ key).tolist()) == sorted((everything @ key).tolist())
    expected = held.dataset.images if validate == "auto" else test.dataset.images
    assert torch.equal(val.dataset.images, expected)
    assert (val.train, val.dataset.padding, held.dataset.padding) == (False, 0, 4)
    assert plain.heldout is None


# ---- the parameters that both losses reach -------------------------------------------------


def test_parameters_that_one_loss_reaches_get_its_plain_gradient(tmp_path, capsys):
    trainer = crossbatch_trainer(tmp_path, *SHARED, distiller=CrossBatchRKD)
    one_step(trainer)
    _, _, rows = by_hand(tmp_path, CrossBatchRKD)
    student = trainer.distiller.student
    sizes = [p.numel() for p in student.parameters()]
    names = [name for name, _ in student.named_parameters()]
    parts = dict(zip(names, rows.split(sizes, dim=1), strict=True))
    # RKD sees pooled features, so the classifier is the supervised loss's alone.
    shared = torch.cat([part for name, part in parts.items() if not name.startswith("fc")], 1)
    w = CrossBatchWeighting()(gramian(shared))
    for name, p in student.named_parameters():
        ce, kd, _ = parts[name]
        expected = ce if name.startswith("fc") else w.ce * ce + w.kd * kd
        assert torch.allclose(p.grad.flatten(), expected, rtol=1e-9, atol=1e-13), name
    said = capsys.readouterr().out
    assert f"reach {len(names) - 2} of the student's {len(names)} parameters" in said
    assert "fc.weight, fc.bias" in said


def test_losses_that_reach_everything_share_everything(tmp_path):
    a = train(tmp_path, "student", dtype=torch.float32)
    b = train(tmp_path, "shared", *SHARED, dtype=torch.float32)
    assert torch.equal(a, b)


def test_shared_parameters_with_a_period_and_a_regressor(tmp_path):
    """Steps that reuse A and B give the classifier and the regressor the plain gradient, too."""
    torch.manual_seed(0)
    trainer = crossbatch_trainer(
        tmp_path, *SHARED, "CROSSBATCH.PERIOD", 2, distiller=CrossBatchToyHint
    )
    trainer.distiller.train()
    # Two gradients of the toy's losses; the entropy is part of the supervised one.
    for number, batch in enumerate(islice(trainer.batches(1), 2)):
        trainer.optimizer.zero_grad(set_to_none=True)
        trainer.backward(batch, epoch=1)
        parameters = dict(trainer.distiller.named_parameters())
        _, losses = trainer.distiller(**batch.inputs(1))
        supervised, distillation = trainer.distiller.split_losses(losses)
        for loss, prefix in ((supervised, "student.fc."), (distillation, "regressor.")):
            mine = [p for name, p in parameters.items() if name.startswith(prefix)]
            expected = torch.autograd.grad(loss, mine, retain_graph=True)
            assert len(mine) == 2
            for p, gradient in zip(mine, expected, strict=True):
                assert torch.allclose(p.grad, gradient, rtol=1e-9), (prefix, number)


class LateHint(CrossBatchToyHint):
    """Its distillation loss begins in the second epoch."""

    def forward_train(self, image, target, epoch=1, **kwargs):
        logits, losses = super().forward_train(image, target, **kwargs)
        if epoch == 1:
            losses["loss_kd"] = torch.zeros((), dtype=logits.dtype)
        return logits, losses


def test_a_loss_that_begins_later_is_waited_for(tmp_path, capsys):
    trainer = crossbatch_trainer(
        tmp_path, *SHARED, "CROSSBATCH.REFERENCE", "previous", distiller=LateHint
    )
    trainer.train()
    assert trainer.weighting.shared is not None
    assert sum(trainer.weighting.shared) == len(trainer.weighting.shared) - 2
    assert capsys.readouterr().out.count("THETA shared") == 1
    assert torch.isfinite(student_vector(trainer.distiller)).all()


def test_nothing_shared_is_refused(tmp_path):
    class Apart(CrossBatchKD):
        def forward_train(self, image, target, **kwargs):
            logits, losses = super().forward_train(image, target, **kwargs)
            fc = self.student.fc
            losses["loss_ce"] = (fc.weight**2).sum()
            losses["loss_kd"] = (self.student.conv1.weight**2).sum()
            return logits, losses

    with pytest.raises(ConfigError, match="THETA shared: no parameter"):
        one_step(crossbatch_trainer(tmp_path, *SHARED, distiller=Apart))


# ---- what does not go together -------------------------------------------------------------


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (("STEP", "long"), "CROSSBATCH.STEP must be one of paper, plain, supervised"),
        (("STEP", "plain", "STABILIZE", False), "STEP plain sets the length.*STABILIZE False"),
        (("STEP", "supervised", "RESCALE", 1), "STEP supervised sets the length.*RESCALE 1"),
        (("THETA", "both"), "CROSSBATCH.THETA must be one of student, shared"),
        (("READING", "regression", "REFERENCE", "none"), "only with CROSSBATCH.READING printed"),
    ],
)
def test_combinations_without_a_meaning(opts, words):
    cfg = CFG.clone()
    named = [f"CROSSBATCH.{x}" if i % 2 == 0 else x for i, x in enumerate(opts)]
    cfg.merge_from_list(
        [
            *("DATASET.TYPE", "digits", "DISTILLER.STUDENT", "resnet8", "SOLVER.DEVICE", "cpu"),
            *("DISTILLER.TYPE", "CROSSBATCH_KD", "SOLVER.TRAINER", "crossbatch"),
            *("DISTILLER.TEACHER", "resnet14", *named),
        ]
    )
    with pytest.raises(ConfigError, match=words) as error:
        check_config(cfg)
    assert "\n" not in str(error.value)


def test_validation_on_nothing_known():
    cfg = CFG.clone()
    cfg.merge_from_list(["DISTILLER.STUDENT", "resnet8", "DATASET.VALIDATE", "both"])
    with pytest.raises(ConfigError, match="DATASET.VALIDATE must be one of auto, test"):
        check_config(cfg)
