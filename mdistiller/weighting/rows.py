"""The gradients of several losses side by side, for whoever weights them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Exchange(Protocol):
    """Processes that each see a part of the batch.

    Attributes:
        size: how many there are.
    """

    size: int

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one type by what all processes together make of them."""


class Rows:
    """One flat gradient per loss, in one buffer for the whole run.

    theta, on which weights are solved and used, are the parameters given first, or those of them
    that :meth:`keep` leaves; a parameter that a loss does not reach has a zero gradient there.
    The extra parameters (regressors, heads of a method) receive the plain, unweighted sum of the
    gradients written. What is frozen is left out.

    Args:
        theta, extra: parameters on one device, in one dtype.
        count: how many losses.

    Raises:
        ValueError: nothing in theta can be trained.

    Attributes:
        theta, extra: the parameters that can be trained.
        kept: which of theta :meth:`keep` has left; None as long as it was not called.
        buffer: [count, P], P numbers in theta, each parameter's in the order they have in memory
            (that of its memory format); a row that was never written is zero.
    """

    def __init__(self, theta: Iterable[Tensor], extra: Iterable[Tensor], count: int) -> None:
        self.theta = [p for p in theta if p.requires_grad]
        inside = set(map(id, self.theta))
        self.extra = [p for p in extra if p.requires_grad and id(p) not in inside]
        if not self.theta:
            raise ValueError("none of the parameters to weigh gradients of requires a gradient")
        self.kept: list[bool] | None = None
        self._sizes = [p.numel() for p in self.theta]
        self.buffer = self.theta[0].new_zeros(count, sum(self._sizes), requires_grad=False)
        self._reached = [[False] * len(self.theta)] * count
        self._extra: list[list[Tensor | None]] = [[None] * len(self.extra)] * count

    def write(
        self,
        row: int,
        loss: Tensor,
        retain_graph: bool = False,
        extra: bool = True,
        add: bool = False,
    ) -> None:
        """Take the gradient of the scalar ``loss`` into ``row``.

        Args:
            extra: take that of the extra parameters, too.
            add: to what is there, as a part of one larger batch.
        """
        others = self.extra if extra else []
        parameters = [*self.theta, *others]
        gradients: Sequence[Tensor | None]
        if loss.requires_grad:
            gradients = torch.autograd.grad(
                loss, parameters, retain_graph=retain_graph, allow_unused=True
            )
        else:  # e.g. a distillation term that is off for some epochs
            gradients = (None,) * len(parameters)
        self.put(row, gradients[: len(self.theta)], add)
        found = gradients[len(self.theta) :] if extra else [None] * len(self.extra)
        before = self._extra[row] if add else [None] * len(self.extra)
        self._extra[row] = [sum_of(pair) for pair in zip(before, found, strict=True)]

    def put(self, row: int, gradients: Sequence[Tensor | None], add: bool = False) -> None:
        """Take gradients of theta into ``row``; None for what is not reached."""
        views = self.views(self.buffer[row])
        hit = [(view, g) for view, g in zip(views, gradients, strict=True) if g is not None]
        if not add and len(hit) < len(views):
            self.buffer[row].zero_()
        move = torch._foreach_add_ if add else torch._foreach_copy_
        if hit:
            move([view for view, _ in hit], [g for _, g in hit])
        before = self._reached[row] if add else [False] * len(self.theta)
        self._reached[row] = [
            reached or gradient is not None
            for reached, gradient in zip(before, gradients, strict=True)
        ]

    def reached(self, row: int) -> list[bool]:
        """Of each parameter in theta, whether the loss last written into ``row`` reaches it."""
        return list(self._reached[row])

    def keep(self, kept: Sequence[bool]) -> None:
        """Leave the parameters marked by ``kept`` in theta; the others become extra ones.

        The gradients written stay where their parameters go.
        """
        self.kept = list(kept)
        stay = [i for i, keep in enumerate(kept) if keep]
        move = [i for i, keep in enumerate(kept) if not keep]
        for row, (flat, hits) in enumerate(zip(self.buffer, self._reached, strict=True)):
            views = self.views(flat)
            moved = [views[i].clone() if hits[i] else None for i in move]
            self._extra[row] = [*self._extra[row], *moved]
        columns = self.buffer.split(self._sizes, dim=1)
        self.buffer = torch.cat([columns[i] for i in stay], dim=1)
        self._reached = [[hits[i] for i in stay] for hits in self._reached]
        self.extra = [*self.extra, *(self.theta[i] for i in move)]
        self.theta = [self.theta[i] for i in stay]
        self._sizes = [p.numel() for p in self.theta]

    def reduce(self, exchange: Exchange, count: int) -> None:
        """Sum the first ``count`` rows over the processes of ``exchange``, all at once.

        So the inner products are those of the whole batch's gradients, in every process.
        """
        exchange.sum_([self.buffer[:count]])
        exchange.sum_([g for row in self._extra[:count] for g in row if g is not None])

    def apply(self, update: Tensor, used: Sequence[int]) -> None:
        """Add ``update`` [P] to the parameters' ``grad``, as a backward pass would.

        Args:
            update: what is made of the rows ``used``.
            used: also those whose sum, unweighted, the extra parameters get.
        """
        reached = [any(flags) for flags in zip(*(self._reached[r] for r in used), strict=True)]
        # As in a vanilla step, what no loss reaches gets no gradient and no weight decay.
        parts = [
            part if hit else None for part, hit in zip(self.views(update), reached, strict=True)
        ]
        of_extra = [sum_of(parts) for parts in zip(*(self._extra[r] for r in used), strict=True)]
        parameters = [*self.theta, *self.extra]
        for parameter, gradient in zip(parameters, [*parts, *of_extra], strict=True):
            if gradient is None:
                continue
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad.add_(gradient)

    def views(self, flat: Tensor) -> list[Tensor]:
        """The parts of a flat vector [P] in the shapes and memory formats of theta."""
        parts = flat.split(self._sizes)
        return [
            part.as_strided(p.shape, p.stride(), part.storage_offset())
            for part, p in zip(parts, self.theta, strict=True)
        ]

    def backward_weighted(self, losses: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        """The update of :meth:`apply` for known weights, by one backward pass.

        Exact by linearity: the gradient of the weighted sum is the weighted sum of the gradients.
        """
        if self.extra:
            # The extra modules come last in the graph, so this pass is short.
            total = sum(losses[1:], losses[0])
            torch.autograd.backward(total, inputs=self.extra, retain_graph=True)
        terms = [w.to(loss.dtype) * loss for w, loss in zip(weights, losses, strict=True)]
        torch.autograd.backward(sum(terms[1:], terms[0]), inputs=self.theta)


def sum_of(gradients: Iterable[Tensor | None]) -> Tensor | None:
    """The sum of those that are there; None if none is."""
    present = [gradient for gradient in gradients if gradient is not None]
    return sum(present[1:], present[0]) if present else None
