"""The contract that every distiller fulfils."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdistiller.config import Config, Settings
from mdistiller.errors import ConfigError, DataError
from mdistiller.models import Foreign
from mdistiller.weighting import frozen_statistics

from .LSKD import standardize


class Recall(Protocol):
    """Turns rows of a file of a teacher's answers into the answers.

    Attributes:
        id: of the file's content.
    """

    id: str

    def __call__(self, rows: Tensor) -> tuple[Tensor, Any]: ...


class Distiller(nn.Module):
    """A student, its teacher, and the losses that train the student.

    A subclass implements :meth:`forward_train`, which returns

    * ``logits`` [B, C]: the student's, and
    * ``losses``: a dict from name to loss, scalar or shape [1], with the configured loss
      weights already applied. The names in :attr:`supervised_losses` belong to the labels,
      those in :attr:`distillation_losses` to the teacher; their sum is what is minimised.

    Modules of its own (regressors, heads) are trained if :meth:`get_learnable_parameters`
    returns their parameters after the student's.

    Args:
        student: network with ``forward(x) -> (logits, features)``.
        teacher: a trained network of the same kind, never updated; None for no teacher.
        cfg: the run's configuration; None stands for the defaults.
    """

    # Become the node of the configuration that has the name under which the class is registered.
    settings: Settings = {}

    # For lists: the kind of method, what it needs of the networks and beside them, its year.
    family, needs, year = "", "", 0

    supervised_losses: tuple[str, ...] = ("loss_ce",)
    distillation_losses: tuple[str, ...] = ("loss_kd",)

    # Whether the method contrasts images (CRD): the loader then draws samples as the node CRD
    # says, and the constructor takes the number of training images.
    needs_contrast = False

    # Whether the distillation loss compares the two networks' logits.
    compares_logits = False

    # All that the method reads of the teacher's answers, if a file of them can hold it: "logits",
    # "pooled_feat", "last_map" (the last of ``feats``); nothing where it needs more than that.
    reads_cache: tuple[str, ...] = ()

    # Whether each process of a training may see its part of a batch only (torchrun).
    data_parallel = True

    # Whether a loss relates the images of a batch to one another: its mean over the parts of a
    # batch is then not that over the whole, so the number of processes changes the result.
    relates_images = False

    @classmethod
    def check(cls, cfg: Config) -> None:
        """Refuse settings that cannot work together, before anything is loaded.

        Raises:
            ConfigError: one line that begins with the key.
        """
        cls._check_standardization(cfg)

    @classmethod
    def _check_standardization(cls, cfg: Config) -> None:
        if cfg.DISTILLER.LOGIT_STANDARDIZATION and not cls.compares_logits:
            raise ConfigError(
                "DISTILLER.LOGIT_STANDARDIZATION works for methods that compare logits, such as "
                f"KD and DKD; {cls.__name__} does not, so set it to False"
            )

    @classmethod
    def check_classes(cls, num_classes: int) -> None:
        """Refuse data of too few classes, before anything is trained.

        Raises:
            DataError: there is one class only, so that every loss is constant.
        """
        if num_classes < 2:
            raise DataError(
                f"the data set has {num_classes} class{'es' if num_classes != 1 else ''}, and "
                "there is nothing to learn from fewer than two; look at DATASET.ROOT"
            )

    def __init__(
        self, student: nn.Module, teacher: nn.Module | None, cfg: Config | None = None
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        # What forward_teacher calls; a trainer may put a faster equivalent here.
        self.run_teacher: Callable[[Tensor], tuple[Tensor, Any]] | None = None
        # What the rows mean that come with a batch, where the teacher's answers are on file.
        self.recall: Recall | None = None
        self.standardized = cfg is not None and bool(cfg.DISTILLER.LOGIT_STANDARDIZATION)
        if cfg is not None:
            self._check_standardization(cfg)
        smoothing = 0.0 if cfg is None else float(cfg.SOLVER.LABEL_SMOOTHING)
        # Mean cross-entropy of logits [B, C] with class labels [B].
        self.cross_entropy = nn.CrossEntropyLoss(label_smoothing=smoothing)

    def train(self, mode: bool = True) -> Distiller:
        """Switch the mode of everything but the teacher, which stays in eval mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    @property
    def own_teacher(self) -> nn.Module:
        """The teacher of a method that has one."""
        assert self.teacher is not None, f"{type(self).__name__} was made without a teacher"
        return self.teacher

    def compared(self, *logits: Tensor) -> tuple[Tensor, ...]:
        """Logits, each [B, C], as the distillation loss compares them.

        With DISTILLER.LOGIT_STANDARDIZATION they are standardised (arXiv:2403.01427).
        """
        return tuple(map(standardize, logits)) if self.standardized else logits

    @torch.no_grad()
    def forward_teacher(self, image: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """The teacher's (logits, features) of ``image`` [B, 3, H, W], without a graph."""
        # Other images than a batch's, such as a second view, have none.
        answers = getattr(image, "answers", None)
        if self.recall is not None and answers is not None:
            return self.recall(answers)
        return (self.run_teacher or self.own_teacher)(image)

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        """All parameters that an optimizer is to update, the student's first."""
        return list(self.student.parameters())

    def get_extra_parameters(self) -> int:
        """How many numbers the method adds to the student while training."""
        return 0

    def forward_train(
        self, image: Tensor, target: Tensor, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Student logits [B, C] and the dict of losses on one batch.

        Args:
            image: [B, 3, H, W].
            target: class labels [B].
            **kwargs: what a method may need beside: ``epoch`` (counted from 1), ``index``
                [B] (positions in the training set), ``contrastive_index`` [B, K + 1].
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement forward_train")

    def split_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The sum of the supervised and the sum of the distillation losses, both scalar.

        Raises:
            ValueError: an entry of ``losses`` belongs to neither kind, or one kind is empty.
        """
        stray = set(losses) - set(self.supervised_losses) - set(self.distillation_losses)
        if stray:
            raise ValueError(
                f"{type(self).__name__} returns the losses {sorted(stray)}, which are neither in "
                "its supervised_losses nor in its distillation_losses; name them there"
            )
        sums = []
        for kind in ("supervised_losses", "distillation_losses"):
            present = [losses[name].mean() for name in getattr(self, kind) if name in losses]
            if not present:
                raise ValueError(f"{type(self).__name__} returns none of its {kind}")
            sums.append(sum(present[1:], present[0]))
        return sums[0], sums[1]

    def reference_loss(self, image: Tensor, target: Tensor) -> Tensor:
        """Plain cross-entropy of the student on the auxiliary batch, without a loss weight.

        BatchNorm normalises by the auxiliary batch's statistics, as it would in training, but
        neither its running statistics nor any other buffer changes.

        Args:
            image: [B, 3, H, W].
            target: class labels [B].

        Returns:
            Scalar, with a graph to the student's parameters.
        """
        with frozen_statistics(self.student):
            logits, _ = self.student(image)
        return F.cross_entropy(logits, target)

    def forward_test(self, image: Tensor) -> Tensor:
        """The student's logits [B, C]."""
        return self.student(image)[0]

    def forward(self, **kwargs: Any):
        """:meth:`forward_train` in train mode, else :meth:`forward_test`."""
        if not self.training:
            return self.forward_test(kwargs["image"])
        return self.forward_train(**kwargs)

    def refuse_networks(self, key: Any) -> None:
        """Raise a ConfigError if ``key`` is a feature that a network of others does not have."""
        for network in (self.student, self.teacher):
            if isinstance(network, Foreign) and key in network.lacks:
                raise ConfigError(
                    f"{type(self).__name__} needs the features {key!r}, but {network.name} "
                    f"returns only {', '.join(network.plan.keys) or 'logits'}; choose another "
                    "network or another method"
                ) from None
