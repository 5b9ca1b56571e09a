"""What the families that look at pictures have in common: a backbone `trunk`, and something on top of it."""

import itertools
from collections import OrderedDict

from torch import Tensor, nn

from models.backbones import get_backbone
from models.family import Family, UnfitClips
from models.origin import Origin


class FrameFamily(Family):
    """A 2D backbone over pictures with `channels` channels; a subclass adds what comes after it.

    Raises `UnfitClips` for frames that the trunk, which divides by 32, would leave less than two pixels of.
    """

    def __init__(self, channels: int, size: tuple[int, int], backbone: str) -> None:
        super().__init__()
        if min(size) <= 32:  # batch norm needs more than one pixel of a clip
            raise UnfitClips(f"{backbone} needs frames of more than 32 pixels, got {size[0]}×{size[1]}")
        self.channels = channels
        self.trunk = get_backbone(backbone, channels)

    def stages(self) -> list[nn.Module]:
        """The trunk's stages, then the family's own modules in the order of their making."""
        return [*self.trunk.stages(), *(child for child in self.children() if child is not self.trunk)]

    def features(self, clips: Tensor) -> Tensor:
        """Clips [B, T, C, H, W] → features of every frame by itself [B, T, width]."""
        pictures = clips.flatten(0, 1)  # [B·T, C, H, W]
        features: Tensor = self.trunk(pictures)
        return features.view(*clips.shape[:2], -1)

    def mend(self, name: str, foreign: Tensor, origin: Origin | None) -> Tensor | None:  # noqa: ARG002
        """First convolutions for another number of channels."""
        return fit_channels(foreign, self.channels) if name == f"trunk.{self.trunk.stem}" else None


def fit_channels(kernel: Tensor, channels: int) -> Tensor:
    """A convolution's weights [O, C', …] for another number of channels, of the same scale of output.

    A multiple of C' repeats them in turn; any other number gets their mean in every channel. Either way they are
    scaled so that a grey picture is answered as before.
    """
    theirs = kernel.shape[1]
    turns = -(-channels // theirs)
    fitted = kernel if channels % theirs == 0 else kernel.mean(1, keepdim=True).expand_as(kernel)
    return fitted.repeat(1, turns, *[1] * (kernel.ndim - 2))[:, :channels] * (theirs / channels)


def mlp(*widths: int, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers with ReLU between them, and dropout before the last; their names are the same without it."""
    layers: dict[str, nn.Module] = {}
    for number, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
        if number:
            layers[str(2 * number - 1)] = nn.ReLU()
        if number == len(widths) - 2:
            layers["dropout"] = nn.Dropout(dropout)
        layers[str(2 * number)] = nn.Linear(width_in, width_out)
    return nn.Sequential(OrderedDict(layers))


def check_length(clips: Tensor, num_frames: int, family: str) -> None:
    """Raises `ValueError` where clips [B, T, …] are of another length than the model was made for."""
    if clips.shape[1] != num_frames:
        raise ValueError(f"{family} was made for {num_frames} frames, got {clips.shape[1]}")
