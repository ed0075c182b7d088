"""Cross-batch weighting in any training loop: one call in the place of ``loss.backward()``."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .crossbatch import CrossBatchWeighting
from .gramian import combine, gramian
from .rows import Exchange, Rows
from .weights import CrossBatchWeights

# Rows of the stacked gradients.
CE, KD, REF = 0, 1, 2

Losses = Mapping[str, Tensor] | Sequence[Tensor]


class NothingShared(ValueError):
    """With theta "shared": no parameter is reached by both losses."""


def cross_batch_backward(
    losses: Losses,
    /,
    *,
    inputs: Iterable[Tensor],
    weighting: CrossBatchWeighting,
    reference: Tensor | Sequence[Tensor | None] | None = None,
    plain_inputs: Iterable[Tensor] = (),
    retain_graph: bool = False,
    accumulate: bool = False,
    grad_scaler: Any = None,
    process_group: dist.ProcessGroup | None = None,
) -> CrossBatchWeights | None:
    """Add the gradient of ``A supervised + B distillation`` to ``.grad``; A and B are solved here.

    The weights follow from the inner products of three gradients (docs/method.md): those of the
    two losses on the current batch, and that of a supervised loss on another batch, which stands
    in for unseen data. Everything stays on the device of the losses.

    Args:
        losses: the supervised and the distillation loss, in this order, both scalar; means over
            the batch, with whatever weights they have.
        inputs: the parameters to weigh by and to get the gradient, the student's; frozen ones are
            left out. The same ones in every call with the same ``weighting``.
        weighting: holds the method's settings, and its state between steps.
        reference: the supervised loss on another batch, scalar, from a forward pass within
            :func:`~mdistiller.weighting.frozen_statistics`; or its gradients, one (or None) for
            each of ``inputs``; or None with the reading "printed", which needs no other batch.
        plain_inputs: parameters that get the gradient of the plain sum of the losses, such as a
            method's regressors.
        retain_graph: keep the graph of the losses, as ``torch.autograd.backward`` does.
        accumulate: only take the gradients, as a part of a larger batch whose last part comes
            with a call without this. Scale the losses by the parts' number, as usual.
        grad_scaler: a ``torch.amp.GradScaler`` whose ``step`` follows; ``.grad`` is scaled by it.
        process_group: processes that each hold an equal part of the batch, such as
            ``torch.distributed.group.WORLD``; gradients are averaged over them, in one exchange.
            The forward passes of a DistributedDataParallel student belong into its ``no_sync``.

    Returns:
        The weights (``ce`` is A, ``kd`` is B) and what they come from; None with ``accumulate``.
        Until the next call, ``(w.ce * ce + w.kd * kd).backward()`` gives the same weighting at
        the price of an ordinary step.

    Raises:
        ValueError: the losses are not two scalars, there is nothing to train, a reference is
            needed and missing, or the gradients do not fit ``inputs``.
        NothingShared: with theta "shared" where the losses have no parameter in common.
    """
    supervised, distillation = _two_scalars(losses)
    inputs = list(inputs)
    rows, part = _rows_of(weighting, inputs, list(plain_inputs))
    scale = None if grad_scaler is None else grad_scaler.scale(torch.ones_like(supervised.detach()))
    if reference is not None and not isinstance(reference, Tensor):
        reference = _of_theta(rows, inputs, list(reference))
    _write_reference(rows, reference, weighting, scale, add=part.begun)
    if scale is not None:
        supervised, distillation = supervised * scale, distillation * scale
    _write_losses(rows, supervised, distillation, retain_graph, add=part.begun)
    part.begun = accumulate
    if accumulate:
        return None
    solved, _ = weigh(
        rows,
        weighting,
        exchange=None if process_group is None else _Average(process_group),
        exchanged=2 if reference is None else 3,
        scale=scale,
    )
    return solved


def _write_losses(
    rows: Rows, supervised: Tensor, distillation: Tensor, retain_graph: bool, add: bool
) -> None:
    try:
        rows.write(CE, supervised, retain_graph=True, add=add)
        rows.write(KD, distillation, retain_graph=retain_graph, add=add)
    except RuntimeError as error:
        if "donated buffer" not in str(error):
            raise
        raise RuntimeError(
            "torch.compile has given the graph's memory away after one backward pass, and two are "
            "needed; set torch._functorch.config.donated_buffer = False before compiling"
        ) from error


def weigh(
    rows: Rows,
    weighting: CrossBatchWeighting,
    *,
    exchange: Exchange | None = None,
    exchanged: int = 3,
    same: bool = False,
    scale: Tensor | None = None,
) -> tuple[CrossBatchWeights, Tensor]:
    """From the losses' gradients in their rows to the weighted gradient in ``.grad``.

    Args:
        exchange: the processes of this training, if there are several.
        exchanged: how many rows they have parts of.
        same: the supervised gradient of this batch is the reference.
        scale: of the losses and the reference, which the weights must not depend on.

    Returns:
        The weights, and the gradients' inner products [3, 3].
    """
    if weighting.theta == "shared" and rows.kept is None:
        _keep_shared(rows, weighting)
    if exchange is not None:
        rows.reduce(exchange, exchanged)
    if same:
        rows.buffer[REF].copy_(rows.buffer[CE])
    products = gramian(rows.buffer)
    if scale is not None:
        products = products / scale.to(products.dtype) ** 2
    solved = weighting(products)
    rows.apply(combine(rows.buffer[:2], torch.stack([solved.ce, solved.kd])), (CE, KD))
    return solved, products


def _keep_shared(rows: Rows, weighting: CrossBatchWeighting) -> None:
    """Leave in theta what both losses have just reached, if both reach anything."""
    reached = [rows.reached(row) for row in (CE, KD)]
    if weighting.shared is None:
        if not all(map(any, reached)):
            return  # a loss that is off for some epochs
        weighting.shared = [all(flags) for flags in zip(*reached, strict=True)]
    if not any(weighting.shared):
        weighting.shared = None
        raise NothingShared("no parameter is reached by both losses, so there is nothing to weigh")
    rows.keep(weighting.shared)


def _two_scalars(losses: Losses) -> tuple[Tensor, Tensor]:
    found = list(losses.values() if isinstance(losses, Mapping) else losses)
    if len(found) != 2 or any(loss.numel() != 1 for loss in found):
        shapes = ", ".join(str(tuple(loss.shape)) for loss in found)
        raise ValueError(
            "losses must be two scalars, the supervised loss first, then the distillation loss, "
            f"not {len(found)} of the shapes {shapes or '-'}"
        )
    return found[0].reshape(()), found[1].reshape(())


def _write_reference(
    rows: Rows,
    reference: Tensor | Sequence[Tensor | None] | None,
    weighting: CrossBatchWeighting,
    scale: Tensor | None,
    add: bool,
) -> None:
    if reference is None:
        if weighting.reading != "printed" and not add:
            raise ValueError(
                f"the reading {weighting.reading} needs reference, the supervised loss on another "
                "batch; only the reading printed does without"
            )
        if not add:
            rows.buffer[REF].zero_()
        return
    if isinstance(reference, Tensor):
        loss = reference.reshape(())
        rows.write(REF, loss if scale is None else loss * scale, extra=False, add=add)
        return
    gradients = list(reference)
    if scale is not None:
        gradients = [None if g is None else g * scale for g in gradients]
    rows.put(REF, gradients, add)


def _of_theta(
    rows: Rows, inputs: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Those of ``gradients`` (one for each of ``inputs``) whose parameters are in theta."""
    fits = len(gradients) == len(inputs) and all(
        g is None or g.shape == p.shape for g, p in zip(gradients, inputs, strict=True)
    )
    if not fits:
        raise ValueError(
            f"reference must be a scalar loss, or a gradient (or None) for each of the "
            f"{len(inputs)} inputs, in their shapes"
        )
    of = {id(p): g for p, g in zip(inputs, gradients, strict=True)}
    return [of[id(p)] for p in rows.theta]


class _Average:
    """Mean over the processes of a group, as DistributedDataParallel takes it."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.size = dist.get_world_size(group)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            dist.all_reduce(tensor, group=self._group)
            tensor.div_(self.size)


class _Part:
    """Whether gradients of a larger batch's first part are in the rows."""

    begun = False


# The buffers of gradients that a weighting works with; they go with it.
_ROWS: weakref.WeakKeyDictionary[CrossBatchWeighting, tuple[list[int], Rows, _Part]] = (
    weakref.WeakKeyDictionary()
)


def _rows_of(
    weighting: CrossBatchWeighting, inputs: list[Tensor], plain: list[Tensor]
) -> tuple[Rows, _Part]:
    identity = [id(p) for p in inputs if p.requires_grad] + [id(p) for p in plain]
    known = _ROWS.get(weighting)
    if known is None or known[0] != identity:
        rows = Rows(inputs, plain, 3)
        if weighting.shared is not None:
            rows.keep(weighting.shared)
        known = _ROWS[weighting] = (identity, rows, _Part())
    return known[1], known[2]
