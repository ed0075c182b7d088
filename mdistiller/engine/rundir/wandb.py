"""Weights & Biases, only when asked for and never with a login prompt."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mdistiller.errors import ConfigError


def open_wandb(cfg, folder: Path) -> Any:
    """A wandb run for ``cfg``; it stays on this machine if nobody is logged in.

    Raises:
        ConfigError: LOG.WANDB is True but wandb is not installed.
    """
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            "LOG.WANDB is True but wandb is not installed; run pip install wandb, "
            "or leave LOG.WANDB False"
        ) from None
    mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
    return wandb.init(
        project=cfg.EXPERIMENT.PROJECT,
        name=folder.name,
        config=cfg.leaves(),
        dir=str(folder),
        mode=mode,
    )
