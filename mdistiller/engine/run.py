"""One training from a configuration, as ``tools/train.py`` and the experiment runner do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from mdistiller.config import CFG, Config, experiment_name, images_beside, show_cfg
from mdistiller.config.cfg import resolved
from mdistiller.console import log
from mdistiller.dataset import Loader, build_model, dataset_dict, get_dataset, load_teacher
from mdistiller.device import resolve_device
from mdistiller.distillers import Distiller, distiller_dict
from mdistiller.models.foreign import PRETRAINED, adapt_input
from mdistiller.seeding import derive_seed, seed_everything

from . import trainer_dict
from .caching.answers import attach_cache
from .check import check_config
from .runtime.determinism import name_nondeterministic, use_deterministic_algorithms
from .runtime.distributed import joined_by_torchrun
from .runtime.host import use_host
from .settle import settle_statistics
from .teacher import Look, build_teacher, evaluate, log_teacher, look_at_teacher
from .trainers.base import BaseTrainer


def assemble_distiller(
    cfg: Config, student: nn.Module, teacher: nn.Module | None, num_data: int
) -> Distiller:
    """The distiller ``cfg.DISTILLER.TYPE`` over networks that exist.

    Args:
        num_data: size of the training set (for a method that contrasts images).
    """
    cls = distiller_dict[cfg.DISTILLER.TYPE]
    arguments = (student, teacher, cfg)
    return cls(*arguments, num_data) if cls.needs_contrast else cls(*arguments)


def build_distiller(cfg: Config, num_classes: int, num_data: int, loader: Any = None) -> Distiller:
    """Student, teacher and losses of ``cfg``, with the initial weights of EXPERIMENT.SEED.

    The student's initial weights depend on the seed and its architecture alone, so that runs
    that differ in the distiller start from the same student.

    Args:
        num_classes: classes of the data set.
        num_data: size of the training set (for a method that contrasts images).
        loader: of the training set, to which the teacher's input is adapted.
    """
    distiller_dict[cfg.DISTILLER.TYPE].check_classes(num_classes)
    teacher = None
    if cfg.DISTILLER.TYPE != "NONE":
        teacher = build_teacher(cfg, num_classes, loader)
    seed_everything(derive_seed(cfg.EXPERIMENT.SEED, "student"))
    names, size = cfg.DISTILLER, cfg.DATASET.IMAGE_SIZE
    student = build_model(
        cfg.DATASET.TYPE, names.STUDENT, num_classes, size, features=names.FEATURES.STUDENT
    )
    seed_everything(derive_seed(cfg.EXPERIMENT.SEED, "distiller"))
    return assemble_distiller(cfg, student, teacher, num_data)


@dataclass
class SharedInputs:
    """What trainings of the same data and teacher need not find out twice.

    Attributes:
        data: what ``get_dataset`` returns.
        teacher: what ``look_at_teacher`` returns.
    """

    data: tuple[Loader, Loader, int, int] | None = None
    teacher: Look | None = None


def build_trainer(cfg: Config, shared: SharedInputs | None = None) -> BaseTrainer:
    """Everything that a run needs, from a configuration.

    Args:
        cfg: the resolved configuration.
        shared: used where it holds something, filled in where not; its trainings then have the
            same loaders.

    Raises:
        ConfigError, DataError, CheckpointError: one line on what is wrong and what to do.
    """
    cfg = resolved(cfg)
    check_config(cfg)
    if cfg.SOLVER.DETERMINISTIC:
        use_deterministic_algorithms()
    shared = shared or SharedInputs()
    shared.data = shared.data or get_dataset(cfg)
    train_loader, val_loader, num_data, num_classes = shared.data
    distiller = build_distiller(cfg, num_classes, num_data, train_loader)
    settle_statistics(distiller.student, cfg.SOLVER.EPOCHS * len(train_loader))
    attach_cache(cfg, distiller, train_loader)
    trainer = trainer_dict[cfg.SOLVER.TRAINER](
        experiment_name(cfg), distiller, train_loader, val_loader, cfg
    )
    if distiller.recall is not None:
        trainer.extra_results["teacher_cache"] = distiller.recall.id
    # A loader of somebody's own need not know of it.
    wrong = getattr(train_loader, "wrong_labels", None)
    if cfg.DATASET.LABEL_NOISE and wrong is not None:
        trainer.extra_results["wrong_labels"] = 100 * wrong
        log(
            f"label noise, {cfg.DATASET.LABEL_NOISE_KIND}: {100 * wrong:.2f} % "
            "of the training labels are wrong"
        )
    if distiller.teacher is not None:
        if shared.teacher is None:
            shared.teacher = look_at_teacher(cfg, distiller.teacher, train_loader, val_loader)
        log_teacher(cfg, shared.teacher)
        trainer.extra_results |= shared.teacher.results
    return trainer


def run_training(cfg: Config, resume: bool = False, allow_changes: bool = False) -> dict[str, Any]:
    """Train as ``cfg`` says; returns the contents of ``result.json``.

    Args:
        cfg: as for :func:`build_trainer`.
        resume, allow_changes: as for :meth:`BaseTrainer.train`.
    """
    use_host()
    with joined_by_torchrun(cfg.SOLVER.DEVICE) as world:
        show_cfg(cfg)
        with world.fail_together():
            trainer = build_trainer(cfg)
        seed_everything(derive_seed(cfg.EXPERIMENT.SEED, "training"))
        with name_nondeterministic():
            result = trainer.train(resume, allow_changes)
        log_result(result, trainer)
    return result


def log_result(result: dict[str, Any], trainer: BaseTrainer) -> None:
    """Print how a run ended."""
    log(
        f"top-1 of the last epoch {result['last_top1']:.2f}, best {result['best_top1']:.2f} "
        f"(epoch {result['best_epoch']}); everything is in {trainer.log_path}",
        "EVAL",
    )


def evaluate_checkpoint(
    model: str,
    ckpt: str,
    dataset: str,
    batch_size: int,
    *,
    root: str = "",
    device: str = "auto",
    opts: Sequence[Any] = (),
) -> dict[str, Any]:
    """Accuracy of a checkpoint on a data set's validation images.

    Args:
        model: name of the network in the data set's registry.
        ckpt: file; empty for the published weights.
        dataset: DATASET.TYPE.
        batch_size: images at a time.
        root: DATASET.ROOT; empty for the usual one.
        device: SOLVER.DEVICE.
        opts: overrides (KEY, VALUE, ...). For image_folder the sizes and the like are those of
            the run that left the checkpoint, if its ``config.yaml`` lies beside it.

    Returns:
        "top1" and "top5" in percent and "loss", beside what was evaluated.
    """
    cfg = CFG.clone()
    kept = images_beside(ckpt, dataset) if dataset_dict.fitting(dataset).prepared else []
    cfg.merge_from_list(
        [
            *("DATASET.TYPE", dataset, "SOLVER.DEVICE", device, *kept),
            *("DATASET.TEST.BATCH_SIZE", batch_size, "DISTILLER.STUDENT", model),
            *(("DATASET.ROOT", root) if root else ()),
            *opts,
        ]
    )
    check_config(cfg)
    _, val_loader, _, num_classes = get_dataset(cfg)
    network = load_teacher(dataset, model, num_classes, ckpt or PRETRAINED, cfg.DATASET.IMAGE_SIZE)
    adapt_input(network, val_loader)
    top1, top5, loss = evaluate(network, val_loader, resolve_device(device))
    return {
        "model": model,
        "ckpt": ckpt or "pretrain",
        "dataset": dataset,
        "images": len(val_loader.dataset),
        "parameters": sum(p.numel() for p in network.parameters()),
        "top1": top1,
        "top5": top5,
        "loss": loss,
    }
