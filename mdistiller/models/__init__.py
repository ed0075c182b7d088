"""Networks, their registries, and how teachers are loaded.

Every network maps images [B, 3, H, W] to ``(logits, features)``; ``features`` is a dict of
``feats`` (maps from the stem to the last stage), ``preact_feats`` (the same before the ReLU;
the MobileNetV2 have none) and ``pooled_feat`` (the classifier's input).
"""

from .checkpoints import load_network, load_weights, read_checkpoint, read_state_dict
from .cifar import cifar_model_dict, tiny_imagenet_model_dict
from .foreign import Foreign, name_of
from .imagenet import imagenet_model_dict
from .teachers import PUBLISHED_TOP1

__all__ = [
    "PUBLISHED_TOP1",
    "Foreign",
    "cifar_model_dict",
    "imagenet_model_dict",
    "load_network",
    "load_weights",
    "name_of",
    "read_checkpoint",
    "read_state_dict",
    "tiny_imagenet_model_dict",
]
