"""What a network for single pictures is to the families that are built on it."""

from typing import ClassVar

from torch import nn


class Backbone(nn.Module):
    """[B, C, H, W] → features [B, width]."""

    width: ClassVar[int]
    stem: ClassVar[str]  # the parameter that meets the pixels

    def stages(self) -> list[nn.Module]:
        """The network from input to output, each parameter in exactly one stage."""
        raise NotImplementedError
