"""The names that ``DATASET.TYPE`` may take, and the networks that fit each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mdistiller.config import Settings
from mdistiller.config.registry import MethodRegistry
from mdistiller.models import cifar_model_dict
from mdistiller.registry import Registry


@dataclass(frozen=True)
class Fitting:
    """What fits a data set's images.

    Attributes:
        networks: name -> (constructor that takes num_classes, checkpoint or None), or the
            constructor alone, which then takes ``pretrained``, too.
        image_size: height and width in pixels.
        published: the networks' registered checkpoints were trained on this data set, so that
            they are its teachers.
    """

    networks: Mapping[str, Any]
    image_size: int = 32
    published: bool = False


class DatasetRegistry(MethodRegistry):
    """Name -> function of the configuration that returns what ``get_dataset`` returns."""

    def __init__(self) -> None:
        super().__init__("data set", "DATASET.TYPE", str.upper)
        self._fitting: dict[str, Fitting] = {}

    def register(
        self,
        *names: str,
        networks: Mapping[str, Any] = cifar_model_dict,
        image_size: int = 32,
        published: bool = False,
        settings: Settings | None = None,
    ) -> Callable[[Any], Any]:
        """Decorator that registers a data set with the networks that fit its images.

        Args:
            names: for DATASET.TYPE; none for the function's own name.
            networks, image_size, published: see :class:`Fitting`. The networks for small images
                take any size from 32 pixels on.
            settings: of the data set's own, which become the node of its name.
        """
        known = networks if isinstance(networks, Registry) else Registry("network")
        known.update({} if known is networks else networks)

        def add(function: Any) -> Any:
            if settings:
                function.settings = settings
            for name in names or (function.__name__,):
                self[name] = function
                self._fitting[name] = Fitting(known, image_size, published)
            return function

        return add

    def fitting(self, name: str) -> Fitting:
        """What fits the images of the data set ``name``.

        Raises:
            UnknownNameError: there is no such data set.
        """
        self[name]  # noqa: B018
        return self._fitting.get(name) or Fitting(cifar_model_dict)


dataset_dict = DatasetRegistry()
