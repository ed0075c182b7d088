"""The newer methods as distillers: an epoch on digits, what they train, what they compare."""

from __future__ import annotations

import pytest
import torch

from mdistiller.dataset import build_model, get_dataset
from mdistiller.distillers import distiller_dict
from mdistiller.distillers.CATKD import class_activation_maps
from mdistiller.distillers.KD import kd_loss
from mdistiller.distillers.LSKD import standardize
from mdistiller.distillers.MLKD import mlkd_losses
from mdistiller.engine import trainer_dict
from mdistiller.errors import ConfigError
from mdistiller.models.heads import ReusedClassifier

from .toys import SmallNet, config

OPTIONS = {
    "SIMKD": ("SIMKD.CE_WEIGHT", 1.0),
    "CATKD": ("CATKD.CAT_WEIGHT", 1.0),
    "TTM": ("TTM.BETA", 5.0),
    "RLD": ("RLD.WARMUP", 1),
    "EADKD": ("EADKD.WARMUP", 1),
    "CTKD": ("CTKD.REVERSAL_EPOCHS", 1),
}
DIGITS = (
    "DATASET.TYPE",
    "digits",
    "DATASET.SUBSET",
    1024,
    "SOLVER.BATCH_SIZE",
    16,
    "SOLVER.LR",
    0.1,
)


def network(width: int, seed: int) -> SmallNet:
    torch.manual_seed(seed)
    return SmallNet(width)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> SmallNet:
    """A small network that knows the digits a little."""
    cfg = config(tmp_path_factory.mktemp("teacher"), *DIGITS, "SOLVER.EPOCHS", 2)
    train, val, _, _ = get_dataset(cfg)
    net = network(32, 1)
    distiller = distiller_dict["NONE"](net)
    trainer_dict["base"]("run", distiller, train, val, cfg).train()
    return net.eval()


def build(tmp_path, teacher, name: str, *opts, trainer: str = "base"):
    own = OPTIONS.get(name.removeprefix("CROSSBATCH_"), ())
    cfg = config(tmp_path, *DIGITS, "DISTILLER.TYPE", name, "SOLVER.TRAINER", trainer, *own, *opts)
    train, val, _, _ = get_dataset(cfg)
    torch.manual_seed(3)
    distiller = distiller_dict[name](network(24, 2), teacher, cfg)
    return trainer_dict[trainer]("run", distiller, train, val, cfg)


def test_simkds_student_is_the_network_of_record(tmp_path, teacher):
    trainer = build(tmp_path, teacher, "SIMKD", "DATASET.SUBSET", 256)
    distiller, image = trainer.distiller, torch.randn(4, 3, 32, 32)
    assert isinstance(distiller.student, ReusedClassifier)
    result = trainer.train()
    distiller.eval()
    with torch.no_grad():
        trunk = distiller.student.trunk(image)[1]["preact_feats"][-1].relu()
        projected = distiller.student.projector(trunk).mean((2, 3))
        assert torch.equal(distiller(image=image), distiller.student.classifier(projected))
        expected = teacher.fc(projected)
    assert torch.allclose(distiller(image=image), expected)
    saved = torch.load(trainer.log_path / "student_latest", weights_only=True)["model"]
    assert saved.keys() == distiller.student.state_dict().keys()
    own = sum(p.numel() for p in distiller.student.parameters())
    assert distiller.get_extra_parameters() == sum(
        p.numel() for p in distiller.student.projector.parameters()
    )
    assert result["student_parameters"] == own


def test_catkds_logits_are_the_means_of_its_maps(tmp_path, teacher):
    distiller = build(tmp_path, teacher, "CATKD").distiller.eval()
    logits, features = distiller.student(torch.randn(3, 3, 32, 32))
    maps = class_activation_maps(distiller.student, features)
    assert torch.allclose(maps.mean((2, 3)), logits, atol=1e-5)
    # The teacher keeps the bias in its own logits, not in its maps.
    logits, features = teacher(torch.randn(3, 3, 32, 32))
    maps = class_activation_maps(teacher, features)
    assert torch.allclose(maps.mean((2, 3)) + teacher.fc.bias, logits, atol=1e-5)


