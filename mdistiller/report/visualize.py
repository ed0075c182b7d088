"""Pictures of what a student took over from its teacher.

Two kinds, both on validation images: a t-SNE map of the features in front of the classifier
(van der Maaten and Hinton, JMLR 9, 2008), and the difference of the correlations between the
logits of teacher and student (Tian et al., arXiv:1910.10699, figure 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from mdistiller.config import Config
from mdistiller.dataset import Loader, get_dataset, load_teacher
from mdistiller.device import resolve_device
from mdistiller.distillers._common import need_feature
from mdistiller.engine.check import check_config
from mdistiller.engine.teacher import sound_teacher
from mdistiller.errors import CheckpointError, ConfigError, DataError, MdistillerError
from mdistiller.seeding import derive_seed, generator

from .palette import COLOURS, SCALE

PERPLEXITY = 30
# The neighbours that perplexity counts must exist.
MIN_IMAGES = PERPLEXITY + 1
# Up to here classes get colours and numbers of their own, beyond a colour scale.
MAX_NAMED_CLASSES = 20

# A marker goes with each ten colours, and every class also has its number in the picture.
_MARKERS = ("o", "^")


@dataclass(frozen=True)
class Responses:
    """What a network makes of N images, on the CPU.

    Attributes:
        name: for titles, such as "student resnet8".
        features: [N, D], the input of the classifier.
        logits: [N, C].
    """

    name: str
    features: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Pictures:
    """What :func:`visualize` made; ``mean_difference`` is that of the logit correlations."""

    tsne: Path
    correlation: Path
    images: int
    mean_difference: float


def visualize(
    cfg: Config, student_ckpt: str | Path, out: str | Path, images: int = 2000
) -> Pictures:
    """Draw ``<out>/tsne.png`` and ``<out>/correlation_difference.png``.

    Args:
        cfg: names the data set, the student, the teacher and its checkpoint.
        student_ckpt: weights of the student.
        out: folder, made if missing.
        images: how many validation images, drawn at random by EXPERIMENT.SEED; all of them
            where the data set has no more.

    Raises:
        ConfigError: too few images, or a configuration without a teacher.
        CheckpointError: weights are missing, of another network, or give useless features.
        DataError: the data are missing, or fewer than t-SNE needs.
        MdistillerError: the pictures cannot be written.
    """
    if images < MIN_IMAGES:
        raise ConfigError(
            f"--images must be at least {MIN_IMAGES}, for t-SNE's perplexity is {PERPLEXITY}, "
            f"not {images}"
        )
    check_config(cfg)
    if cfg.DISTILLER.TYPE == "NONE":
        raise ConfigError(
            "DISTILLER.TYPE NONE has no teacher to compare with; give the configuration of a "
            "distillation (its student may have been trained in any way)"
        )
    labels, student, teacher = _respond(cfg, student_ckpt, images)
    for network in (student, teacher):
        _check_useful(network)
    data = f"{len(labels)} validation images of {cfg.DATASET.TYPE}"
    seed = derive_seed(cfg.EXPERIMENT.SEED, "tsne") % 2**32
    maps = [(net.name, embed(net, seed)) for net in (student, teacher)]
    difference = (correlation(teacher.logits) - correlation(student.logits)).abs()
    paths = Path(out) / "tsne.png", Path(out) / "correlation_difference.png"
    title = f"t-SNE of the features in front of the classifier, {data}"
    _save(draw_maps(maps, labels.numpy(), student.logits.shape[1], title), paths[0])
    title = f"Correlations between logits: |{teacher.name} − {student.name}|\n{data}"
    _save(draw_difference(difference.numpy(), title), paths[1])
    return Pictures(*paths, len(labels), float(difference.mean()))


def _respond(
    cfg: Config, student_ckpt: str | Path, images: int
) -> tuple[Tensor, Responses, Responses]:
    """Labels [N], and the responses of student and teacher."""
    _, loader, _, classes = get_dataset(cfg)
    dataset, names, size = cfg.DATASET.TYPE, cfg.DISTILLER, cfg.DATASET.IMAGE_SIZE
    student = load_teacher(
        *(dataset, names.STUDENT, classes, str(student_ckpt), size),
        features=names.FEATURES.STUDENT,
        role="STUDENT",
    )
    teacher = sound_teacher(cfg, classes, loader)
    available = len(loader.dataset)
    if available < MIN_IMAGES:
        raise DataError(
            f"{dataset} has {available} validation images, but t-SNE needs {MIN_IMAGES}; "
            "use another DATASET.TYPE"
        )
    order = torch.randperm(available, generator=generator(cfg.EXPERIMENT.SEED, "visualize"))
    chosen = torch.zeros(available, dtype=torch.bool)
    chosen[order[:images]] = True
    device = resolve_device(cfg.SOLVER.DEVICE)
    labels, found = collect([student.to(device), teacher.to(device)], loader, chosen)
    return (
        labels,
        Responses(f"student {names.STUDENT}", *found[0]),
        Responses(f"teacher {names.TEACHER}", *found[1]),
    )


@torch.inference_mode()
def collect(
    networks: Sequence[nn.Module], loader: Loader, chosen: Tensor
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Labels [N] and, per network, features [N, D] and logits [N, C] of some images.

    Args:
        networks: in eval mode; return (logits, features with "pooled_feat").
        loader: in the order of the data set.
        chosen: which of its images to take, a mask [images] with N times True. A random choice
            is one over all classes also where images are sorted by class.
    """
    like = next(networks[0].parameters())
    labels: list[Tensor] = []
    parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in networks]
    start = 0
    for image, target in loader:
        wanted = chosen[start : start + len(target)].nonzero()[:, 0].to(image.device)
        start += len(target)
        if len(wanted) == 0:
            continue
        image = image[wanted].to(like)
        labels.append(target[wanted].cpu())
        for network, part in zip(networks, parts, strict=True):
            logits, features = network(image)
            pooled = need_feature(features, "pooled_feat", network, "the picture")
            part.append((pooled.flatten(1).cpu(), logits.cpu()))
    return torch.cat(labels), [
        (torch.cat([one for one, _ in part]), torch.cat([other for _, other in part]))
        for part in parts
    ]


