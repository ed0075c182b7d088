"""The former name of :func:`mdistiller.weighting.frozen_statistics`."""

from mdistiller.weighting.frozen import frozen_statistics as frozen_buffers

__all__ = ["frozen_buffers"]