def test_ctkds_temperature_ascends_while_the_student_descends(tmp_path, teacher):
    trainer = build(tmp_path, teacher, "CTKD", "SOLVER.WEIGHT_DECAY", 0.0)
    module = trainer.distiller.global_temperature
    batch = next(iter(trainer.batches(1)))
    trainer.distiller.train()
    start = module.theta.item()
    with torch.no_grad():
        logits, _ = trainer.distiller.student(batch.image)
    trainer.step(batch, 1)
    values = []
    for theta in (start, module.theta.item()):
        module.theta.data.fill_(theta)
        pair = logits.detach(), teacher(batch.image)[0]
        values.append(kd_loss(*pair, module(1.0)).item())
    assert values[1] > values[0]
    state = trainer.distiller.state_dict()
    assert "global_temperature.theta" in state


LOGIT_METHODS = [n for n, c in distiller_dict.items() if c.compares_logits and n[:5] != "CROSS"]


@pytest.mark.parametrize("name", LOGIT_METHODS)
def test_standardised_logits_make_the_loss_blind_to_scale_and_shift(tmp_path, teacher, name):
    def loss(scale: float, shift: float, *opts) -> float:
        distiller = build(tmp_path, teacher, name, "DATASET.STRONG_VIEW", False, *opts).distiller
        student = distiller.student
        plain = student.forward
        student.forward = lambda x: (plain(x)[0] * scale + shift, plain(x)[1])
        torch.manual_seed(0)
        _, losses = distiller.eval().forward_train(
            image=torch.randn(6, 3, 32, 32), target=torch.arange(6), epoch=5
        )
        return losses["loss_kd"].item()

    standardised = ("DISTILLER.LOGIT_STANDARDIZATION", True)
    # Weights per sample are those of the logits as they are.
    weighted = name in ("WSLD", "EAKD", "EADKD")
    scale = 1.0 if weighted else 3.0
    first, second = loss(1.0, 0.0, *standardised), loss(scale, 2.0, *standardised)
    assert first == pytest.approx(second, rel=1e-3)
    assert loss(3.0, 2.0) != pytest.approx(first, rel=1e-3)


def test_methods_that_compare_no_logits_refuse_to_standardise_them(tmp_path, teacher):
    for name in ("SIMKD", "CATKD", "RKD", "CROSSBATCH_AT"):
        with pytest.raises(ConfigError, match="LOGIT_STANDARDIZATION works for methods that"):
            build(tmp_path, teacher, name, "DISTILLER.LOGIT_STANDARDIZATION", True)


def test_networks_without_the_last_map_are_refused(tmp_path):
    cfg = config(tmp_path)
    student, teacher = (build_model("cifar100", n, 100) for n in ("MobileNetV2", "vgg8"))
    for name in ("SIMKD", "CATKD"):
        with pytest.raises(ConfigError, match="needs the map that the classifier pools"):
            distiller_dict[name](student, teacher, cfg)


def test_mlkd_as_meant_selects_and_uses_both_views_wholly():
    generator = torch.Generator().manual_seed(0)
    weak, strong = (
        tuple(torch.randn(6, 10, generator=generator).double() * 3 for _ in range(2))
        for _ in range(2)
    )
    coded, meant = (mlkd_losses(weak, strong, as_coded=flag) for flag in (True, False))
    one_view = mlkd_losses(weak, as_coded=False)
    swapped = mlkd_losses(weak, (strong[1], strong[1]), as_coded=False)
    for whole, weak_only, same in zip(meant, one_view, swapped, strict=True):
        # Equal logits under strong augmentation add nothing.
        assert same.item() == pytest.approx(weak_only.item())
        assert whole > weak_only
    # As coded, the strong view has no batch and class terms.
    assert coded[1:] == mlkd_losses(weak)[1:]
    assert torch.equal(standardize(weak[0] * 3 + 1).argmax(1), weak[0].argmax(1))
