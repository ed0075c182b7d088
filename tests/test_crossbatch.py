"""The cross-batch trainer against the equations, on networks small enough to check by hand."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mdistiller.distillers import KD, RKD, CrossBatchDistiller, distiller_dict
from mdistiller.engine import BaseTrainer, CrossBatchTrainer
from mdistiller.errors import ConfigError, NonFiniteError
from mdistiller.weighting import CrossBatchWeighting

from .toys import (
    CrossBatchToyHint,
    ToyHint,
    batches,
    config,
    loader,
    networks,
)

CrossBatchKD, CrossBatchRKD = distiller_dict["CROSSBATCH_KD"], distiller_dict["CROSSBATCH_RKD"]

# As the computations by hand do it, so that results agree to the last digits.
PLAIN = ("SOLVER.CHANNELS_LAST", False, "SOLVER.FOLD_TEACHER", False)


def flat(tensors) -> torch.Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def student_vector(distiller) -> torch.Tensor:
    return flat(p.detach() for p in distiller.student.parameters())


def crossbatch_trainer(tmp_path, *opts, distiller=CrossBatchKD, dtype=torch.float64, norm=True):
    cfg = config(tmp_path, *PLAIN, *opts)
    student, teacher = networks(norm=norm, dtype=dtype)
    data = loader(dtype=dtype)
    return CrossBatchTrainer("run", distiller(student, teacher, cfg).to(dtype), data, data, cfg)


def one_step(trainer) -> torch.Tensor:
    """The gradient left by the first step, over the student's parameters."""
    trainer.distiller.train()
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.backward(next(iter(trainer.batches(1))), epoch=1)
    return flat(p.grad for p in trainer.distiller.student.parameters())


def by_hand(tmp_path, distiller_class, **arguments):
    """g_ce, g_kd, G of the first step, each by a backward pass of its own; and the update."""
    cfg = config(tmp_path)
    data = loader(dtype=torch.float64)
    image, target, index = data[0]
    rows = []
    for part in (0, 1):
        student, teacher = networks(dtype=torch.float64)
        torch.manual_seed(0)
        distiller = distiller_class(student, teacher, cfg).to(torch.float64).train()
        _, losses = distiller(image=image, target=target, index=index, epoch=1)
        distiller.split_losses(losses)[part].backward()
        rows.append(
            flat(torch.zeros_like(p) if p.grad is None else p.grad for p in student.parameters())
        )
    student, _ = networks(dtype=torch.float64)
    student.train()
    F.cross_entropy(student(data.auxiliary[0][0])[0], data.auxiliary[0][1]).backward()
    rows = torch.stack([*rows, flat(p.grad for p in student.parameters())])
    w = CrossBatchWeighting(**arguments)(rows @ rows.T)
    return w, w.ce * rows[0] + w.kd * rows[1], rows


@pytest.mark.parametrize("reading", ["align", "printed", "orthogonal", "cone", "regression"])
@pytest.mark.parametrize("step", ["paper", "plain", "supervised"])
@pytest.mark.parametrize("distiller", [CrossBatchKD, CrossBatchRKD])
def test_gradient_is_that_of_the_equations(tmp_path, reading, step, distiller):
    options = ("CROSSBATCH.READING", reading, "CROSSBATCH.STEP", step)
    found = one_step(crossbatch_trainer(tmp_path, *options, distiller=distiller))
    _, expected, _ = by_hand(tmp_path, distiller, reading=reading, step=step)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-14)


def test_lengths_of_the_update_and_of_the_plain_gradient_are_logged(tmp_path):
    trainer = crossbatch_trainer(tmp_path, "CROSSBATCH.ALPHA", 0.5)
    trainer.distiller.train()
    logged = trainer.backward(next(iter(trainer.batches(1))), epoch=1).diagnostics
    _, update, rows = by_hand(tmp_path, CrossBatchKD, reading="align", alpha=0.5)
    assert logged["norm_update"].item() == pytest.approx(update.norm().item(), rel=1e-6)
    assert logged["norm_sum"].item() == pytest.approx((rows[0] + rows[1]).norm().item(), rel=1e-6)
    assert logged["norm_sum"].item() != pytest.approx(logged["norm_update"].item(), rel=1e-3)


