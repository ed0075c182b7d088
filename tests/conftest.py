"""Settings that all tests share."""

from __future__ import annotations

import os

import hypothesis
import pytest
import torch

# Deterministic examples: a test that fails must fail again.
hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, max_examples=60, database=None
)
hypothesis.settings.load_profile("repeatable")

# Tests run side by side; each keeps to one core.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "offline"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
