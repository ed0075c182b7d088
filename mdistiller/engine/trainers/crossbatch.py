"""Training with cross-batch weighting: two streams of batches, three gradients, two weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import count
from typing import Any

import torch
from torch import Tensor

from mdistiller.config import (
    Config,
    Rule,
    Setting,
    at_least_one,
    below_one,
    not_negative,
    one_of,
    positive,
)
from mdistiller.console import log
from mdistiller.distillers import Distiller
from mdistiller.engine.batch import Batch, StepResult, epoch_of
from mdistiller.engine.runtime.distributed import fraction_of
from mdistiller.engine.runtime.loaders import Batches
from mdistiller.errors import ConfigError
from mdistiller.weighting import READINGS, STEPS, THETAS, CrossBatchWeighting, combined_norms
from mdistiller.weighting.backward import CE, KD, REF, NothingShared, weigh

from .base import BaseTrainer
from .gradients import GradientRows
from .registry import trainer_dict

AUXILIARY_STREAM = "auxiliary"
HELDOUT_STREAM = "heldout"
REFERENCES = ("fresh", "holdout", "previous", "same", "none")


@trainer_dict.register("crossbatch")
class CrossBatchTrainer(BaseTrainer):
    """Replaces the sum of the losses by ``A L_ce + B L_kd`` (docs/method.md, Eq. 4-11).

    theta, on which the weights are solved and used, are the student's parameters; a parameter
    that a loss does not reach has a zero gradient there. With CROSSBATCH.THETA shared they are
    those that both losses reach. All other learnable parameters (regressors, heads of a method)
    receive the plain gradient of the unweighted losses.

    Args:
        experiment_name, distiller, train_loader, val_loader, cfg: as for
            :class:`~mdistiller.engine.trainer.BaseTrainer`; of two losses. A
            :class:`~mdistiller.distillers.CrossBatchDistiller` has a reference loss of its own.
        auxiliary_loader: yields the auxiliary batches; None takes an independently shuffled
            stream of the training set from ``train_loader.stream("auxiliary", batch_size)``, or
            with CROSSBATCH.REFERENCE holdout one of the held-out images, in the same way, from
            ``train_loader.heldout_stream``.

    Raises:
        ConfigError: there is no auxiliary stream.
    """

    settings = {
        "READING": Setting("align", one_of(*READINGS), "how the weights are solved for"),
        "ALPHA": Setting(1.0, not_negative, "strength of the correction, Eq. 10", first=0.5),
        "RIDGE": Setting(0.0, not_negative, "draws the weights to 1/2 (orthogonal)"),
        "STABILIZE": Setting(True, doc="Eq. 10-11; False: the update of Eq. 9 itself"),
        "PREFER": Setting(
            "ce", one_of("ce", "kd"), "the loss of weight 1, where STABILIZE is False"
        ),
        "MAX_RATIO": Setting(10.0, positive, "largest weight of the other loss there"),
        "RESCALE": Setting(
            0,
            Rule(lambda v: v in (0, 1, 2), "0, 1 or 2"),
            "1: divide by 1 + ALPHA^2; 2: by 1 + ALPHA",
        ),
        "EMA": Setting(
            0.0, below_one, "decay of the moving average; 0: none, with regression 0.99"
        ),
        "STEP": Setting("paper", one_of(*STEPS), "how long the update is"),
        "THETA": Setting(
            "student", one_of(*THETAS), "shared: only the parameters that both losses reach"
        ),
        "REFERENCE": Setting(
            "fresh", one_of(*REFERENCES), "where the reference gradient comes from"
        ),
        "PERIOD": Setting(1, at_least_one, "solve in every so many steps only"),
        "BATCH_SIZE": Setting(0, not_negative, "of the auxiliary batch; 0: SOLVER.BATCH_SIZE"),
    }
    diagnostics_name = "crossbatch"
    needs_distillation_loss = True
    data_parallel = True

    @classmethod
    def check(cls, cfg: Config) -> None:
        build_weighting(cfg)
        node = cfg.CROSSBATCH
        if node.REFERENCE == "none" and node.READING != "printed":
            raise ConfigError(
                "CROSSBATCH.REFERENCE none works only with CROSSBATCH.READING printed, "
                f"not {node.READING}, which depends on the reference gradient"
            )
        if node.REFERENCE == "holdout" and not cfg.DATASET.HOLDOUT:
            raise ConfigError(
                "CROSSBATCH.REFERENCE holdout needs training images that are held out, but "
                "DATASET.HOLDOUT is 0; set that to their number"
            )
        if node.REFERENCE == "holdout" and cfg.DATASET.TRAIN_ON_HOLDOUT:
            raise ConfigError(
                "DATASET.TRAIN_ON_HOLDOUT trains on the images that CROSSBATCH.REFERENCE holdout "
                "keeps from the student; set it to False"
            )

    def __init__(
        self,
        experiment_name: str,
        distiller: Distiller,
        train_loader: Batches,
        val_loader: Batches,
        cfg: Config,
        auxiliary_loader: Batches | None = None,
    ) -> None:
        super().__init__(experiment_name, distiller, train_loader, val_loader, cfg)
        node = cfg.CROSSBATCH
        self.weighting = build_weighting(cfg)
        self.reference = node.REFERENCE
        self.period = node.PERIOD
        self.auxiliary_loader = None if auxiliary_loader is None else self.shard(auxiliary_loader)
        # Whether G comes from a batch of its own.
        self._draws = self.reference in ("fresh", "holdout")
        if self._draws and auxiliary_loader is None:
            self.auxiliary_loader = _auxiliary_stream(
                self.train_loader, self.reference, node.BATCH_SIZE
            )
        self._gradients = GradientRows(self.distiller, 3)
        self._weights: tuple[Tensor, Tensor] | None = None

    def share_streams(self, share: Callable[[Hashable, Batches], Batches]) -> None:
        super().share_streams(share)
        loader = self.auxiliary_loader
        if self._draws and loader is not None:
            # PERIOD decides how fast the stream is used up.
            key = (self.reference, getattr(loader, "batch_size", None), self.period)
            self.auxiliary_loader = share(key, loader)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        loader = self.auxiliary_loader
        if not self._draws or loader is None:
            yield from super().batches(epoch, start)
            return
        # Of the ``start`` steps before, those that solved have drawn an auxiliary batch.
        first = self.first_step(epoch)
        drawn = sum(step % self.period == 0 for step in range(first, first + start))
        auxiliary = endless(loader, epoch, drawn)
        place, alone = self.device_transform(), self.world.size == 1
        for batch in super().batches(epoch, start):
            # Drawn only where it is used, so that PERIOD saves the work of loading it, too.
            if batch.step % self.period == 0:
                number, data = next(auxiliary)
                fraction = 1.0 if alone else fraction_of(loader, number)
                batch.auxiliary = Batch(*place(data[:2]), step=batch.step, fraction=fraction)
            yield batch

    def backward(self, batch: Batch, epoch: int) -> StepResult:
        if (auxiliary := batch.auxiliary) is not None:
            # Before the graph of the current batch exists: the two never share the memory.
            reference = self.distiller.reference_loss(auxiliary.image, auxiliary.target)
            self._gradients.write(REF, reference * auxiliary.fraction, extra=False)
        logits, losses = self.distiller.forward_train(**batch.inputs(epoch))
        pair = self.distiller.split_losses(losses)
        supervised, distillation = (loss * batch.fraction for loss in pair)
        if batch.step % self.period:
            assert self._weights is not None  # solved for in step 0, or loaded
            self._gradients.backward_weighted((supervised, distillation), self._weights)
            gradients = {"gradient": self.sum_gradients()}
            return StepResult(logits, losses, gradients=gradients, weights=self._weights)
        first, rows = self._weights is None, self._gradients.buffer
        if self.reference == "previous" and not first:
            rows[REF].copy_(rows[CE])
        self._gradients.write(CE, supervised, retain_graph=True)
        self._gradients.write(KD, distillation)
        known = self.weighting.shared is not None
        try:
            solved, products = weigh(
                self._gradients,
                self.weighting,
                exchange=self.world if self.world.size > 1 else None,
                # A reference that is a copy of another row has been summed with that one.
                exchanged=3 if self._draws else 2,
                same=self.reference == "same" or (self.reference == "previous" and first),
            )
        except NothingShared as error:
            raise ConfigError(f"CROSSBATCH.THETA shared: {error}; leave it at student") from None
        if self.weighting.shared is not None and not known:
            self._log_what_is_shared(self.weighting.shared)
        self._weights = (solved.ce, solved.kd)
        weights = torch.stack(self._weights)
        both = torch.stack([torch.ones_like(weights), weights])
        norm_sum, norm_update = combined_norms(products[:2, :2], both).unbind()
        diagnostics = {**solved.diagnostics, "norm_sum": norm_sum, "norm_update": norm_update}
        gradients = {
            "gradient of the supervised loss": solved.norm_ce,
            "gradient of the distillation loss": solved.norm_kd,
            "reference gradient": solved.norm_ref,
        }
        return StepResult(logits, losses, diagnostics, gradients, self._weights)

    def _log_what_is_shared(self, shared: list[bool]) -> None:
        names = [n for n, p in self.distiller.student.named_parameters() if p.requires_grad]
        others = [name for name, both in zip(names, shared, strict=True) if not both]
        log(
            f"CROSSBATCH.THETA shared: both losses reach {sum(shared)} of the student's "
            f"{len(shared)} parameters; the plain gradient goes to {', '.join(others) or 'none'}"
        )

    def extra_state(self) -> dict[str, Any]:
        keep = self.reference == "previous" and self._weights is not None
        return {
            "weights": self._weights,
            "weighting": self.weighting.state_dict(),
            "previous": self._gradients.buffer[CE].clone() if keep else None,
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self._weights = state["weights"]
        self.weighting.load_state_dict(state["weighting"])
        if self.weighting.shared is not None:
            self._gradients.keep(self.weighting.shared)
        previous, row = state["previous"], self._gradients.buffer[CE]
        # Of another size, if CROSSBATCH.THETA has been changed.
        if previous is not None and previous.shape == row.shape:
            row.copy_(previous)


def build_weighting(cfg: Config) -> CrossBatchWeighting:
    """The weighting that ``cfg.CROSSBATCH`` describes.

    Raises:
        ConfigError: a value of the node is out of its range.
    """
    names = ("READING", "ALPHA", "RIDGE", "STABILIZE", "PREFER", "MAX_RATIO", "RESCALE", "EMA")
    arguments = {name.lower(): cfg.CROSSBATCH[name] for name in (*names, "STEP", "THETA")}
    try:
        return CrossBatchWeighting(**arguments)
    except ValueError as error:
        raise ConfigError(f"CROSSBATCH.{_with_keys(str(error), arguments)}") from None


def _with_keys(text: str, names: Iterable[str]) -> str:
    """``text`` with the names of arguments as keys of the configuration."""
    return " ".join(word.upper() if word in names else word for word in text.split(" "))


def _auxiliary_stream(train_loader: Batches, reference: str, batch_size: int) -> Batches:
    method, name = ("stream", AUXILIARY_STREAM)
    if reference == "holdout":
        method, name = ("heldout_stream", HELDOUT_STREAM)
    if not hasattr(train_loader, method):
        raise ConfigError(
            f"CROSSBATCH.REFERENCE {reference} needs a second stream of batches, which "
            f"{type(train_loader).__name__} does not offer; pass auxiliary_loader"
        )
    return getattr(train_loader, method)(name, batch_size or None)


def endless(loader: Batches, epoch: int, start: int) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """Batches of ``loader`` without end from number ``start`` on, as a function of ``epoch``.

    Each comes with its number (from 0) in its pass.

    An auxiliary batch larger than the current one makes its stream end within the epoch; the
    passes of one epoch are then numbered so that none repeats another epoch's order.
    """
    passed, start = divmod(start, len(loader)) if start else (0, 0)
    for number in count(passed):
        seen = epoch_of(loader, _pass_number(epoch, number), start)
        yield from enumerate(seen, start)
        start = 0


# Passes of one epoch whose numbers follow one another; few held-out images can need more.
_PASSES = 1000


def _pass_number(epoch: int, number: int) -> int:
    """A number from 1 that no other pass of any epoch has."""
    further, within = divmod(number, _PASSES)
    # Beyond the numbers of any epoch that there will be.
    return (epoch - 1) * _PASSES + within + 1 + further * 10**12