def test_same_as_one_backward_of_the_weighted_losses(tmp_path):
    found = one_step(crossbatch_trainer(tmp_path))
    w, _, _ = by_hand(tmp_path, CrossBatchKD, reading="align")
    student, teacher = networks(dtype=torch.float64)
    distiller = CrossBatchKD(student, teacher, config(tmp_path)).train()
    image, target, _ = loader(dtype=torch.float64)[0]
    _, losses = distiller(image=image, target=target)
    (w.ce * losses["loss_ce"] + w.kd * losses["loss_kd"]).backward()
    expected = flat(p.grad for p in student.parameters())
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-14)


def test_batch_norm_buffers_equal_those_of_a_vanilla_step(tmp_path):
    trainer = crossbatch_trainer(tmp_path)
    one_step(trainer)
    student, teacher = networks(dtype=torch.float64)
    vanilla = KD(student, teacher, config(tmp_path)).train()
    image, target, _ = trainer.train_loader[0]
    vanilla(image=image, target=target)
    found, expected = (dict(d.student.named_buffers()) for d in (trainer.distiller, vanilla))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k]) for k in found)
    assert found["bn1.num_batches_tracked"] == 1


def test_reference_loss_is_plain_cross_entropy_in_train_mode_and_leaves_every_buffer(tmp_path):
    student, teacher = networks()
    student.own = nn.InstanceNorm2d(3, track_running_stats=True)
    plain_forward = student.forward
    student.forward = lambda x: plain_forward(student.own(x))
    distiller = CrossBatchKD(student, teacher, config(tmp_path)).train()
    before = copy.deepcopy(dict(student.named_buffers()))
    image, target, _ = next(batches(5))
    loss = distiller.reference_loss(image, target)
    assert all(torch.equal(v, before[k]) for k, v in student.named_buffers())
    assert loss.item() == pytest.approx(F.cross_entropy(student(image)[0], target).item())
    assert not torch.equal(student.bn1.running_mean, before["bn1.running_mean"])
    loss.backward()
    assert all(p.grad is not None for p in student.parameters())


def test_extra_parameters_get_the_plain_gradient_of_their_loss(tmp_path):
    for period, step in ((1, 1), (2, 2)):
        torch.manual_seed(0)
        trainer = crossbatch_trainer(
            tmp_path / str(period), "CROSSBATCH.PERIOD", period, distiller=CrossBatchToyHint
        )
        trainer.distiller.train()
        steps = trainer.batches(1)
        for _ in range(step):
            batch = next(steps)
            reference = copy.deepcopy(trainer.distiller)
            trainer.optimizer.zero_grad(set_to_none=True)
            trainer.backward(batch, epoch=1)
        _, losses = reference(**batch.inputs(1))
        losses["loss_kd"].backward()
        for p, q in zip(
            trainer.distiller.regressor.parameters(), reference.regressor.parameters(), strict=True
        ):
            assert torch.allclose(p.grad, q.grad, rtol=1e-10)


def test_parameter_that_no_loss_reaches_gets_no_gradient(tmp_path):
    cfg = config(tmp_path, "SOLVER.WEIGHT_DECAY", 0.1)
    student, teacher = networks()
    student.unused = nn.Linear(2, 2)
    before = student.unused.weight.clone()
    data = loader()
    CrossBatchTrainer("run", CrossBatchKD(student, teacher, cfg), data, data, cfg).train()
    assert student.unused.weight.grad is None
    assert torch.equal(student.unused.weight, before)


def train(tmp_path, name, *opts, distiller=CrossBatchKD, dtype=torch.float64, **options):
    trainer = crossbatch_trainer(
        tmp_path / name, *opts, distiller=distiller, dtype=dtype, **options
    )
    trainer.train()
    return student_vector(trainer.distiller)


