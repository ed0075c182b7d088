"""What an image costs in each network on some machine, as ``make gpu-check`` has measured it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mdistiller.errors import DataError

_WAYS = ("forward", "backward")


@dataclass(frozen=True)
class Speeds:
    """Seconds of one image, by network.

    Attributes:
        source: the file and the machine, in words.
        forward: of a pass without gradients (a teacher's).
        backward: of a forward and a backward pass (a student's).
    """

    source: str
    forward: dict[str, float]
    backward: dict[str, float]

    @classmethod
    def read(cls, path: str | Path) -> Speeds:
        """Of the file that ``benchmarks/gpu_check.py`` or ``benchmarks/networks.py`` has written.

        Raises:
            DataError: it is missing or holds no such figures.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            found = found.get("parts", {}).get("networks", {}).get("json", found)
            times = found["seconds_per_image"]
            ways = ({n: float(own[way]) for n, own in times.items()} for way in _WAYS)
            speeds = cls(f"{path}, measured on {found['machine']['device']}", *ways)
        except OSError as error:
            raise DataError(
                f"--speeds {path}: {error.strerror}; make gpu-check writes it"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(
                f"--speeds {path} holds no times of networks; make gpu-check writes such a file"
            ) from None
        if not times or min(*speeds.forward.values(), *speeds.backward.values()) <= 0:
            raise DataError(f"--speeds {path} holds times that are not positive; measure them anew")
        return speeds
