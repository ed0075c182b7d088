"""ImageNet's residual networks with a stem for small images: 3x3, stride 1, no pooling.

They are the networks of arXiv:1512.03385, table 1, not the pre-activation ones that are also
called "v2".
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mdistiller.models._residual import BasicBlock, Bottleneck, ResidualNetwork, conv3x3


class ResNet(ResidualNetwork):
    """A residual network with four stages.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        num_blocks: number of blocks of each stage.
        num_classes: number of logits.
    """

    skip_name = "shortcut"
    head_name = "linear"

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        num_blocks: Sequence[int],
        num_classes: int = 100,
    ) -> None:
        super().__init__(block, conv3x3(3, 64), num_blocks, (64, 128, 256, 512), num_classes)

    def get_stage_channels(self) -> list[int]:
        """Channels of the four stages of a bottleneck network, whatever the blocks are.

        mdistiller answers the same for basic blocks, whose stages have a quarter of that.
        """
        return [256, 512, 1024, 2048]

    def encode(self, x: Tensor, idx: int) -> Tensor:
        """Apply a single stage, -1 (the last) to -4, to a map from before the stage's ReLU.

        Returns:
            The stage's map before its final ReLU.
        """
        if not -self.num_stages <= idx <= -1:
            raise ValueError(f"idx must be from {-self.num_stages} to -1, got {idx}")
        return self.stages[idx](x)


def ResNet18(num_classes: int = 100) -> ResNet:
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes)


def ResNet34(num_classes: int = 100) -> ResNet:
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes)


def ResNet50(num_classes: int = 100) -> ResNet:
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes)


def ResNet101(num_classes: int = 100) -> ResNet:
    return ResNet(Bottleneck, (3, 4, 23, 3), num_classes)


def ResNet152(num_classes: int = 100) -> ResNet:
    return ResNet(Bottleneck, (3, 8, 36, 3), num_classes)