@pytest.mark.parametrize("method", ["KD", "RKD"])
def test_alpha_zero_is_vanilla_training_at_half_the_weights(tmp_path, method):
    weights = ("LOSS.CE_WEIGHT", "LOSS.KD_WEIGHT" if method == "KD" else "LOSS.FEAT_WEIGHT")
    node = config(tmp_path)[method].LOSS
    half = [x for k in weights for x in (f"{method}.{k}", node[k.split(".")[1]] / 2)]
    found = train(
        tmp_path, "cross", "CROSSBATCH.ALPHA", 0, distiller=distiller_dict[f"CROSSBATCH_{method}"]
    )
    cfg = config(tmp_path / "vanilla", *PLAIN, *half)
    student, teacher = networks(dtype=torch.float64)
    data = loader(dtype=torch.float64)
    vanilla = {"KD": KD, "RKD": RKD}[method](student, teacher, cfg)
    BaseTrainer("run", vanilla, data, data, cfg).train()
    assert torch.allclose(found, student_vector(vanilla), rtol=1e-9, atol=1e-12)


def test_printed_needs_no_second_batch(tmp_path):
    printed = ("CROSSBATCH.READING", "printed")
    fresh = train(tmp_path, "fresh", *printed, dtype=torch.float32)
    for reference in ("none", "same", "previous"):
        other = train(
            tmp_path, reference, *printed, "CROSSBATCH.REFERENCE", reference, dtype=torch.float32
        )
        assert torch.equal(fresh, other)


def test_prefer_has_no_effect_with_stabilisation_and_one_without(tmp_path):
    ce, kd = (train(tmp_path, f"{p}1", "CROSSBATCH.PREFER", p) for p in ("ce", "kd"))
    assert torch.equal(ce, kd)
    raw = ("CROSSBATCH.STABILIZE", False, "CROSSBATCH.PREFER")
    ce, kd = (train(tmp_path, f"{p}2", *raw, p) for p in ("ce", "kd"))
    assert not torch.allclose(ce, kd)


CHANGES = {
    "READING": "orthogonal",
    "ALPHA": 0.7,
    "RESCALE": 1,
    "EMA": 0.9,
    "REFERENCE": "same",
    "PERIOD": 2,
    "STABILIZE": False,
    "STEP": "supervised",
}


@pytest.fixture(scope="module")
def default(tmp_path_factory) -> torch.Tensor:
    torch.manual_seed(0)
    return train(tmp_path_factory.mktemp("run"), "default")


@pytest.mark.parametrize("key", CHANGES)
def test_every_option_reaches_the_training(tmp_path, default, key):
    assert not torch.allclose(default, train(tmp_path, "other", f"CROSSBATCH.{key}", CHANGES[key]))


def test_ridge_and_max_ratio_reach_the_training(tmp_path):
    ridge = ("CROSSBATCH.READING", "orthogonal", "CROSSBATCH.RIDGE")
    assert not torch.allclose(train(tmp_path, "a", *ridge, 0), train(tmp_path, "b", *ridge, 1))
    ratio = ("CROSSBATCH.STABILIZE", False, "CROSSBATCH.MAX_RATIO")
    assert not torch.allclose(train(tmp_path, "c", *ratio, 10), train(tmp_path, "d", *ratio, 0.01))


def test_reference_previous_is_the_last_batch_and_same_the_current_one(tmp_path):
    for reference, expected in (("previous", 0), ("same", 1)):
        trainer = crossbatch_trainer(tmp_path / reference, "CROSSBATCH.REFERENCE", reference)
        trainer.distiller.train()
        supervised = []
        for _, batch in zip(range(2), trainer.batches(1), strict=False):
            assert batch.auxiliary is None
            trainer.step(batch, 1)
            supervised.append(trainer._gradients.buffer[0].clone())
        assert torch.equal(trainer._gradients.buffer[2], supervised[expected])


def test_period_reuses_the_weights_and_draws_no_second_batch(tmp_path):
    trainer = crossbatch_trainer(tmp_path, "CROSSBATCH.PERIOD", 3)
    trainer.distiller.train()
    seen, weights = [], []
    for batch in trainer.batches(1):
        seen.append(batch.auxiliary is not None)
        result = trainer.step(batch, 1)
        weights.append(trainer._weights)
        assert bool(result.diagnostics) == seen[-1]
    assert seen == [True, False, False, True]
    assert weights[0] is weights[1] is weights[2]
    assert weights[3] is not weights[0]


