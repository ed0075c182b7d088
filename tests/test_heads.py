"""Networks with another classifier: sizes, what stays shared, checkpoints, evaluation, export."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mdistiller.dataset import build_model, load_teacher
from mdistiller.errors import CheckpointError
from mdistiller.export import export_checkpoint
from mdistiller.models.heads import (
    ReusedClassifier,
    head_name,
    last_map,
    make_projector,
    without_bias,
)

from .golden_rules import golden_json

FACTS = golden_json("methods")["facts"]
# Teacher, student, numbers of the projector and of the whole network (METHODS.md, section 8).
PAIRS = (
    ("resnet32x4", "resnet8x4", 214_016, 1_447_556),
    ("resnet56", "resnet20", 13_568, 291_892),
    ("wrn_40_2", "wrn_40_1", 49_664, 625_844),
    ("vgg13", "vgg8", 854_016, 4_819_044),
)


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def reused(student: nn.Module, teacher: nn.Module, factor: int = 2) -> ReusedClassifier:
    image = torch.zeros(1, 3, 32, 32, device=next(student.parameters()).device)
    maps = [last_map(net.eval()(image)[1]) for net in (student, teacher)]
    projector = make_projector(maps[0].shape[1], maps[1].shape[1], factor)
    head = teacher.get_submodule(head_name(teacher))
    return ReusedClassifier(student, projector, head, tuple(maps[1].shape[2:]))


def test_parameters_of_simkds_students():
    with torch.device("meta"):
        for teacher_name, student_name, of_projector, of_all in PAIRS:
            student, teacher = (
                build_model("cifar100", n, 100) for n in (student_name, teacher_name)
            )
            network = reused(student, teacher)
            assert (count(network.projector), count(network)) == (of_projector, of_all)


def test_parameters_of_catkds_students():
    for name, entry in FACTS["CAT-KD"]["cam_networks"].items():
        with torch.device("meta"):
            network = build_model("cifar100", name, 100)
        assert count(network) == entry["parameters_of_plain_network"]
        assert count(without_bias(network)) == entry["parameters"]
        with torch.device("meta"):
            _, features = network.eval()(torch.zeros(1, 3, 32, 32))
        assert list(last_map(features).shape[2:]) == entry["cam_shape"][1:]


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2"])
def test_a_changed_head_shares_the_layers_and_leaves_the_network_alone(name):
    network = build_model("digits", name, 10).eval()
    keys = list(network.state_dict())
    bare = without_bias(network)
    head = network.get_submodule(head_name(network))
    head.bias.data.normal_()
    image = torch.randn(2, 3, 32, 32)
    logits, features = network(image)
    assert torch.equal(bare(image)[1]["pooled_feat"], features["pooled_feat"])
    assert torch.allclose(bare(image)[0], logits - head.bias, atol=1e-6)
    assert list(network.state_dict()) == keys
    shared = {id(p) for p in network.parameters()}
    assert {id(p) for p in bare.parameters()} == shared - {id(head.bias)}


def saved_students(folder):
    """Both kinds of networks on disk, with batch norms that have seen data."""
    student, teacher = (build_model("digits", n, 10) for n in ("resnet8", "resnet14"))
    networks = {"reused": reused(student, teacher), "bare": without_bias(student)}
    for name, network in networks.items():
        network.train()(torch.randn(8, 3, 32, 32) + 0.5)
        torch.save({"model": network.state_dict()}, folder / name)
        yield name, network.eval()


def test_a_checkpoint_tells_what_network_it_is_of(tmp_path):
    image = torch.randn(3, 3, 32, 32)
    for name, network in saved_students(tmp_path):
        loaded = load_teacher("digits", "resnet8", 10, str(tmp_path / name))
        assert torch.equal(loaded(image)[0], network(image)[0])
        assert count(loaded) == count(network)
        with pytest.raises(CheckpointError, match="does not fit"):
            load_teacher("digits", "resnet20", 10, str(tmp_path / name))
        (file,) = export_checkpoint(
            "resnet8", tmp_path / name, "digits", ["state_dict"], tmp_path / f"{name}-out"
        )
        assert torch.load(file.path).keys() == network.state_dict().keys()


def test_a_larger_map_is_pooled_to_the_teachers():
    student, teacher = (build_model("digits", n, 10).eval() for n in ("resnet8", "resnet14"))
    network = reused(student, teacher).eval()
    network.size = (4, 4)
    _, features = network(torch.randn(2, 3, 32, 32))
    assert features["projected"].shape == (2, 64, 4, 4)
    assert features["pooled_feat"].shape == (2, 64)
