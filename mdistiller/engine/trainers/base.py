"""What a training is made of, and the part of it that a weighting method replaces."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mdistiller.config import Config, Settings
from mdistiller.console import log
from mdistiller.device import resolve_device
from mdistiller.distillers import Distiller
from mdistiller.engine.batch import Batch, DeviceTransform, StepResult, epoch_of, to_device
from mdistiller.engine.loop import Loop
from mdistiller.engine.optim import build_optimizer
from mdistiller.engine.runtime.distributed import World, fraction_of, shard_of
from mdistiller.engine.runtime.loaders import Batches
from mdistiller.engine.runtime.precision import prepare

from .registry import trainer_dict


@trainer_dict.register("base")
class BaseTrainer:
    """Trains a distiller with the sum of its losses.

    A weighting method subclasses it and replaces :meth:`batches` (what a step sees) and
    :meth:`backward` (how the losses become gradients); a method with state of its own adds
    :meth:`extra_state` and :meth:`load_extra_state`.

    Args:
        experiment_name: the run's folder below ``cfg.LOG.PREFIX``.
        distiller: the student with its losses; moved to the configured device.
        train_loader: yields tuples (image, target, index, contrastive_index), the last ones only
            where a method needs them; reshuffles by itself.
        val_loader: yields (image, target).
        cfg: the resolved configuration.

    Attributes:
        extra_results: further entries of ``result.json``.
    """

    # Become the node of the configuration that has the name under which the class is registered.
    settings: Settings = {}

    # Written to the logs below this name, e.g. "crossbatch".
    diagnostics_name = "diagnostics"

    # Whether the method treats the distillation loss apart, so that there must be one.
    needs_distillation_loss = False

    # Whether the class's own ``backward`` works on a part of a batch (``Batch.fraction``).
    data_parallel = True

    def __init__(
        self,
        experiment_name: str,
        distiller: Distiller,
        train_loader: Batches,
        val_loader: Batches,
        cfg: Config,
    ) -> None:
        self.cfg = cfg
        self.device = resolve_device(cfg.SOLVER.DEVICE)
        self.distiller = distiller.to(self.device)
        self._image_layout = prepare(self.distiller, cfg, self.device)
        self.world = World()
        self.train_loader, self.val_loader = self.shard(train_loader), self.shard(val_loader)
        if self.world.size > 1 and self.distiller.relates_images:
            log(
                f"{type(self.distiller).__name__} relates the images of a batch to one another; "
                f"with {self.world.size} processes each sees its own part only, so the result is "
                "not that of one process",
                "WARN",
            )
        self.optimizer = self.init_optimizer(cfg)
        self.experiment_name = experiment_name
        self.log_path = Path(cfg.LOG.PREFIX) / experiment_name
        self.extra_results: dict[str, Any] = {}

    # ---- what a method may replace -------------------------------------------------------

    @classmethod
    def check(cls, cfg: Config) -> None:
        """Refuse what cannot work, before anything is loaded.

        The rules of single settings have been checked.

        Raises:
            ConfigError: one line that begins with the key.
        """

    def init_optimizer(self, cfg: Config) -> Optimizer:
        return build_optimizer(self.distiller.get_learnable_parameters(), cfg)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` after its first ``start`` ones.

        They depend on nothing that a step changes, so that one may look ahead.
        """
        place, first = self.device_transform(), self.first_step(epoch)
        alone = self.world.size == 1
        for number, data in enumerate(epoch_of(self.train_loader, epoch, start), start):
            fraction = 1.0 if alone else fraction_of(self.train_loader, number)
            yield Batch(*place(data), step=first + number, fraction=fraction)

    def backward(self, batch: Batch, epoch: int) -> StepResult:
        """Leave the gradient of one step in the parameters' ``grad``, which are None before."""
        logits, losses = self.distiller.forward_train(**batch.inputs(epoch))
        first, *others = (loss.mean() for loss in losses.values())
        (sum(others, first) * batch.fraction).backward()
        return StepResult(logits, losses, gradients={"gradient": self.sum_gradients()})

    def extra_state(self) -> dict[str, Any]:
        """State of the method that a resumed run needs; tensors and plain types only."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`extra_state`."""

    # ---- helpers for them ----------------------------------------------------------------

    def first_step(self, epoch: int) -> int:
        """Number in the whole run, from 0, of the first step of ``epoch`` (from 1)."""
        return (epoch - 1) * len(self.train_loader)

    def device_transform(self) -> DeviceTransform:
        """What brings a loader's tensors to this training; holds no reference to it."""
        dtype = next(self.distiller.student.parameters()).dtype
        return partial(to_device, device=self.device, dtype=dtype, layout=self._image_layout)

    def shard(self, loader: Batches) -> Batches:
        """What this process sees of ``loader``.

        Raises:
            ConfigError: this trainer, its distiller, the loader or the batch size allow only one
                process.
        """
        owner = next(c for c in type(self).__mro__ if "backward" in vars(c))
        able = {
            type(self): vars(owner).get("data_parallel", False),
            type(self.distiller): self.distiller.data_parallel,
        }
        return shard_of(loader, self.world, self.cfg.SOLVER.BATCH_SIZE, able)

    def sum_gradients(self, parameters: Sequence[Tensor] | None = None) -> Tensor:
        """Sum the gradients in ``grad`` over the processes; the norm of all of the optimizer's.

        Args:
            parameters: whose gradients are summed; None for all of the optimizer's.
        """
        learnt = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.world.size > 1:
            summed = learnt if parameters is None else parameters
            self.world.sum_([p.grad for p in summed if p.grad is not None])
        return torch.nn.utils.get_total_norm([p.grad for p in learnt if p.grad is not None])

    # ---- training ------------------------------------------------------------------------

    def step(self, batch: Batch, epoch: int) -> StepResult:
        """One optimizer step."""
        self.optimizer.zero_grad(set_to_none=True)
        try:
            result = self.backward(batch, epoch)
        except KeyError as error:
            self.distiller.refuse_networks(error.args[0])
            raise
        self.optimizer.step()
        return result

    def share_streams(self, share: Callable[[Hashable, Batches], Batches]) -> None:
        """Read batches as a member of a fleet.

        Args:
            share: ``share(key, loader)`` gives what stands in for ``loader``; trainers whose
                streams have the same key read the same batches in step.
        """
        self.train_loader = share("train", self.train_loader)

    def train(self, resume: bool = False, allow_changes: bool = False) -> dict[str, Any]:
        """Train with a loop of its own, see :meth:`mdistiller.engine.loop.Loop.train`."""
        return Loop(self).train(resume, allow_changes)
