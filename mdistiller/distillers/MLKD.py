"""Multi-level Logit Distillation (Jin et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from mdistiller.config import Setting, not_negative, positive

from ._base import Distiller
from ._common import need_argument
from ._precision import at_least_single
from ._registry import distiller_dict
from .KD import kd_loss
from .LSKD import standardize


def _probabilities(logits_student: Tensor, logits_teacher: Tensor, temperature: float):
    return (F.softmax(z / temperature, dim=1) for z in (logits_student, logits_teacher))


@at_least_single
def batch_relations(logits_student: Tensor, logits_teacher: Tensor, temperature: float) -> Tensor:
    """Per sample, squared differences of its similarities with the batch.

    Args:
        logits_student, logits_teacher: [B, C].
        temperature: softens both; there is no squared factor.

    Returns:
        [B]; the mean is the batch-level loss |P_s P_s' - P_t P_t'|^2 / B.
    """
    p_s, p_t = _probabilities(logits_student, logits_teacher, temperature)
    return (p_s @ p_s.t() - p_t @ p_t.t()).pow(2).sum(dim=1)


@at_least_single
def class_relations(logits_student: Tensor, logits_teacher: Tensor, temperature: float) -> Tensor:
    """Per class, squared differences of its similarities with the other classes.

    Args:
        logits_student, logits_teacher: [B, C].
        temperature: softens both; there is no squared factor.

    Returns:
        [C]; the mean is the class-level loss |P_s' P_s - P_t' P_t|^2 / C.
    """
    p_s, p_t = _probabilities(logits_student, logits_teacher, temperature)
    return (p_s.t() @ p_s - p_t.t() @ p_t).pow(2).sum(dim=1)


def _unsure(confidence: Tensor) -> Tensor:
    """1 for the entries of ``confidence`` that are at most the median, else 0."""
    return (confidence <= confidence.quantile(0.5)).to(confidence.dtype)


@at_least_single
def mlkd_losses(
    weak: tuple[Tensor, Tensor],
    strong: tuple[Tensor, Tensor] | None = None,
    temperature: float = 4.0,
    standardized: bool = False,
    as_coded: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Instance-, batch- and class-level losses, each a sum over five temperatures.

    On the weak view the samples and classes count of which the teacher is not sure: those up to
    the median of its confidence.

    Args:
        weak, strong: logits (student's, teacher's), each [B, C], of the batch under weak and
            under strong augmentation; None for one view only.
        temperature: the first of the temperatures; the others are 3, 5, 2 and 6.
        standardized: standardise the logits of the instance terms, and of them alone
            (arXiv:2403.01427).
        as_coded: follow the authors' program, whose results are the published ones. There the
            masks multiply losses that are means already, so they only scale; the strong view's
            instance terms at 2 and 6 are the weak view's; its batch and class terms are left
            out. False: masks select, and the strong view has all terms.

    Returns:
        Three scalars, without loss weights.
    """
    temperatures = (temperature, 3, 5, 2, 6)
    change = standardize if standardized else (lambda z: z)
    confidence = weak[1].softmax(dim=1)
    samples, classes = _unsure(confidence.amax(dim=1)), _unsure(confidence.sum(dim=0))

    def total(kind: Callable, pair: tuple[Tensor, Tensor], chosen=temperatures) -> Tensor:
        """[B] or [C], summed over the temperatures."""
        return sum(kind(*pair, t) for t in chosen)

    def instance(student: Tensor, teacher: Tensor, t: float) -> Tensor:
        return kd_loss(change(student), change(teacher), t, per_sample=True)

    kinds = ((instance, samples), (batch_relations, samples), (class_relations, classes))
    if as_coded:
        losses = [mask.mean() * total(kind, weak).mean() for kind, mask in kinds]
        if strong is not None:
            extra = total(instance, strong, temperatures[:3]) + total(instance, weak, (2, 6))
            losses[0] = losses[0] + extra.mean()
    else:
        losses = [(mask * total(kind, weak)).mean() for kind, mask in kinds]
        if strong is not None:
            losses = [
                loss + total(kind, strong).mean()
                for loss, (kind, _) in zip(losses, kinds, strict=True)
            ]
    of_samples, of_batch, of_classes = losses
    return of_samples, of_batch, of_classes


@distiller_dict.register("MLKD")
class MLKD(Distiller):
    """Multi-level logit distillation, with the settings of ``cfg.MLKD``.

    With DATASET.STRONG_VIEW the loader gives each image under strong augmentation, too, as
    ``strong`` [B, 3, H, W]; the student sees one view after the other. Supervised loss
    ``loss_ce``: cross-entropy, of both views. Distillation losses, see :func:`mlkd_losses`:
    ``loss_kd`` (instances), ``loss_bc`` (batch), ``loss_cc`` (classes).
    """

    family, needs, year = "logits", "logits, a second view (option)", 2023
    settings = {
        "CE_WEIGHT": Setting(0.1, not_negative, "weight of the cross-entropy of each view"),
        "KD_WEIGHT": Setting(0.9, not_negative, "weight of the distillation losses"),
        "TEMPERATURE": Setting(4.0, positive, "the first of five; the others are 3, 5, 2, 6"),
        "AS_CODED": Setting(
            True,
            doc="follow the authors' program, not their intent; see [differences](differences.md)",
        ),
    }
    compares_logits = True
    reads_cache = ("logits",)
    relates_images = True
    distillation_losses = ("loss_kd", "loss_bc", "loss_cc")

    def __init__(self, student, teacher, cfg) -> None:
        super().__init__(student, teacher, cfg)
        self.ce_loss_weight = cfg.MLKD.CE_WEIGHT
        self.kd_loss_weight = cfg.MLKD.KD_WEIGHT
        self.temperature = cfg.MLKD.TEMPERATURE
        self.as_coded = cfg.MLKD.AS_CODED
        self.two_views = cfg.DATASET.STRONG_VIEW

    def forward_train(self, image, target, **kwargs):
        logits, _ = self.student(image)
        weak, strong = (logits, self.forward_teacher(image)[0]), None
        ce = self.cross_entropy(logits, target)
        if self.two_views:
            view = need_argument(kwargs, "strong", "MLKD")
            strong = (self.student(view)[0], self.forward_teacher(view)[0])
            ce = ce + self.cross_entropy(strong[0], target)
        parts = mlkd_losses(weak, strong, self.temperature, self.standardized, self.as_coded)
        weighted = (self.kd_loss_weight * part for part in parts)
        losses = dict(zip(("loss_kd", "loss_bc", "loss_cc"), weighted, strict=True))
        return logits, {"loss_ce": self.ce_loss_weight * ce, **losses}
