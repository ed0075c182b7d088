"""Training with a weighting that compares the gradients of two independent batches."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor

from mdistiller.config import Config, Setting, not_negative, one_of
from mdistiller.engine.batch import Batch, StepResult
from mdistiller.engine.runtime.distributed import fraction_of
from mdistiller.engine.runtime.loaders import Batches
from mdistiller.errors import ConfigError
from mdistiller.weighting import combine, frozen_statistics, gramian, pair_statistics
from mdistiller.weighting.aggregators import parse_arguments
from mdistiller.weighting.two_batch import METHODS, CrossGramianWeighting

from .base import BaseTrainer
from .crossbatch import endless
from .gradients import GradientRows
from .pair import CE, KD
from .registry import trainer_dict

STREAM = "two_batch"
FIRST, SECOND = (0, 1), (2, 3)


@trainer_dict.register("two_batch")
class TwoBatchTrainer(BaseTrainer):
    """MoDo and SDMGrad of the torchjd package: weights from the products of two batches' gradients.

    Where cross-batch weighting compares with the supervised gradient of a second batch, these
    compare both losses' gradients on one batch with both on another. UPDATE says what the
    weights are used on:

    * ``mean``: the mean of both batches' losses (MoDo with two batches, its Eq. 2.9b);
    * ``first``: the current batch alone, which is one of the two;
    * ``third``: the current batch, the weights being those of two others (SDMGrad's algorithm).

    The second batch's forward pass leaves running statistics and memories alone. Parameters
    outside the student get the plain gradient of the unweighted losses.

    Raises:
        ConfigError: a bad argument, or there is no second stream of batches.
    """

    settings = {
        "METHOD": Setting("MoDo", one_of(*METHODS), "how the weights follow from the products"),
        "PARAMS": Setting("", doc="its arguments as in Python, such as gamma=0.001, rho=0.1"),
        "UPDATE": Setting(
            "mean", one_of("mean", "first", "third"), "the batch that the weights are used on"
        ),
        "BATCH_SIZE": Setting(0, not_negative, "of the other batches; 0: SOLVER.BATCH_SIZE"),
    }
    diagnostics_name = "two_batch"
    needs_distillation_loss = True
    data_parallel = True

    @classmethod
    def check(cls, cfg: Config) -> None:
        build_weighting(cfg)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        node = self.cfg.TWO_BATCH
        self.weighting = build_weighting(self.cfg, self.device)
        self.update = node.UPDATE
        self._others = 2 if self.update == "third" else 1
        # The other batches go through the distiller, so they hold whatever the main ones do.
        wanted = {
            "contrastive": getattr(self.distiller, "needs_contrast", False),
            "strong": self.cfg.DATASET.STRONG_VIEW,
            "answers": getattr(self.train_loader, "answers", None) is not None,
        }
        if not hasattr(self.train_loader, "stream"):
            raise ConfigError(
                "SOLVER.TRAINER two_batch needs a second stream of batches, which "
                f"{type(self.train_loader).__name__} does not offer"
            )
        options = {name: True for name, value in wanted.items() if value}
        self.other_loader = self.train_loader.stream(STREAM, node.BATCH_SIZE or None, **options)
        self._gradients = GradientRows(self.distiller, 4)

    def share_streams(self, share: Callable[[Hashable, Batches], Batches]) -> None:
        super().share_streams(share)
        loader = self.other_loader
        key = (STREAM, getattr(loader, "batch_size", None), self._others)
        self.other_loader = share(key, loader)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        place = self.device_transform()
        others = endless(self.other_loader, epoch, start * self._others)

        def other(step: int) -> Batch:
            number, data = next(others)
            alone = self.world.size == 1
            fraction = 1.0 if alone else fraction_of(self.other_loader, number)
            return Batch(*place(data), step=step, fraction=fraction)

        for batch in super().batches(epoch, start):
            batch.auxiliary = other(batch.step)
            if self.update == "third":
                batch.auxiliary.auxiliary = other(batch.step)
            yield batch

    def backward(self, batch: Batch, epoch: int) -> StepResult:
        second = batch.auxiliary
        assert second is not None  # as batches() makes them
        if self.update == "third":
            first, second = second, second.auxiliary
            assert second is not None
            self._write(FIRST, first, epoch)
            self._write(SECOND, second, epoch)
            products, weights = self._solve(1.0)
            logits, losses = self.distiller.forward_train(**batch.inputs(epoch))
            pair = [loss * batch.fraction for loss in self.distiller.split_losses(losses)]
            self._gradients.backward_weighted(pair, weights.unbind())
            norm = {"gradient": self.sum_gradients()}
        else:
            # Halves, so that their sum is the mean of both batches.
            half = 0.5 if self.update == "mean" else 1.0
            self._write(SECOND, second, epoch, half)
            logits, losses = self._write(FIRST, batch, epoch, half, keep=True)
            products, weights = self._solve(half)
            used = weights.repeat(2) if self.update == "mean" else weights
            rows = self._gradients.buffer[: len(used)]
            self._gradients.apply(combine(rows, used), range(len(used)))
            norm = {"gradient": self.gradient_norm()}
        diagnostics = {"ce": weights[CE], "kd": weights[KD], **_statistics(products)}
        return StepResult(logits, losses, diagnostics, norm, (weights[CE], weights[KD]))

    def _write(
        self,
        rows: tuple[int, int],
        batch: Batch,
        epoch: int,
        factor: float = 1.0,
        keep: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Take ``factor`` times both losses' gradients on ``batch`` into ``rows``.

        Args:
            keep: whether the pass counts for running statistics and memories.
        """
        if keep:
            logits, losses = self.distiller.forward_train(**batch.inputs(epoch))
        else:
            with frozen_statistics(self.distiller):
                logits, losses = self.distiller.forward_train(**batch.inputs(epoch))
        for row, loss in zip(rows, self.distiller.split_losses(losses), strict=True):
            loss = factor * loss * batch.fraction
            self._gradients.write(row, loss, retain_graph=row == rows[0])
        return logits, losses

    def _solve(self, factor: float) -> tuple[Tensor, Tensor]:
        """The Gramian [4, 4] of all rows without their ``factor``, and the weights [2]."""
        if self.world.size > 1:
            self._gradients.reduce(self.world, 4)
        products = gramian(self._gradients.buffer) / factor**2
        return products, self.weighting(products[:2, 2:])

    def gradient_norm(self) -> Tensor:
        """Norm of all gradients that the optimizer is about to use."""
        learnt = (p for group in self.optimizer.param_groups for p in group["params"])
        return torch.nn.utils.get_total_norm([p.grad for p in learnt if p.grad is not None])

    def extra_state(self) -> dict[str, Any]:
        return self.weighting.state_dict()

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.weighting.load_state_dict(state)


def _statistics(products: Tensor) -> dict[str, Tensor]:
    """Of the first batch's two gradients, and how each agrees with itself on the other batch."""
    lengths = products.diagonal().clamp_min(0).sqrt()
    both = (lengths[:2] * lengths[2:]).clamp_min(torch.finfo(products.dtype).tiny)
    agree = products[:2, 2:].diagonal() / both
    return {**pair_statistics(products[:2, :2]), "agree_ce": agree[CE], "agree_kd": agree[KD]}


def build_weighting(cfg: Config, device: torch.device | str = "cpu") -> CrossGramianWeighting:
    """The weighting that ``cfg.TWO_BATCH`` describes.

    Raises:
        ConfigError: a bad argument.
    """
    node = cfg.TWO_BATCH
    try:
        return CrossGramianWeighting(node.METHOD, parse_arguments(node.PARAMS), device)
    except ValueError as error:
        raise ConfigError(f"TWO_BATCH.PARAMS: {error}") from None
