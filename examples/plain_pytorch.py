"""Cross-batch weighting in a plain PyTorch loop: python examples/plain_pytorch.py"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from _digits import accuracy, digits, network, train_teacher

from mdistiller.weighting import CrossBatchWeighting, cross_batch_backward, frozen_statistics


def main(epochs: int = 5, temperature: float = 4.0) -> float:
    """Distil a teacher into a student a quarter as wide; returns the student's top-1."""
    image, target, test_image, test_target = digits()
    teacher = train_teacher()
    torch.manual_seed(0)
    student = network(8)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    weighting = CrossBatchWeighting()  # settings: docs/method.md
    for epoch in range(1, epochs + 1):
        order, other = torch.randperm(len(target)), torch.randperm(len(target))
        for batch, second in zip(order.split(64), other.split(64), strict=True):
            optimizer.zero_grad()
            with frozen_statistics(student):
                unseen = F.cross_entropy(student(image[second]), target[second])
            logits = student(image[batch])
            ce = F.cross_entropy(logits, target[batch])
            soft = F.softmax(teacher(image[batch]) / temperature, 1)
            kd = temperature**2 * F.kl_div(
                F.log_softmax(logits / temperature, 1), soft, reduction="batchmean"
            )
            weights = cross_batch_backward(
                {"ce": ce, "kd": kd},
                reference=unseen,
                inputs=student.parameters(),
                weighting=weighting,
            )
            optimizer.step()
        print(
            f"epoch {epoch}: top-1 {accuracy(student, test_image, test_target):.1f}, "
            f"last step {weights.ce:.2f} ce + {weights.kd:.2f} kd"
        )
    return accuracy(student, test_image, test_target)


if __name__ == "__main__":
    main()
