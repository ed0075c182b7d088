"""From a configuration to a training: teachers, initial weights, every method for some steps."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from mdistiller.dataset import build_model, get_dataset
from mdistiller.distillers import distiller_dict
from mdistiller.engine import trainer_dict
from mdistiller.engine.run import build_distiller, build_trainer

from .toys import ListLoader, config

METHODS = [name for name in distiller_dict if not name.startswith("CROSSBATCH_")]
SMALL_CRD = ("CRD.FEAT.STUDENT_DIM", 64, "CRD.FEAT.TEACHER_DIM", 64, "CRD.NCE.K", 16)


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("teacher") / "resnet14"
    torch.save({"model": build_model("digits", "resnet14", 10).state_dict()}, path)
    return path


def digits_config(tmp_path, teacher_file, *opts):
    return config(
        tmp_path,
        *("DATASET.TYPE", "digits", "SOLVER.BATCH_SIZE", 8, "SOLVER.WEIGHT_DECAY", 0.0),
        *("DISTILLER.STUDENT", "resnet8", "DISTILLER.TEACHER", "resnet14"),
        *("DISTILLER.TEACHER_CKPT", str(teacher_file), "SOLVER.EPOCHS", 1),
        *("SOLVER.LR_DECAY_STAGES", "[]", "SOLVER.LR", 0.01, *SMALL_CRD, *opts),
    )


# With a loss that is not one forward pass's alone, or a teacher that changes. The forms with
# cross-batch weighting, which call the same, train in tests/test_every_method.py.
ALONE = ("NONE", "KD", "CRD", "OFD")


def cases():
    for method in METHODS:
        often = () if method in ALONE else pytest.mark.slow
        yield pytest.param(method, "base", (), marks=often)
        if method != "NONE":
            dot = () if method in ("KD", "VID") else pytest.mark.slow
            yield pytest.param(method, "dot", (), marks=dot)
            own = (f"CROSSBATCH_{method}", "crossbatch", ())
            yield pytest.param(*own, marks=pytest.mark.slow)
    yield "VID", "base", ("VID.LEARN_VARIANCE", True)
    yield "CROSSBATCH_VID", "crossbatch", ("VID.LEARN_VARIANCE", True)
    yield "CRD", "crd", ("CRD.MODE", "relax")
    yield "CRD", "crd_dot", ()


@pytest.mark.parametrize(("method", "trainer", "opts"), list(cases()))
def test_every_method_trains_on_real_images(tmp_path, teacher_file, method, trainer, opts):
    cfg = digits_config(
        tmp_path, teacher_file, "DISTILLER.TYPE", method, "SOLVER.TRAINER", trainer, *opts
    )
    train_loader, val_loader, num_data, num_classes = get_dataset(cfg)
    data = ListLoader(islice(train_loader, 3), islice(train_loader.stream("auxiliary"), 3))
    val = list(islice(val_loader, 1))
    distiller = build_distiller(cfg, num_classes, num_data)
    run = trainer_dict[trainer]("run", distiller, data, val, cfg)
    learnable = distiller.get_learnable_parameters()
    assert learnable[0] is next(distiller.student.parameters())
    before = [p.detach().clone() for p in learnable]
    teacher = (
        {k: v.clone() for k, v in distiller.teacher.state_dict().items()}
        if method != "NONE"
        else {}
    )
    run.train()
    # A convolution's bias before a batch norm has no gradient beyond rounding.
    stuck = [i for i, (a, b) in enumerate(zip(before, learnable, strict=True)) if torch.equal(a, b)]
    names = {id(p): n for n, p in distiller.named_parameters()}
    assert [names[id(learnable[i])] for i in stuck] == []
    assert all(torch.isfinite(p).all() for p in learnable)
    assert all(torch.isfinite(p.grad).all() for p in learnable if p.grad is not None)
    for key, value in teacher.items():
        drifts = "OFD" in method and ("running" in key or "num_batches" in key)
        assert drifts or torch.equal(value, distiller.teacher.state_dict()[key]), key
    assert all(p.grad is None for p in (distiller.teacher or torch.nn.Module()).parameters())


def test_student_starts_from_the_seed_whatever_the_method(tmp_path, teacher_file):
    starts = []
    for method, seed in (("KD", 0), ("CROSSBATCH_FITNET", 0), ("NONE", 0), ("KD", 1)):
        cfg = digits_config(
            tmp_path, teacher_file, "DISTILLER.TYPE", method, "EXPERIMENT.SEED", seed
        )
        starts.append(build_distiller(cfg, 10, 100).student.conv1.weight)
    assert torch.equal(starts[0], starts[1])
    assert torch.equal(starts[0], starts[2])
    assert not torch.equal(starts[0], starts[3])


def test_main_stream_is_the_same_with_and_without_cross_batch(tmp_path, teacher_file):
    seen = []
    for method, trainer in (("KD", "base"), ("CROSSBATCH_KD", "crossbatch")):
        cfg = digits_config(
            tmp_path, teacher_file, "DISTILLER.TYPE", method, "SOLVER.TRAINER", trainer
        )
        run = build_trainer(cfg)
        steps = []
        for _, batch in zip(range(3), run.batches(2), strict=False):
            steps.append((batch.image, batch.index))
            if trainer == "crossbatch":
                assert not torch.equal(batch.auxiliary.image, batch.image)
        seen.append(steps)
    for (image, index), (other_image, other_index) in zip(*seen, strict=True):
        assert torch.equal(index, other_index)
        assert torch.equal(image, other_image)
