"""cross_batch_backward: the method as one call in anybody's loop."""

from __future__ import annotations

import copy
from itertools import product
from multiprocessing.queues import SimpleQueue

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mdistiller.weighting import CrossBatchWeighting, cross_batch_backward, frozen_statistics
from mdistiller.weighting.backward import NothingShared

from .commands import CONTEXT

READINGS = ("align", "orthogonal", "cone", "printed", "regression")


def student(norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    middle = nn.BatchNorm1d(6) if norm else nn.Identity()
    return nn.Sequential(nn.Linear(4, 6), middle, nn.Tanh(), nn.Linear(6, 3)).double()


def batches(n: int = 8, seed: int = 1) -> tuple[Tensor, ...]:
    """Images, labels, the teacher's logits; then another batch's images and labels."""
    g = torch.Generator().manual_seed(seed)
    x, x2, t = (torch.randn(n, d, generator=g, dtype=torch.float64) for d in (4, 4, 3))
    y, y2 = (torch.randint(3, (n,), generator=g) for _ in range(2))
    return x, y, t, x2, y2


def losses(net: nn.Module, x: Tensor, y: Tensor, t: Tensor) -> dict[str, Tensor]:
    logits = net(x)
    return {"ce": F.cross_entropy(logits, y), "kd": 3 * F.mse_loss(logits, t)}


def reference(net: nn.Module, x2: Tensor, y2: Tensor) -> Tensor:
    with frozen_statistics(net):
        return F.cross_entropy(net(x2), y2)


def gradients(net: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in net.parameters()]


def call(net, weighting, data=None, **options):
    x, y, t, x2, y2 = data or batches()
    options.setdefault("inputs", net.parameters())
    options.setdefault("reference", reference(net, x2, y2))
    return cross_batch_backward(losses(net, x, y, t), weighting=weighting, **options)


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("reading", READINGS)
def test_it_is_the_backward_of_the_weighted_sum(reading):
    net = student()
    weights = call(net, CrossBatchWeighting(reading=reading))
    found = gradients(net)
    net.zero_grad()
    x, y, t, *_ = batches()
    of = losses(net, x, y, t)
    (weights.ce * of["ce"] + weights.kd * of["kd"]).backward()
    assert_equal(found, gradients(net))


def test_the_second_batch_leaves_no_trace_in_the_buffers():
    seen, alone = student(), student()
    call(seen, CrossBatchWeighting())
    x, y, t, *_ = batches()
    losses(alone, x, y, t)
    assert_equal(seen.buffers(), alone.buffers())


def test_a_buffer_that_is_only_read_stays_usable_in_the_graph():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("factor", torch.full((3,), 2.0, dtype=torch.float64))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return x * self.factor

    net = nn.Sequential(*student(), Scaled())
    call(net, CrossBatchWeighting())
    assert net[-1].calls == 1


def test_gradients_are_added_to_what_is_there():
    net, fresh = student(), student()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    call(net, CrossBatchWeighting())
    call(fresh, CrossBatchWeighting())
    assert_equal(gradients(net), [g + 1 for g in gradients(fresh)])


def test_a_reference_may_be_given_as_its_gradients():
    net, other = student(), student()
    call(net, CrossBatchWeighting())
    *_, x2, y2 = batches()
    given = torch.autograd.grad(reference(other, x2, y2), list(other.parameters()))
    call(other, CrossBatchWeighting(), reference=given)
    assert_equal(gradients(other), gradients(net))


def test_frozen_and_unreached_parameters_get_nothing():
    net = student()
    net.idle = nn.Linear(2, 2).double()
    net.idle.forward = None
    net[0].bias.requires_grad_(False)
    body = nn.Sequential(*list(net)[:4])
    x, y, t, x2, y2 = batches()
    cross_batch_backward(
        losses(body, x, y, t),
        inputs=net.parameters(),
        weighting=CrossBatchWeighting(),
        reference=reference(body, x2, y2),
    )
    assert net[0].bias.grad is None
    assert net.idle.weight.grad is None
    assert net[0].weight.grad is not None


def test_plain_inputs_get_the_plain_gradient():
    net, head = student(), nn.Linear(3, 3).double()
    x, y, t, x2, y2 = batches()
    logits = net(x)
    ce, kd = F.cross_entropy(logits, y), F.mse_loss(head(logits), t)
    (plain,) = torch.autograd.grad(kd, [head.weight], retain_graph=True)
    cross_batch_backward(
        [ce, kd],
        inputs=net.parameters(),
        plain_inputs=head.parameters(),
        weighting=CrossBatchWeighting(),
        reference=reference(net, x2, y2),
    )
    assert_equal([head.weight.grad], [plain])


class Scaler:
    """What is used of a ``torch.amp.GradScaler``, which works on CUDA alone in old versions."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def scale(self, value: Tensor) -> Tensor:
        return value * self.factor


@pytest.mark.parametrize("reading", ["align", "regression"])
def test_the_update_is_the_same_at_any_scale(reading):
    plain, scaled = student(), student()
    ours, theirs = CrossBatchWeighting(reading=reading), CrossBatchWeighting(reading=reading)
    for seed, factor in ((1, 2.0**16), (2, 0.5)):
        plain.zero_grad()
        scaled.zero_grad()
        call(plain, ours, batches(seed=seed))
        call(scaled, theirs, batches(seed=seed), grad_scaler=Scaler(factor))
        assert_equal([g / factor for g in gradients(scaled)], gradients(plain))


def test_a_step_that_overflows_leaves_the_average():
    net, weighting = student(), CrossBatchWeighting(reading="regression")
    call(net, weighting)
    call(net, weighting, grad_scaler=Scaler(float("inf")))
    assert any(not g.isfinite().all() for g in gradients(net))  # GradScaler.step skips it
    state = weighting.state_dict()["average"]
    assert state.isfinite().all()
    # As if there had been no such step: the same batch again leaves the average where it was.
    again = call(net, weighting)
    once, fresh = CrossBatchWeighting(reading="regression"), student()
    call(fresh, once)
    torch.testing.assert_close(again.ce, call(fresh, once).ce)


def test_a_compiled_student_works_or_says_what_to_set(monkeypatch):
    whole = student(norm=False)
    call(whole, CrossBatchWeighting())
    net = student(norm=False)
    try:
        call(
            torch.compile(net, backend="aot_eager"), CrossBatchWeighting(), inputs=net.parameters()
        )
    except RuntimeError as error:
        assert "donated_buffer = False" in str(error)
        torch._dynamo.reset()
        net.zero_grad()
        monkeypatch.setattr(torch._functorch.config, "donated_buffer", False)
        call(
            torch.compile(net, backend="aot_eager"), CrossBatchWeighting(), inputs=net.parameters()
        )
    assert_equal(gradients(net), gradients(whole))


def test_accumulated_parts_are_one_batch():
    whole, parts = student(norm=False), student(norm=False)
    call(whole, CrossBatchWeighting())
    weighting = CrossBatchWeighting()
    x, y, t, x2, y2 = batches()
    for i, rows in enumerate((slice(0, 4), slice(4, 8))):
        of = {k: v / 2 for k, v in losses(parts, x[rows], y[rows], t[rows]).items()}
        unseen = reference(parts, x2[rows], y2[rows]) / 2
        found = cross_batch_backward(
            of,
            inputs=parts.parameters(),
            weighting=weighting,
            reference=unseen,
            accumulate=i == 0,
        )
        assert (found is None) == (i == 0)
        assert i or parts[0].weight.grad is None
    assert_equal(gradients(parts), gradients(whole))


def test_shared_parameters_are_found_once_and_kept_in_the_state():
    net = student()
    weighting = CrossBatchWeighting(theta="shared")

    def step(weighting, net):
        x, y, t, x2, y2 = batches()
        inner = net[2](net[1](net[0](x)))
        with frozen_statistics(net):
            unseen = F.cross_entropy(net(x2), y2)
        ce, kd = F.cross_entropy(net[3](inner), y), inner.square().mean()
        (plain,) = torch.autograd.grad(ce, [net[3].weight], retain_graph=True)
        cross_batch_backward(
            [ce, kd], inputs=net.parameters(), weighting=weighting, reference=unseen
        )
        return plain

    plain = step(weighting, net)
    assert_equal([net[3].weight.grad], [plain])
    assert weighting.shared == [True, True, True, True, False, False]
    resumed = CrossBatchWeighting(theta="shared")
    resumed.load_state_dict(copy.deepcopy(weighting.state_dict()))
    other = student()
    step(resumed, other)
    assert_equal(gradients(other), gradients(net))
    weighting.reset()
    assert weighting.shared is None


def test_bad_calls_say_what_is_wrong():
    net, weighting = student(), CrossBatchWeighting()
    x, y, t, *_ = batches()
    of = losses(net, x, y, t)
    with pytest.raises(ValueError, match="two scalars"):
        cross_batch_backward([of["ce"]], inputs=net.parameters(), weighting=weighting)
    with pytest.raises(ValueError, match="align needs reference"):
        cross_batch_backward(of, inputs=net.parameters(), weighting=weighting)
    with pytest.raises(ValueError, match="each of the 6 inputs"):
        cross_batch_backward(of, inputs=net.parameters(), weighting=weighting, reference=[None])
    with pytest.raises(ValueError, match="requires a gradient"):
        cross_batch_backward(of, inputs=[torch.ones(1)], weighting=weighting, reference=of["ce"])
    apart = CrossBatchWeighting(theta="shared", reading="printed")
    a, b = (nn.Parameter(torch.ones(2)) for _ in range(2))
    with pytest.raises(NothingShared, match="no parameter is reached by both"):
        cross_batch_backward([a.sum(), b.sum()], inputs=[a, b], weighting=apart)


def _process(rank: int, port: int, out: SimpleQueue) -> None:
    """Put what a process of two finds with DistributedDataParallel and without it."""
    torch.set_num_threads(1)
    where = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=2)
    rows = slice(rank * 4, rank * 4 + 4)
    x, y, t, x2, y2 = (part[rows] for part in batches())
    for wrapped in (False, True):
        net = student(norm=False)
        forward = DistributedDataParallel(net) if wrapped else net
        with forward.no_sync() if wrapped else frozen_statistics(net):
            weights = cross_batch_backward(
                losses(forward, x, y, t),
                inputs=net.parameters(),
                weighting=CrossBatchWeighting(),
                reference=F.cross_entropy(forward(x2), y2),
                process_group=dist.group.WORLD,
            )
        out.put((rank, wrapped, weights.ce.item(), [g.tolist() for g in gradients(net)]))
    dist.destroy_process_group()


def test_two_processes_equal_one(unused_port):
    out = CONTEXT.SimpleQueue()
    processes = [CONTEXT.Process(target=_process, args=(rank, unused_port, out)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
        assert process.exitcode == 0
    found = [out.get() for _ in range(4)]
    assert {(rank, wrapped) for rank, wrapped, *_ in found} == set(product((0, 1), (False, True)))
    net = student(norm=False)
    weights = call(net, CrossBatchWeighting())
    for _, _, ce, rows in found:
        assert ce == pytest.approx(weights.ce.item(), rel=1e-10)
        assert_equal([torch.tensor(g, dtype=torch.float64) for g in rows], gradients(net))


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
