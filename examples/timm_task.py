"""Cross-batch weighting with timm's distillation task: python examples/timm_task.py

Needs: pip install timm. The task computes both losses; only the backward call is another one.
"""

from __future__ import annotations

import timm
import torch
from _digits import accuracy, digits
from timm.task import LogitDistillationTask
from torch import nn

from mdistiller.weighting import CrossBatchWeighting, cross_batch_backward, frozen_statistics


def images() -> tuple[torch.Tensor, ...]:
    """The digits as [N, 3, 32, 32], which timm's networks take."""
    image, target, test_image, test_target = digits()
    larger = (
        nn.functional.interpolate(x, size=32).expand(-1, 3, -1, -1) for x in (image, test_image)
    )
    image, test_image = larger
    return image, target, test_image, test_target


def main(epochs: int = 4, teacher_epochs: int = 3, limit: int = 1347) -> float:
    """Train a teacher, distil it, and return the student's top-1."""
    torch.manual_seed(0)
    image, target, test_image, test_target = images()
    image, target = image[:limit], target[:limit]
    settings = {"num_classes": 10, "pretrained": False}
    teacher, student = (timm.create_model(n, **settings) for n in ("resnet10t", "test_resnet"))
    train_teacher(teacher, image, target, teacher_epochs)
    task = LogitDistillationTask(
        student, teacher, criterion=nn.CrossEntropyLoss(), temperature=4.0, verbose=False
    )
    task.train()
    optimizer = torch.optim.AdamW(task.trainable_module.parameters(), lr=5e-3)
    weighting = CrossBatchWeighting()
    for epoch in range(1, epochs + 1):
        order, other = torch.randperm(len(target)), torch.randperm(len(target))
        for batch, second in zip(order.split(64), other.split(64), strict=True):
            optimizer.zero_grad()
            with frozen_statistics(student):
                unseen = task.criterion(student(image[second]), target[second])
            result = task(image[batch], target[batch])
            weights = cross_batch_backward(
                {"ce": result["task_loss"], "kd": result["kd_loss"]},
                reference=unseen,
                inputs=student.parameters(),
                weighting=weighting,
            )
            optimizer.step()
        top1 = accuracy(student, test_image, test_target)
        print(
            f"epoch {epoch}: top-1 {top1:.1f}, last step {weights.ce:.2f} ce + {weights.kd:.2f} kd"
        )
    return top1


def train_teacher(
    teacher: nn.Module, image: torch.Tensor, target: torch.Tensor, epochs: int
) -> None:
    """With the labels alone; a real one comes with ``pretrained=True``."""
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=5e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(target)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(teacher(image[batch]), target[batch]).backward()
            optimizer.step()
    teacher.eval().requires_grad_(False)


if __name__ == "__main__":
    main()
