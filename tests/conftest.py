"""Settings that all tests share."""

from __future__ import annotations

import os
import signal

import hypothesis
import pytest
import torch

# Deterministic examples: a test that fails must fail again.
hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, max_examples=60, database=None
)
hypothesis.settings.load_profile("repeatable")

# A job in the background (nohup make test &) ignores SIGINT, and its children with it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests run side by side; each keeps to one core.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "offline"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
