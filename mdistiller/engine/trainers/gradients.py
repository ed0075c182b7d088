"""The gradients of several losses side by side, for trainers that weight them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from mdistiller.distillers import Distiller
from mdistiller.engine.runtime.distributed import World
from mdistiller.weighting import combine


class GradientRows:
    """One flat gradient of the student per loss, in one buffer for the whole run.

    theta, on which weights are solved and used, are the student's parameters, or those of them
    that :meth:`keep` leaves; a parameter that a loss does not reach has a zero gradient there.
    All other learnable parameters (regressors, heads of a method) receive the plain, unweighted
    sum of the gradients written.

    Args:
        distiller: on the device and in the dtype of the run.
        count: how many losses.

    Attributes:
        theta: the student's trainable parameters, or what is left of them.
        extra: the distiller's other trainable parameters.
        buffer: [count, P], P numbers in theta, each parameter's in the order they have in memory
            (that of its memory format); a row that was never written is zero.
    """

    def __init__(self, distiller: Distiller, count: int) -> None:
        self.theta = [p for p in distiller.student.parameters() if p.requires_grad]
        inside = set(map(id, self.theta))
        learnable = distiller.get_learnable_parameters()
        self.extra = [p for p in learnable if p.requires_grad and id(p) not in inside]
        self._sizes = [p.numel() for p in self.theta]
        self.buffer = self.theta[0].new_zeros(count, sum(self._sizes), requires_grad=False)
        self._reached = [[False] * len(self.theta)] * count
        self._extra: list[list[Tensor | None]] = [[None] * len(self.extra)] * count

    def write(self, row: int, loss: Tensor, retain_graph: bool = False, extra: bool = True) -> None:
        """Take the gradient of the scalar ``loss`` into ``row``.

        Args:
            extra: take that of the extra parameters, too.
        """
        others = self.extra if extra else []
        if not loss.requires_grad:  # e.g. a distillation term that is off for some epochs
            self.buffer[row].zero_()
            self._reached[row] = [False] * len(self.theta)
            self._extra[row] = [None] * len(self.extra)
            return
        gradients = torch.autograd.grad(
            loss, [*self.theta, *others], retain_graph=retain_graph, allow_unused=True
        )
        of_theta = gradients[: len(self.theta)]
        views = self.views(self.buffer[row])
        hit = [i for i, gradient in enumerate(of_theta) if gradient is not None]
        if len(hit) < len(views):
            self.buffer[row].zero_()
        torch._foreach_copy_([views[i] for i in hit], [of_theta[i] for i in hit])
        self._reached[row] = [g is not None for g in of_theta]
        found = list(gradients[len(self.theta) :])
        self._extra[row] = found if extra else [None] * len(self.extra)

    def reached(self, row: int) -> list[bool]:
        """Of each parameter in theta, whether the loss last written into ``row`` reaches it."""
        return list(self._reached[row])

    def keep(self, kept: Sequence[bool]) -> None:
        """Leave the parameters marked by ``kept`` in theta; the others become extra ones.

        The gradients written stay where their parameters go.
        """
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

    def reduce(self, world: World, count: int) -> None:
        """Sum the first ``count`` rows over the processes of ``world``, in one exchange each.

        The losses written must have been scaled by this process's share of the batch.
        """
        if world.size == 1:
            return
        world.sum_([self.buffer[:count]])
        world.sum_([g for row in self._extra[:count] for g in row if g is not None])

    def apply(self, weights: Tensor, rows: Sequence[int] | None = None) -> None:
        """Leave the weighted sum of rows in the parameters' ``grad``.

        Args:
            weights: [n], one per row used; the extra parameters get the unweighted sum.
            rows: the n rows used; None stands for the first n.
        """
        used = list(range(len(weights))) if rows is None else list(rows)
        chosen = self.buffer[: len(used)] if rows is None else self.buffer[used]
        self._set(combine(chosen, weights), used)

    def apply_update(self, update: Tensor) -> None:
        """Leave ``update`` [P], made of all rows, in the parameters' ``grad``.

        As :meth:`apply`, for a combination of the rows that is no weighted sum.
        """
        self._set(update, range(len(self.buffer)))

    def _set(self, update: Tensor, used: Sequence[int]) -> None:
        reached = [any(flags) for flags in zip(*(self._reached[r] for r in used), strict=True)]
        for p, part, hit in zip(self.theta, self.views(update), reached, strict=True):
            # As in a vanilla step, what no loss reaches gets no gradient and no weight decay.
            p.grad = part if hit else None
        set_sums(self.extra, [self._extra[r] for r in used])

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
        of_extra = None
        if self.extra:
            # The extra modules come last in the graph, so this pass is short.
            of_extra = torch.autograd.grad(
                sum(losses), self.extra, retain_graph=True, allow_unused=True
            )
        total = sum(w.to(loss.dtype) * loss for w, loss in zip(weights, losses, strict=True))
        torch.autograd.backward(total, inputs=self.theta)
        if of_extra is not None:
            set_sums(self.extra, [of_extra])


def set_sums(parameters: Sequence[Parameter], parts: Sequence[Sequence[Tensor | None]]) -> None:
    """Set each parameter's ``grad`` to the sum of its entries in ``parts``, None if all are."""
    for p, *gradients in zip(parameters, *parts, strict=True):
        present = [g for g in gradients if g is not None]
        p.grad = sum(present) if present else None