def _check_useful(network: Responses) -> None:
    """Refuse a network of which nothing can be drawn."""
    features, logits = network.features, network.logits
    finite = features.isfinite().all() and logits.isfinite().all()
    if not finite or (features == features[0]).all():
        raise CheckpointError(
            f"the features or logits of the {network.name} are "
            f"{'the same for all images' if finite else 'not finite'}; "
            "give a checkpoint of a training that went well"
        )


def embed(network: Responses, seed: int) -> np.ndarray:
    """The features on a plane [N, 2]; the same seed gives the same map."""
    tsne = TSNE(perplexity=PERPLEXITY, init="pca", random_state=seed)
    # The order of its sums, and with it the map, would depend on the number of threads.
    with threadpool_limits(1):
        return tsne.fit_transform(network.features.numpy())


def correlation(logits: Tensor) -> Tensor:
    """Pearson correlations [C, C] of logits [N, C] over the images, in double precision.

    A logit that never varies correlates with nothing: its row and column are zero.
    """
    centred = logits.double() - logits.double().mean(dim=0)
    norms = centred.norm(dim=0)
    scaled = centred / norms.clamp_min(torch.finfo(norms.dtype).tiny)
    return scaled.T @ scaled


def draw_maps(
    maps: Sequence[tuple[str, np.ndarray]], labels: np.ndarray, classes: int, title: str
) -> Figure:
    """Maps (name, [N, 2]) side by side, coloured by the labels [N] in 0..classes - 1."""
    figure = Figure(figsize=(6.2 * len(maps), 6), layout="constrained")
    figure.suptitle(title)
    row = figure.subplots(1, len(maps), squeeze=False)[0]
    for axes, (name, points) in zip(row, maps, strict=True):
        if classes <= MAX_NAMED_CLASSES:
            _scatter_named(axes, points, labels, classes)
        else:
            drawn = axes.scatter(
                *points.T, c=labels, s=9, cmap=SCALE, vmin=0, vmax=classes - 1, linewidths=0
            )
        axes.set(title=name, xlabel="t-SNE dimension 1", ylabel="t-SNE dimension 2")
        # The unit is arbitrary.
        axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    if classes <= MAX_NAMED_CLASSES:
        handles, names = row[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right center", title="class", markerscale=1.8)
    else:
        ticks = MaxNLocator(integer=True)
        figure.colorbar(drawn, ax=list(row), label="class", ticks=ticks, shrink=0.8)
    return figure


def _scatter_named(axes: Axes, points: np.ndarray, labels: np.ndarray, classes: int) -> None:
    """Points in the colour and with the marker of their class, which is written in their midst."""
    for number in range(classes):
        own = points[labels == number]
        group, colour = divmod(number, len(COLOURS))
        style: dict[str, Any] = {"color": COLOURS[colour], "marker": _MARKERS[group]}
        axes.scatter(own[:, 0], own[:, 1], s=14, linewidths=0, label=str(number), **style)
        if len(own):
            box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.75, "lw": 0}
            x, y = np.median(own, axis=0)
            axes.text(x, y, str(number), ha="center", va="center", weight="bold", bbox=box)


def draw_difference(difference: np.ndarray, title: str) -> Figure:
    """The absolute differences [C, C] of correlations as an image."""
    figure = Figure(figsize=(7, 6.4), layout="constrained")
    axes = figure.subplots()
    # Never an empty colour scale, not even for a student that equals its teacher.
    top = max(float(difference.max()), 1e-6)
    drawn = axes.imshow(difference, cmap=SCALE, vmin=0, vmax=top, interpolation="nearest")
    axes.set_title(f"{title}\nmean absolute difference {difference.mean():.4f}", fontsize=11)
    axes.set(xlabel="class", ylabel="class")
    if len(difference) <= MAX_NAMED_CLASSES:
        axes.set(xticks=range(len(difference)), yticks=range(len(difference)))
    figure.colorbar(drawn, ax=axes, label="|difference of correlations|")
    return figure


def _save(figure: Figure, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise MdistillerError(
            f"cannot write {path} ({error.strerror or error}); give another --out"
        ) from None
