"""Settings that all tests share."""

from __future__ import annotations

import gc
import os
import signal

# Tests run side by side; each keeps to one core. Before numpy is loaded, which reads it then.
os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from mdistiller.engine.runtime.host import keep_freed_memory  # noqa: E402
from mdistiller.seeding import seed_torch  # noqa: E402

# Deterministic examples: a test that fails must fail again.
for profile, examples in (("repeatable", 12), ("thorough", 120)):  # the latter in make test-slow
    hypothesis.settings.register_profile(
        profile, derandomize=True, deadline=None, max_examples=examples, database=None
    )
hypothesis.settings.load_profile("repeatable")

# A job in the background (nohup make test &) ignores SIGINT, and its children with it.
signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)
keep_freed_memory()  # as trainings do: half of the system's time goes into giving it back
os.environ["WANDB_MODE"] = "offline"


def pytest_collection_finish() -> None:
    """What was imported stays, and need not be looked through for garbage again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    seed_torch(0)
