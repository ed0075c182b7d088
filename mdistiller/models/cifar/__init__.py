"""Networks for small images, by name, with the checkpoints that serve as teachers."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from mdistiller.registry import Registry

from .convnet import convnet12, convnet48
from .mobilenetv2 import mobile_half
from .mv2_tinyimagenet import mobilenetv2_tinyimagenet
from .resnet import (
    resnet8,
    resnet8x4,
    resnet14,
    resnet20,
    resnet32,
    resnet32x4,
    resnet44,
    resnet56,
    resnet110,
)
from .resnetv2 import ResNet18, ResNet34, ResNet50, ResNet101, ResNet152
from .ShuffleNetv1 import ShuffleV1
from .ShuffleNetv2 import ShuffleV2
from .vgg import vgg8_bn, vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn
from .wrn import wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2

_TEACHERS = {
    "resnet56": resnet56,
    "resnet110": resnet110,
    "resnet32x4": resnet32x4,
    "ResNet50": ResNet50,
    "wrn_40_2": wrn_40_2,
    "vgg13": vgg13_bn,
}
_STUDENTS = {
    "resnet8": resnet8,
    "resnet14": resnet14,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet8x4": resnet8x4,
    "ResNet18": ResNet18,
    "wrn_16_1": wrn_16_1,
    "wrn_16_2": wrn_16_2,
    "wrn_40_1": wrn_40_1,
    "vgg8": vgg8_bn,
    "vgg11": vgg11_bn,
    "vgg16": vgg16_bn,
    "vgg19": vgg19_bn,
    "MobileNetV2": mobile_half,
    "ShuffleV1": ShuffleV1,
    "ShuffleV2": ShuffleV2,
    "ResNet34": ResNet34,
}


def _cifar_models() -> Registry:
    models = Registry("CIFAR model")
    for name, constructor in _TEACHERS.items():
        models[name] = (constructor, _checkpoint(name))
    for name, constructor in _STUDENTS.items():
        models[name] = (constructor, None)
    # A teacher without a published checkpoint: configs/cifar100/teachers trains it.
    models["ResNet101"] = (ResNet101, _checkpoint("ResNet101"))
    models["ResNet152"] = (ResNet152, None)
    models["convnet12"] = (convnet12, None)
    models["convnet48"] = (convnet48, None)
    return models


def _checkpoint(name: str) -> str:
    return f"download_ckpts/cifar_teachers/{name}_vanilla/ckpt_epoch_240.pth"


def _tiny_imagenet_models() -> Registry:
    models = Registry("Tiny ImageNet model")
    models["ResNet18"] = (
        ResNet18,
        "download_ckpts/tiny_imagenet_teachers/ResNet18_vanilla/ti_res18",
    )
    models["MobileNetV2"] = (mobilenetv2_tinyimagenet, None)
    models["ShuffleV2"] = (ShuffleV2, None)
    for name, (constructor, _) in cifar_model_dict.items():
        if name not in models:
            models[name] = (constructor, None)
    return models


Entry = tuple[Callable[..., nn.Module], str | None]

# Name -> (constructor that takes num_classes, checkpoint relative to the repository or None).
cifar_model_dict: dict[str, Entry] = _cifar_models()
tiny_imagenet_model_dict: dict[str, Entry] = _tiny_imagenet_models()
