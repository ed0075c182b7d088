"""Training with a multi-task weighting of the torchjd package."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mdistiller.config import Config, Setting
from mdistiller.errors import ConfigError
from mdistiller.weighting import PairAggregator
from mdistiller.weighting.aggregators import parse_arguments

from .pair import PairTrainer
from .registry import trainer_dict


@trainer_dict.register("multitask")
class MultitaskTrainer(PairTrainer):
    """Combines the two losses' gradients by MULTITASK.METHOD of the torchjd package (MGDA, ...).

    The method's weights are used as they are: they multiply the gradients of the two losses,
    configured loss weights included, and are not rescaled to any sum.

    Raises:
        ConfigError: see :func:`build_aggregator`.
    """

    settings = {
        "METHOD": Setting("MGDA", doc="a method of the torchjd package"),
        "PARAMS": Setting("", doc="its arguments, name=value, ..."),
    }
    diagnostics_name = "multitask"

    @classmethod
    def check(cls, cfg: Config) -> None:
        build_aggregator(cfg)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.aggregator = build_aggregator(self.cfg, self._gradients.buffer)

    def combine(
        self, products: Tensor, statistics: dict[str, Tensor], losses: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        return self.aggregator(self._gradients.buffer, products)

    def extra_state(self) -> dict[str, Any]:
        return self.aggregator.state_dict()

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.aggregator.load_state_dict(state)


def build_aggregator(cfg: Config, like: Tensor | None = None) -> PairAggregator:
    """The method that ``cfg.MULTITASK`` names, for gradients of the kind of ``like``.

    Raises:
        ConfigError: an unknown or unsuitable method, a bad argument, a missing package.
    """
    node = cfg.MULTITASK
    try:
        arguments = parse_arguments(node.PARAMS)
    except ValueError as error:
        raise ConfigError(f"MULTITASK.PARAMS: {error}") from None
    try:
        return PairAggregator(node.METHOD, arguments, like)
    except ValueError as error:
        raise ConfigError(f"MULTITASK.METHOD: {error}") from None
