"""Trainings with the weightings of the literature: every method, resume, options, refusals."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from mdistiller.distillers import KD, distiller_dict
from mdistiller.engine import BaseTrainer, trainer_dict
from mdistiller.engine.cfg import CFG, dump_cfg
from mdistiller.engine.check import check_config
from mdistiller.engine.run import assemble_distiller
from mdistiller.errors import (
    CheckpointError,
    ConfigError,
    InterruptedRun,
    MdistillerError,
    NonFiniteError,
)
from mdistiller.listing import _described
from mdistiller.weighting.aggregators import method_names

from .test_resume import stop_after
from .test_weighting_pair import NEEDS
from .toys import ListLoader, SmallNet, ToyHint, config, loader, networks

TRAINERS = ("multitask", "gradnorm", "uncertainty", "gradient_cosine", "distill_decay")
METHODS = [n for n in distiller_dict if n != "NONE" and not n.startswith("CROSSBATCH_")]
PARAMS = {"Constant": "weights=[0.25, 3]", "TrimmedMean": "trim_number=0"}


def multitask(method: str, params: str = "") -> tuple[str, ...]:
    if method in NEEDS:
        pytest.importorskip(NEEDS[method])
    return ("MULTITASK.METHOD", method, "MULTITASK.PARAMS", params or PARAMS.get(method, ""))


def toy_trainer(folder, name, *opts, distiller=KD, dtype=torch.float32):
    cfg = config(folder, "SOLVER.TRAINER", name, "DISTILLER.TYPE", "KD", *opts)
    student, teacher = networks(dtype=dtype)
    torch.manual_seed(4)
    made = distiller(student, teacher, cfg).to(dtype)
    data = loader(dtype=dtype)
    return trainer_dict[name]("run", made, data, data, cfg)


def student_vector(trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.distiller.student.parameters()])


def trained(folder, name, *opts, **options) -> torch.Tensor:
    trainer = toy_trainer(folder, name, *opts, **options)
    torch.manual_seed(11)
    trainer.train()
    return student_vector(trainer)


def log(folder) -> list[dict]:
    return [json.loads(x) for x in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


# ---- every method --------------------------------------------------------------------------


def real_images(steps: int = 2, size: int = 4) -> ListLoader:
    generator = torch.Generator().manual_seed(3)
    return ListLoader(
        (
            torch.randn(size, 3, 32, 32, generator=generator),
            torch.randint(10, (size,), generator=generator),
            torch.arange(size),
            torch.randint(64, (size, 9), generator=generator),
        )
        for _ in range(steps)
    )


def faults(folder: Path, name: str, method: str, data: ListLoader) -> Iterator[str]:
    """What two steps of ``method`` with the trainer ``name`` move or leave as they should not."""
    cfg = config(
        folder,
        *("SOLVER.TRAINER", name, "DISTILLER.TYPE", method, "SOLVER.WEIGHT_DECAY", 0.0),
        *("SOLVER.LR", 0.01, "SOLVER.EPOCHS", 1, "SOLVER.LR_DECAY_STAGES", "[]"),
        *("CRD.FEAT.STUDENT_DIM", 16, "CRD.FEAT.TEACHER_DIM", 24, "CRD.NCE.K", 8),
        # 0 as shipped: without a supervised gradient there is no cosine to go by.
        *("SIMKD.CE_WEIGHT", 1.0, "CTKD.REVERSAL_EPOCHS", 1),
        *("MULTITASK.METHOD", "PCGrad", "UNCERTAINTY.LR", 0.1),
    )
    torch.manual_seed(1)
    distiller = assemble_distiller(cfg, SmallNet(16), SmallNet(24), num_data=64)
    run = trainer_dict[name]("run", distiller, data, data[:1], cfg)
    learnable = distiller.get_learnable_parameters()
    before = [p.detach().clone() for p in learnable]
    teacher = copy.deepcopy(distiller.teacher.state_dict())
    distiller.train()
    for batch in run.batches(1):
        result = run.step(batch, 1)
        if not {"ce", "kd"} <= result.diagnostics.keys():
            yield f"{name}: no weights among {list(result.diagnostics)}"
        if not all(torch.isfinite(loss).all() for loss in result.losses.values()):
            yield f"{name}: a loss is not finite: {result.losses}"
    names = {id(p): n for n, p in distiller.named_parameters()}
    stay = {names[id(q)] for p, q in zip(before, learnable, strict=True) if torch.equal(p, q)}
    # The BatchNorm behind them takes these away, so that their gradient is rounding alone.
    for key in stay:
        if not re.fullmatch(r"student\.(trunk\.)?conv\d\.bias", key):
            yield f"{name}: {key} stays"
    if not all(torch.isfinite(p).all() for p in learnable):
        yield f"{name}: a parameter is not finite"
    for key, value in distiller.teacher.state_dict().items():
        drifts = method == "OFD" and ("running" in key or "num_batches" in key)
        if not (drifts or torch.equal(value, teacher[key])):
            yield f"{name}: the teacher's {key} changes"


@pytest.mark.parametrize("method", METHODS)
def test_every_trainer_takes_steps_with_every_method(tmp_path, method):
    """Whole trainings: of every trainer with KD in what follows, of every method elsewhere."""
    data = real_images()
    wrong = [fault for name in TRAINERS for fault in faults(tmp_path / name, name, method, data)]
    assert wrong == []


@pytest.mark.parametrize("name", TRAINERS)
def test_every_trainer_writes_its_weights_into_the_log(tmp_path, name):
    trained(tmp_path, name, "MULTITASK.METHOD", "PCGrad", "SOLVER.EPOCHS", 1)
    (entry,) = log(tmp_path)
    assert {"ce", "kd"} <= entry[name].keys()


@pytest.mark.parametrize("method", method_names())
def test_every_method_of_torchjd_trains(tmp_path, method):
    after = trained(tmp_path, "multitask", *multitask(method), "SOLVER.EPOCHS", 1)
    assert torch.isfinite(after).all()
    before = torch.cat([p.detach().flatten() for p in networks()[0].parameters()])
    assert not torch.equal(before, after)
    entry = log(tmp_path)[-1]["multitask"]
    assert {"ce", "kd", "c_12", "norm_ce", "norm_kd", "conflict"} == entry.keys()


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """:func:`trained` with these arguments, each training done once."""
    known = {}

    def of(name, *opts, **options) -> torch.Tensor:
        key = name, opts, tuple(options.items())
        if key not in known:
            known[key] = trained(tmp_path_factory.mktemp("once"), name, *opts, **options)
        return known[key]

    return of


# ---- against plain training ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "opts", "factors"),
    [
        ("multitask", ("MULTITASK.METHOD", "Sum"), (1, 1)),
        ("multitask", ("MULTITASK.METHOD", "Mean"), (0.5, 0.5)),
        ("multitask", multitask("Constant"), (0.25, 3)),
        ("gradnorm", ("GRADNORM.LR", 1e-12), (1, 1)),
        ("uncertainty", ("UNCERTAINTY.LR", 1e-12), (1, 1)),
        ("distill_decay", ("DISTILL_DECAY.START", 1.0, "DISTILL_DECAY.END", 1.0), (1, 1)),
        (
            "distill_decay",
            ("DISTILL_DECAY.START", 0.0, "DISTILL_DECAY.END", 0.0, "DISTILL_DECAY.BETA", 0.3),
            (10, 1 / 3),
        ),
    ],
)
def test_known_weights_are_plain_training_at_these_loss_weights(once, name, opts, factors):
    ce, kd = factors
    weights = ("KD.LOSS.CE_WEIGHT", 0.1 * ce, "KD.LOSS.KD_WEIGHT", 0.9 * kd)
    found = once(name, *opts, dtype=torch.float64)
    plain = once("base", *weights, dtype=torch.float64)
    assert torch.allclose(found, plain, rtol=1e-7, atol=1e-9)


def test_decay_weights_by_epoch(tmp_path):
    opts = ("SOLVER.EPOCHS", 8, "DISTILL_DECAY.END", 0.75, "DISTILL_DECAY.BETA", 0.09)
    trained(tmp_path, "distill_decay", *opts)
    weights = [
        (e["distill_decay"]["ce"] * 0.1, e["distill_decay"]["kd"] * 0.9) for e in log(tmp_path)
    ]
    expected = [(0.1, 0.9)] * 5 + [(0.55, 0.45)] + [(1.0, 0.09)] * 2
    assert weights == [pytest.approx(pair, rel=1e-5) for pair in expected]


@pytest.mark.parametrize(
    ("method", "opts", "expected"),
    [
        ("KD", (), 0.1),
        ("KD", ("KD.LOSS.CE_WEIGHT", 0.4), 0.4),
        ("PKT", (), 1.0),
        ("REVIEWKD", ("REVIEWKD.CE_WEIGHT", 2.0), 2.0),
        ("KD", ("DISTILL_DECAY.CE_FROM", 0.7), 0.7),
    ],
)
def test_decay_starts_at_the_methods_own_weight(tmp_path, method, opts, expected):
    from mdistiller.engine.trainers.fading import build_schedule

    cfg = config(tmp_path, "DISTILLER.TYPE", method, *opts)
    assert build_schedule(cfg).ce_from == expected


def test_gradient_cosine_drops_a_distillation_gradient_that_conflicts(tmp_path):
    class Opposed(KD):
        sign = -1.0

        def forward_train(self, image, target, **kwargs):
            logits, losses = super().forward_train(image, target, **kwargs)
            return logits, {**losses, "loss_kd": self.sign * 2 * losses["loss_ce"]}

    class Agreeing(Opposed):
        sign = 1.0

    class Supervised(Opposed):
        sign = 0.0

    def run(name, distiller):
        return trained(
            tmp_path / f"{name}{distiller.sign}", name, distiller=distiller, dtype=torch.float64
        )

    expected = run("base", Supervised)
    assert torch.allclose(run("gradient_cosine", Opposed), expected, rtol=1e-9)
    assert torch.allclose(run("gradient_cosine", Agreeing), run("base", Agreeing), rtol=1e-9)
    entry = log(tmp_path / "gradient_cosine-1.0")[0]["gradient_cosine"]
    assert (entry["ce"], entry["kd"], entry["conflict"]) == (1, 0, 1)


@pytest.mark.parametrize("name", TRAINERS)
def test_extra_parameters_get_the_plain_gradient_of_their_loss(tmp_path, name):
    trainer = toy_trainer(tmp_path, name, distiller=ToyHint, dtype=torch.float64)
    trainer.distiller.train()
    reference = copy.deepcopy(trainer.distiller)
    batch = next(iter(trainer.batches(1)))
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.backward(batch, epoch=2)
    _, losses = reference(**batch.inputs(2))
    losses["loss_kd"].backward()
    for p, q in zip(
        trainer.distiller.regressor.parameters(), reference.regressor.parameters(), strict=True
    ):
        assert torch.allclose(p.grad, q.grad, rtol=1e-10)


# ---- state ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GradVac", "PCD", "ExcessMTL", "Random", "GradDrop", "NashMTL"])
def test_run_stopped_and_resumed_ends_with_the_same_bits(tmp_path, method):
    """The other trainers are among the cases of test_resume.py."""
    if method not in method_names():
        pytest.skip("not in this torchjd")
    opts = multitask(method)
    whole = trained(tmp_path / "whole", "multitask", *opts)
    part = toy_trainer(tmp_path / "part", "multitask", *opts)
    torch.manual_seed(11)
    stop_after(part, 3)
    with pytest.raises(InterruptedRun):
        part.train()
    rest = toy_trainer(tmp_path / "part", "multitask", *opts)
    torch.manual_seed(999)
    rest.train(resume=True)
    assert torch.equal(student_vector(rest), whole)
    logs = [[e["multitask"] for e in log(tmp_path / kind)] for kind in ("whole", "part")]
    assert logs[0] == logs[1]


def test_checkpoint_of_another_method_is_refused(tmp_path):
    trained(tmp_path, "multitask", *multitask("GradVac"), "SOLVER.EPOCHS", 1)
    other = toy_trainer(tmp_path, "multitask", *multitask("PCGrad"))
    with pytest.raises(CheckpointError, match="GradVac, not PCGrad"):
        other.train(resume=True, allow_changes=True)


def test_log_variances_follow_the_schedule_at_their_own_rate_without_decay(tmp_path):
    trainer = toy_trainer(
        tmp_path, "uncertainty", "UNCERTAINTY.LR", 0.2, "SOLVER.WEIGHT_DECAY", 0.5
    )
    trainer.train()
    network, own = trainer.optimizer.param_groups
    assert network["lr"] == pytest.approx(0.005)  # decayed after the first of two epochs
    assert own["lr"] == pytest.approx(0.02)
    assert (network["weight_decay"], own["weight_decay"]) == (0.5, 0.0)
    assert own["params"] == [trainer.log_variances]
    assert (trainer.log_variances != 0).all()
    entry = log(tmp_path)[-1]["uncertainty"]
    assert entry["ce"] != 1
    assert entry["kd"] != 1


def test_weights_of_gradnorm_sum_to_two(tmp_path):
    trained(tmp_path, "gradnorm", "GRADNORM.LR", 0.3)
    for entry in log(tmp_path):
        assert entry["gradnorm"]["ce"] + entry["gradnorm"]["kd"] == pytest.approx(2)


# ---- options -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "opts"),
    [
        ("multitask", ("MULTITASK.METHOD", "PCGrad")),
        ("multitask", ("MULTITASK.METHOD", "FairGrad", "MULTITASK.PARAMS", "alpha=1.0")),
        ("gradnorm", ("GRADNORM.ALPHA", 0.0, "GRADNORM.LR", 0.3)),
        ("gradnorm", ("GRADNORM.LR", 0.3)),
        ("uncertainty", ("UNCERTAINTY.LR", 0.3)),
        ("gradient_cosine", ("GRADIENT_COSINE.WEIGHTED", True)),
        ("distill_decay", ("DISTILL_DECAY.START", 0.0)),
        ("distill_decay", ("DISTILL_DECAY.END", 1.0, "DISTILL_DECAY.START", 0.0)),
        ("distill_decay", ("DISTILL_DECAY.START", 0.0, "DISTILL_DECAY.CE_FROM", 0.3)),
        ("distill_decay", ("DISTILL_DECAY.START", 0.0, "DISTILL_DECAY.CE_TO", 0.8)),
        (
            "distill_decay",
            ("DISTILL_DECAY.START", 0.0, "DISTILL_DECAY.END", 0.0, "DISTILL_DECAY.KD_FROM", 0.5),
        ),
        (
            "distill_decay",
            ("DISTILL_DECAY.START", 0.0, "DISTILL_DECAY.END", 1.0, "DISTILL_DECAY.KD_TO", 0.5),
        ),
        (
            "distill_decay",
            ("DISTILL_DECAY.START", 0.0, "DISTILL_DECAY.END", 0.0, "DISTILL_DECAY.BETA", 0.5),
        ),
    ],
)
def test_every_option_reaches_the_training(once, name, opts):
    # The same options but for the last one.
    assert not torch.equal(once(name, *opts), once(name, *opts[:-2]))


@pytest.mark.parametrize("name", TRAINERS)
def test_dumped_configuration_is_complete(tmp_path, name):
    changes = {
        "multitask": ("MULTITASK.METHOD", "CAGrad", "MULTITASK.PARAMS", "c=0.4, norm_eps=1e-5"),
        "gradnorm": ("GRADNORM.ALPHA", 0.5, "GRADNORM.LR", 0.01),
        "uncertainty": ("UNCERTAINTY.LR", 0.5),
        "gradient_cosine": ("GRADIENT_COSINE.WEIGHTED", True),
        "distill_decay": ("DISTILL_DECAY.BETA", 0.01, "DISTILL_DECAY.CE_FROM", 0.2),
    }[name]
    cfg = CFG.clone()
    cfg.merge_from_list(["SOLVER.TRAINER", name, "DISTILLER.TYPE", "KD", *changes])
    (tmp_path / "config.yaml").write_text(dump_cfg(cfg))
    again = CFG.clone()
    again.merge_from_file(tmp_path / "config.yaml")
    assert again == cfg
    groups = yaml.safe_load(dump_cfg(cfg))
    assert {t.upper() for t in TRAINERS} & set(groups) == {name.upper()}


def test_trainers_are_listed():
    text = _described("Trainers (SOLVER.TRAINER)", trainer_dict)
    for name in TRAINERS:
        (line,) = [x for x in text.splitlines() if x.startswith(f"{name} ")]
        assert len(line.split()) > 4


# ---- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (("SOLVER.TRAINER", "gradnorm", "DISTILLER.TYPE", "NONE"), ["needs a distillation loss"]),
        (("SOLVER.TRAINER", "multitask", "DISTILLER.TYPE", "CROSSBATCH_KD"), ["crossbatch"]),
        (("SOLVER.TRAINER", "multitask", "MULTITASK.METHOD", "MGDB"), ["did you mean 'MGDA'"]),
        (("SOLVER.TRAINER", "multitask", "MULTITASK.METHOD", "Krum"), ["three gradients"]),
        (("SOLVER.TRAINER", "multitask", "MULTITASK.PARAMS", "0.4"), ["as in Python"]),
        (("SOLVER.TRAINER", "multitask", "MULTITASK.PARAMS", "c=1"), ["epsilon, max_iters"]),
        (("GRADNORM.LR", 0), ["GRADNORM.LR must be greater than 0"]),
        (("GRADNORM.ALPHA", -1), ["GRADNORM.ALPHA must be 0 or greater"]),
        (("UNCERTAINTY.LR", 0), ["UNCERTAINTY.LR"]),
        (("SOLVER.TRAINER", "distill_decay", "DISTILL_DECAY.END", 0.4), ["DISTILL_DECAY.END"]),
        (("SOLVER.TRAINER", "distill_decay", "DISTILL_DECAY.BETA", -1), ["DISTILL_DECAY.BETA"]),
        (("SOLVER.TRAINER", "distill_decay", "KD.LOSS.CE_WEIGHT", 0), ["DISTILL_DECAY.CE_FROM"]),
        (("DISTILL_DECAY.KD_FROM", 0), ["DISTILL_DECAY.KD_FROM"]),
    ],
)
def test_bad_configuration_is_one_line(opts, words):
    cfg = CFG.clone()
    cfg.merge_from_list(["DISTILLER.TYPE", "KD", "SOLVER.DEVICE", "cpu", *opts])
    with pytest.raises(ConfigError) as error:
        check_config(cfg)
    assert "\n" not in str(error.value)
    assert [w for w in words if w not in str(error.value)] == []


def test_missing_solver_is_an_error_at_the_start(monkeypatch):
    import torchjd._mixins

    monkeypatch.setattr(torchjd._mixins, "find_spec", lambda name: None)
    cfg = CFG.clone()
    cfg.merge_from_list(["DISTILLER.TYPE", "KD", "SOLVER.TRAINER", "multitask"])
    cfg.merge_from_list(["MULTITASK.METHOD", "NashMTL"])
    with pytest.raises(ConfigError, match=r"command line: MULTITASK.METHOD: .*ecos.*pip install"):
        check_config(cfg)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, name):
    class Bad(KD):
        def forward_train(self, image, target, **kwargs):
            logits, losses = super().forward_train(image, target, **kwargs)
            return logits, {**losses, "loss_kd": losses["loss_kd"] * float("nan")}

    with pytest.raises(NonFiniteError, match="epoch 1, step 1: .*loss_kd"):
        toy_trainer(tmp_path, name, *multitask("FairGrad"), distiller=Bad).train()


def test_failing_solver_is_one_line(tmp_path, monkeypatch):
    trainer = toy_trainer(tmp_path, "multitask", *multitask("FairGrad"))
    monkeypatch.setattr(
        "torchjd.aggregation._fairgrad.FairGradWeighting.forward",
        lambda *_: (_ for _ in ()).throw(ValueError("no solution")),
    )
    with pytest.raises(MdistillerError, match="FairGrad failed .*no solution"):
        trainer.train()


def test_own_steps_read_nothing_from_the_device(tmp_path):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Reads(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    def reads(name: str, steps: int) -> int:
        trainer = toy_trainer(
            tmp_path / f"{name}{steps}",
            name,
            "SOLVER.EPOCHS",
            1,
            "LOG.TENSORBOARD_FREQ",
            1000,
            "MULTITASK.METHOD",
            "Sum",
        )
        trainer.train_loader = loader(steps=steps)
        trainer.val_loader = trainer.train_loader[:1]
        with Reads() as mode:
            trainer.train()
        return mode.count

    for name in TRAINERS:
        assert reads(name, 6) == reads(name, 2), name


def test_base_trainer_is_untouched_by_the_groups(tmp_path):
    trainer = toy_trainer(tmp_path, "base")
    assert isinstance(trainer, BaseTrainer)
    assert len(trainer.optimizer.param_groups) == 1
    assert "lr_scale" not in trainer.optimizer.param_groups[0]
