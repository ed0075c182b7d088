"""Cross-batch weighting in a transformers Trainer: python examples/huggingface_trainer.py

Needs: pip install transformers accelerate. Tiny randomly initialised transformers on generated
text: every token has a class, and the label of a sequence is its first token's.
"""

from __future__ import annotations

import tempfile

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from mdistiller.weighting import CrossBatchWeighting, cross_batch_backward, frozen_statistics

CLASSES, LENGTH = 4, 12


class Sequences(Dataset):
    """Random tokens of two words a class."""

    def __init__(self, number: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(2 * CLASSES, (number, LENGTH), generator=generator)
        self.labels = self.tokens[:, 0] % CLASSES

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[i], "labels": self.labels[i]}


class DistillationTrainer(Trainer):
    """The Trainer, whose training step has a teacher, a second batch and two weights."""

    def __init__(self, *args, teacher: torch.nn.Module, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = teacher.eval().requires_grad_(False)
        self.weighting = CrossBatchWeighting()
        self._second = iter(())

    def second_batch(self) -> dict[str, torch.Tensor]:
        """Of an independently shuffled stream without end."""
        batch = next(self._second, None)
        if batch is None:
            self._second = iter(self.get_train_dataloader())
            batch = next(self._second)
        return self._prepare_inputs(batch)

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        model.train()
        inputs = self._prepare_inputs(inputs)
        with frozen_statistics(model):
            unseen = model(**self.second_batch()).loss
        found = model(**inputs)
        with torch.no_grad():
            soft = F.softmax(self.teacher(input_ids=inputs["input_ids"]).logits / 4, 1)
        kd = 16 * F.kl_div(F.log_softmax(found.logits / 4, 1), soft, reduction="batchmean")
        parts = self.args.gradient_accumulation_steps
        cross_batch_backward(
            {"ce": found.loss / parts, "kd": kd / parts},
            reference=unseen / parts,
            inputs=model.parameters(),
            weighting=self.weighting,
            accumulate=not self.accelerator.sync_gradients,
        )
        return (found.loss + kd).detach() / parts


def transformer(size: int) -> BertForSequenceClassification:
    """One layer, ``size`` wide."""
    config = BertConfig(
        vocab_size=2 * CLASSES,
        hidden_size=size,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2 * size,
        max_position_embeddings=LENGTH,
        num_labels=CLASSES,
    )
    return BertForSequenceClassification(config)


def train(model: torch.nn.Module, steps: int, kind: type[Trainer] = Trainer, **more) -> None:
    """``steps`` steps with a trainer of ``kind``, which gets ``more`` as arguments."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=32,
            gradient_accumulation_steps=2,
            learning_rate=3e-3,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            seed=0,
        )
        kind(model=model, args=arguments, train_dataset=Sequences(2000, seed=0), **more).train()


def main(steps: int = 150, teacher_steps: int = 200) -> float:
    """Train a teacher, distil it, and return the student's accuracy in percent."""
    torch.manual_seed(0)
    teacher, student = transformer(64), transformer(16)
    train(teacher, teacher_steps)
    train(student, steps, DistillationTrainer, teacher=teacher)
    test = Sequences(500, seed=1)
    with torch.no_grad():
        hits = student.eval()(input_ids=test.tokens).logits.argmax(1) == test.labels
    top1 = 100 * hits.float().mean().item()
    print(f"accuracy {top1:.1f}")
    return top1


if __name__ == "__main__":
    main()
