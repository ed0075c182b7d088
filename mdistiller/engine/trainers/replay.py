"""Training with the weights that another run has used, step by step or in another order."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdistiller.config import Config, Setting
from mdistiller.engine.rundir.records import read_lines
from mdistiller.errors import CheckpointError, ConfigError
from mdistiller.seeding import generator

from .registry import trainer_dict
from .weighted_sum import WeightedSumTrainer


@trainer_dict.register("replay")
class ReplayTrainer(WeightedSumTrainer):
    """Weights the losses in every step as the run behind REPLAY.FILE did, or shuffled in time.

    A control for weightings that look at gradients: the same weights without the reason for
    them. Not shuffled, and with that run's batches and student, its updates are repeated up to
    rounding, for the gradient of a weighted sum is the weighted sum of the gradients.

    Raises:
        ConfigError: the file is missing or damaged, or is of a run with more or fewer steps.
    """

    settings = {
        "FILE": Setting(
            "",
            doc="the weights.jsonl of the run to replay",
            affects_result=False,
            kind="input",
        ),
        "SHUFFLE": Setting(False, doc="in an order drawn from EXPERIMENT.SEED"),
    }
    diagnostics_name = "replay"

    @classmethod
    def check(cls, cfg: Config) -> None:
        read_weights(cfg.REPLAY.FILE)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        node = self.cfg.REPLAY
        # A loss has single precision, and mps has no other one.
        sequence = read_weights(node.FILE).float()
        wanted = self.cfg.SOLVER.EPOCHS * len(self.train_loader)
        if len(sequence) != wanted:
            raise ConfigError(
                f"REPLAY.FILE {node.FILE} has the weights of {len(sequence)} steps, but this run "
                f"has {wanted}; set data, SOLVER.BATCH_SIZE and SOLVER.EPOCHS as they were there"
            )
        # Of the file's content, so that it is another run's if the file is another one.
        self._content = hashlib.sha256(sequence.numpy().tobytes()).hexdigest()
        if node.SHUFFLE:
            order = generator(self.cfg.EXPERIMENT.SEED, "replay")
            sequence = sequence[torch.randperm(wanted, generator=order)]
        self._sequence = sequence.to(self.device)

    def weights(self, losses: Tensor, epoch: int, step: int) -> Tensor:
        return self._sequence[step]

    def extra_state(self) -> dict[str, Any]:
        return {"content": self._content}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        if state["content"] != self._content:
            raise CheckpointError(
                f"the checkpoint was trained with other weights than those in REPLAY.FILE "
                f"{self.cfg.REPLAY.FILE}; give that run's file, or another EXPERIMENT.NAME"
            )


def read_weights(file: str | Path) -> Tensor:
    """The weights [steps, 2] (ce, kd) in a run's ``weights.jsonl``, in double precision.

    Raises:
        ConfigError: the file is missing, damaged, or not of complete epochs in their order.
    """
    entries = read_lines(Path(file)) if file and Path(file).is_file() else []
    if not entries:
        raise ConfigError(
            f"REPLAY.FILE {file or '(empty)'} is no file with weights; give the weights.jsonl of "
            "a run that was trained with LOG.WEIGHTS True"
        )
    try:
        if [entry["epoch"] for entry in entries] != list(range(1, len(entries) + 1)):
            raise ValueError("its epochs are not 1, 2, 3, ...")
        rows = [torch.tensor([e["ce"], e["kd"]], dtype=torch.float64).T for e in entries]
        found = torch.cat(rows)
        if found.ndim != 2 or not torch.isfinite(found).all():
            raise ValueError("a weight is not a finite number")
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        what = f"no entry {error}" if isinstance(error, KeyError) else error
        raise ConfigError(f"REPLAY.FILE {file} is damaged ({what}); train its run again") from None
    return found
