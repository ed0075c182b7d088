"""Cross-batch weighting in a Lightning module: python examples/lightning_module.py

Needs: pip install lightning. Manual optimization leaves the backward pass to the module.
"""

from __future__ import annotations

import lightning
import torch
import torch.nn.functional as F
from _digits import accuracy, digits, network, train_teacher
from torch.utils.data import DataLoader, TensorDataset

from mdistiller.weighting import CrossBatchWeighting, cross_batch_backward, frozen_statistics


class Distillation(lightning.LightningModule):
    """A student, its teacher, and a second loader for the reference gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.student, self.teacher = network(8), train_teacher()
        self.weighting = CrossBatchWeighting()

    def training_step(self, batch, index) -> None:
        (image, target), (other_image, other_target) = batch
        optimizer = self.optimizers()
        optimizer.zero_grad()
        with frozen_statistics(self.student):
            unseen = F.cross_entropy(self.student(other_image), other_target)
        logits = self.student(image)
        with torch.no_grad():
            soft = F.softmax(self.teacher(image) / 4, 1)
        kd = 16 * F.kl_div(F.log_softmax(logits / 4, 1), soft, reduction="batchmean")
        weights = cross_batch_backward(
            {"ce": F.cross_entropy(logits, target), "kd": kd},
            reference=unseen,
            inputs=self.student.parameters(),
            weighting=self.weighting,
        )
        optimizer.step()
        self.log_dict({"weight_ce": weights.ce, "weight_kd": weights.kd})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.student.parameters(), lr=0.05, momentum=0.9)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["weighting"] = self.weighting.state_dict()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.weighting.load_state_dict(checkpoint["weighting"])


def main(epochs: int = 5) -> float:
    """Train and return the student's top-1."""
    lightning.seed_everything(0, verbose=False)
    image, target, test_image, test_target = digits()
    data = TensorDataset(image, target)
    streams = [DataLoader(data, batch_size=64, shuffle=True) for _ in range(2)]
    module = Distillation()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, lightning.pytorch.utilities.CombinedLoader(streams, "min_size"))
    top1 = accuracy(module.student, test_image, test_target)
    print(f"top-1 {top1:.1f}")
    return top1


if __name__ == "__main__":
    main()
