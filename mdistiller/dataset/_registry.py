"""The names that ``DATASET.TYPE`` may take."""

from __future__ import annotations

from mdistiller.registry import Registry

# name -> function of the configuration that returns what get_dataset returns
dataset_dict = Registry("data set")