def test_batch_of_twice_the_size_equals_the_mean_over_two_processes(tmp_path):
    """Gradients averaged before the weighting, as data-parallel training does it."""
    whole = crossbatch_trainer(tmp_path / "whole", norm=False)
    expected = one_step(whole)
    rows = []
    for half in (slice(0, 3), slice(3, 6)):
        part = crossbatch_trainer(tmp_path / str(half.start), norm=False)
        for data in (part.train_loader, part.auxiliary_loader):
            data[0] = tuple(x[half] for x in data[0])
        one_step(part)
        rows.append(part._gradients.buffer.clone())
    mean = (rows[0] + rows[1]) / 2
    w = whole.weighting(mean @ mean.T)
    assert torch.allclose(w.ce * mean[0] + w.kd * mean[1], expected, rtol=1e-9, atol=1e-14)


def test_auxiliary_batches_larger_than_the_current_ones_go_round(tmp_path):
    cfg = config(tmp_path)
    student, teacher = networks()
    data = loader()
    data.auxiliary = data.auxiliary[:1]
    trainer = CrossBatchTrainer("run", CrossBatchKD(student, teacher, cfg), data, data, cfg)
    trainer.train()
    assert (tmp_path / "run" / "result.json").exists()


def test_state_continues_across_trainers(tmp_path):
    for opts in (
        ("CROSSBATCH.EMA", 0.9, "CROSSBATCH.PERIOD", 3),
        ("CROSSBATCH.REFERENCE", "previous"),
        ("CROSSBATCH.READING", "regression", "CROSSBATCH.STEP", "plain"),
    ):
        name = opts[0]
        whole = train(tmp_path, f"{name} whole", *opts)
        part = crossbatch_trainer(tmp_path / f"{name} part", *opts, "SOLVER.EPOCHS", 1)
        part.train()
        rest = crossbatch_trainer(tmp_path / f"{name} part", *opts)
        rest.train(resume=True, allow_changes=True)
        assert torch.equal(whole, student_vector(rest.distiller))


# ---- what it refuses -----------------------------------------------------------------------


def test_any_distiller_of_two_losses_trains_the_same(tmp_path):
    plain, twin = (
        one_step(crossbatch_trainer(tmp_path, distiller=d)) for d in (ToyHint, CrossBatchToyHint)
    )
    assert torch.equal(plain, twin)


def test_needs_a_second_stream(tmp_path):
    cfg = config(tmp_path)
    student, teacher = networks()
    data = list(batches(0))
    with pytest.raises(ConfigError, match="auxiliary_loader"):
        CrossBatchTrainer("run", CrossBatchKD(student, teacher, cfg), data, data, cfg)


def test_a_loss_of_no_kind_is_named(tmp_path):
    class Stray(CrossBatchToyHint):
        supervised_losses = ("loss_ce",)

    trainer = crossbatch_trainer(tmp_path, distiller=Stray)
    with pytest.raises(ValueError, match="Stray.*loss_entropy.*neither"):
        one_step(trainer)


@pytest.mark.parametrize("bad", ["loss_kd", "reference"])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, bad):
    class Bad(CrossBatchKD):
        calls = 0

        def forward_train(self, image, target, **kwargs):
            logits, losses = super().forward_train(image, target, **kwargs)
            type(self).calls += 1
            if bad == "loss_kd" and self.calls == 6:
                losses["loss_kd"] = losses["loss_kd"] * float("nan")
            return logits, losses

        def reference_loss(self, image, target):
            loss = CrossBatchDistiller.reference_loss(self, image, target)
            return loss * float("inf") if bad == "reference" and self.calls == 5 else loss

    trainer = crossbatch_trainer(tmp_path, distiller=Bad)
    with pytest.raises(NonFiniteError, match=f"epoch 2, step 2: .*{bad}"):
        trainer.train()
    # The checkpoint of the first epoch is there and sound.
    model = torch.load(tmp_path / "run" / "latest", weights_only=True)
    assert model["epoch"] == 1
    assert all(torch.isfinite(v).all() for v in model["model"].values())
