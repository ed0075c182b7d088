"""Weightings of torchjd by the losses' values, and by the products of two batches' gradients."""

from __future__ import annotations

import pytest
import torch
from torchjd.aggregation import MoDoWeighting

from mdistiller.weighting.scalarizers import METHODS, Scalarization
from mdistiller.weighting.two_batch import CrossGramianWeighting

LOSSES = torch.tensor([[2.0, 0.5], [1.5, 0.6], [1.2, 0.4], [1.3, 0.2], [0.9, 0.3], [0.8, 0.1]])


def run(scalarization: Scalarization, losses: torch.Tensor) -> list[list[float]]:
    """Weights of steps, two of which make an epoch; learned scales take a step each time."""
    found = []
    for step, values in enumerate(losses):
        found.append(scalarization(values).tolist())
        for parameter in scalarization.learnable:
            parameter.data -= 0.1 * parameter.grad
        if scalarization.needs_losses_after:
            scalarization.after_step(values * torch.tensor([0.9, 0.5]))
        if step % 2:
            scalarization.after_epoch()
    return found


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_scalarization_gives_the_same_bits(method):
    whole = run(Scalarization(method), LOSSES)
    first, second = Scalarization(method), Scalarization(method)
    assert run(first, LOSSES[:4]) == whole[:4]
    second.load_state_dict(first.state_dict())
    run(first, LOSSES[:2])  # what was saved shares no memory with it
    assert run(second, LOSSES[4:]) == whole[4:]
    other = next(m for m in METHODS if m != method)
    with pytest.raises(ValueError, match="not " + other):
        Scalarization(other).load_state_dict(first.state_dict())


def test_weights_by_values():
    dwa = run(Scalarization("DWA"), LOSSES)
    # Two epochs with weights 1, then more on what fell less.
    assert dwa[:4] == [[1, 1]] * 4
    rates = LOSSES[2:4].mean(0) / LOSSES[:2].mean(0)
    assert torch.allclose(torch.tensor(dwa[4]), 2 * torch.softmax(rates / 2, 0))
    famo = Scalarization("FAMO")
    weights = famo(LOSSES[0])
    # Equal logits: weights inverse to the losses, sum 1.
    assert weights.tolist() == pytest.approx([0.2, 0.8], rel=1e-6)
    famo.after_step(LOSSES[0] * torch.tensor([1.0, 0.5]))
    # What fell faster weighs less from now on.
    assert famo(LOSSES[0])[1] < weights[1]
    stch = Scalarization("STCH", {"mu": 0.01})(LOSSES[0])
    assert stch.tolist() == pytest.approx([0.5, 0.0], abs=1e-6)
    scales = Scalarization("IMTL-L")
    assert scales(LOSSES[0]).tolist() == [1, 1]
    for _ in range(2000):
        scales(LOSSES[0])
        scales.learnable[0].data -= 0.01 * scales.learnable[0].grad
    # At its optimum exp(s) L = 1 for both.
    assert (scales(LOSSES[0]) * LOSSES[0]).tolist() == pytest.approx([1, 1], rel=1e-3)


def test_bad_arguments_are_one_line():
    for make in (
        lambda: Scalarization("STCH", {"mu": -1.0}),
        lambda: Scalarization("FAMO", {"rate": 1}),
        lambda: Scalarization("Famo"),
        lambda: CrossGramianWeighting("MoDo", {"gamma": 0.0}),
        lambda: CrossGramianWeighting("MGDA"),
    ):
        with pytest.raises(ValueError) as error:
            make()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["MoDo", "SDMGrad"])
def test_a_resumed_two_batch_weighting_gives_the_same_bits(method):
    generator = torch.Generator().manual_seed(0)
    products = torch.randn(6, 2, 2, generator=generator, dtype=torch.float64)
    arguments = {"gamma": 0.5} if method == "MoDo" else {"lr": 0.1, "pref_vector": [0.7, 0.3]}
    whole = CrossGramianWeighting(method, arguments)
    expected = [whole(p).tolist() for p in products]
    first, second = (CrossGramianWeighting(method, arguments) for _ in range(2))
    assert [first(p).tolist() for p in products[:3]] == expected[:3]
    second.load_state_dict(first.state_dict())
    assert [second(p).tolist() for p in products[3:]] == expected[3:]
    if method == "MoDo":
        reference = MoDoWeighting(gamma=0.5)
        assert [reference(p).tolist() for p in products] == expected
