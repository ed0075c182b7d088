"""Networks for ImageNet, by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from mdistiller.registry import Registry

from .mobilenetv1 import MobileNetV1
from .resnet import resnet18, resnet34, resnet50, resnet101

# Name -> constructor that takes pretrained and num_classes.
imagenet_model_dict: dict[str, Callable[..., nn.Module]] = Registry("ImageNet model")
imagenet_model_dict["ResNet18"] = resnet18
imagenet_model_dict["ResNet34"] = resnet34
imagenet_model_dict["ResNet50"] = resnet50
imagenet_model_dict["ResNet101"] = resnet101
imagenet_model_dict["MobileNetV1"] = MobileNetV1
