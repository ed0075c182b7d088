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
        image_size: height and width in pixels, where DATASET.IMAGE_SIZE does not say.
        published: the networks' registered checkpoints were trained on this data set, so that
            they are its teachers.
        prepared: DATASET.IMAGE_SIZE, MEAN, STD and AUGMENT say how its images are prepared.
    """

    networks: Mapping[str, Any]
    image_size: int = 32
    published: bool = False
    prepared: bool = False


class DatasetRegistry(MethodRegistry):
    """Name -> function of the configuration that returns what ``get_dataset`` returns."""

    def __init__(self) -> None:
        super().__init__("data set", "DATASET.TYPE", str.upper)
        self._fitting: dict[str, Callable[[int], Fitting]] = {}

    def register(
        self,
        *names: str,
        networks: Mapping[str, Any] | Callable[[int], Mapping[str, Any]] = cifar_model_dict,
        image_size: int = 32,
        published: bool = False,
        settings: Settings | None = None,
    ) -> Callable[[Any], Any]:
        """Decorator that registers a data set with the networks that fit its images.

        Args:
            names: for DATASET.TYPE; none for the function's own name.
            networks, image_size, published: see :class:`Fitting`. The networks for small images
                take any size from 32 pixels on. A data set that prepares its images as
                DATASET.IMAGE_SIZE, MEAN, STD and AUGMENT say gives a function from the size to
                the networks.
            settings: of the data set's own, which become the node of its name.
        """
        if callable(networks):
            of_size = networks

            def fitting_of(size: int) -> Fitting:
                size = size or image_size
                return Fitting(_named(of_size(size)), size, published, prepared=True)
        else:
            known = Fitting(_named(networks), image_size, published)

            def fitting_of(size: int) -> Fitting:
                return known

        def add(function: Any) -> Any:
            if settings:
                function.settings = settings
            for name in names or (function.__name__,):
                self[name] = function
                self._fitting[name] = fitting_of
            return function

        return add

    def fitting(self, name: str, size: int = 0) -> Fitting:
        """What fits the images of the data set ``name``.

        Args:
            size: DATASET.IMAGE_SIZE; 0 for the data set's own.

        Raises:
            UnknownNameError: there is no such data set.
        """
        self[name]  # noqa: B018
        return self._fitting.get(name, lambda size: Fitting(cifar_model_dict))(size)


def _named(networks: Mapping[str, Any]) -> Registry:
    """``networks`` with messages for unknown names."""
    if isinstance(networks, Registry):
        return networks
    named = Registry("network")
    named.update(networks)
    return named


dataset_dict = DatasetRegistry()
