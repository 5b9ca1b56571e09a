"""S3D: Inception in three dimensions, every k×k×k convolution split into 1×k×k over the picture and k×1×1 over
time (Xie et al. 2018, arXiv 1712.04851, "Rethinking Spatiotemporal Feature Learning"). Names are torchvision's."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.family import Family, UnfitClips
from models.frames import fit_channels, mlp
from models.origin import Origin


class Conv(nn.Conv3d):
    """A convolution whose padding in time is laid around two frames by hand.

    With bf16 on a CPU, oneDNN's gradient of a k×1×1 kernel reads memory that nobody wrote where T is 2 (seen with
    torch 2.13): weights went wrong, now and then to nan.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, T, H, W] → [B, C, T, H, W]."""
        if x.shape[2] != 2 or not self.padding[0]:
            return super().forward(x)
        ends, *space = (int(size) for size in self.padding)
        padded = functional.pad(x, (0, 0, 0, 0, ends, ends))
        return functional.conv3d(padded, self.weight, self.bias, self.stride, (0, *space))


class ConvNorm(nn.Sequential):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel: tuple[int, int, int] = (1, 1, 1),
        stride: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        time, height, width = kernel
        padding = (time // 2, height // 2, width // 2)
        super().__init__(
            Conv(channels_in, channels, kernel, stride, padding, bias=False),
            # momentum: torchvision's 1e-3 needs thousands of steps before evaluation means anything
            nn.BatchNorm3d(channels, eps=1e-3, momentum=0.1),
            nn.ReLU(),
        )


class Separable(nn.Sequential):
    """1×k×k, then k×1×1, each with batch norm and ReLU."""

    def __init__(self, channels_in: int, channels: int, size: int = 3, stride: int = 1) -> None:
        super().__init__(
            ConvNorm(channels_in, channels, (1, size, size), (1, stride, stride)),
            ConvNorm(channels, channels, (size, 1, 1), (stride, 1, 1)),
        )


class Inception(nn.Module):
    """Four branches side by side: 1×1, two separable ones behind a 1×1, and a pooled one (figure 6b)."""

    def __init__(self, channels_in: int, *widths: int) -> None:
        super().__init__()
        one, two_in, two, three_in, three, four = widths
        self.branch0 = ConvNorm(channels_in, one)
        self.branch1 = nn.Sequential(ConvNorm(channels_in, two_in), Separable(two_in, two))
        self.branch2 = nn.Sequential(ConvNorm(channels_in, three_in), Separable(three_in, three))
        self.branch3 = nn.Sequential(nn.MaxPool3d(3, stride=1, padding=1), ConvNorm(channels_in, four))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, T, H, W] → [B, C, T, H, W]."""
        return torch.cat([self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)], 1)


class S3DTrunk(nn.Module):
    """S3D without its classifier: 7,910,048 parameters with 3 input channels."""

    width = 1024
    stem = "features.0.0.0.weight"

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            Separable(in_channels, 64, 7, stride=2),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            ConvNorm(64, 64),
            Separable(64, 192),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            Inception(192, 64, 96, 128, 16, 32, 32),
            Inception(256, 128, 128, 192, 32, 96, 64),
            nn.MaxPool3d(3, 2, 1),
            Inception(480, 192, 96, 208, 16, 48, 64),
            Inception(512, 160, 112, 224, 24, 64, 64),
            Inception(512, 128, 128, 256, 24, 64, 64),
            Inception(512, 112, 144, 288, 32, 64, 64),
            Inception(528, 256, 160, 320, 32, 128, 128),
            nn.MaxPool3d(2, 2),
            Inception(832, 256, 160, 320, 32, 128, 128),
            Inception(832, 384, 192, 384, 48, 128, 128),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] → features [B, 1024], averaged over time and picture.

        torchvision pools over 2×7×7, which is the same for 16 frames of 224 pixels and fails for smaller ones.
        """
        x = self.features(x)
        return x.mean((2, 3, 4))


class S3D(Family):
    """S3D trunk, then an MLP 1024-1024-128-K: 9,091,106 parameters for C = 3, K = 2."""

    source = "Xie et al. 2018, arXiv 1712.04851"

    def __init__(
        self,
        *,
        num_classes: int,
        num_frames: int,
        size: tuple[int, int],
        in_channels: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        width, height = size
        cells = _cells(num_frames, 2) * _cells(width, 4) * _cells(height, 4)
        if cells < 2:  # batch norm needs more than one of a clip
            raise UnfitClips(
                f"s3d needs at least 5 frames of 17 pixels, and either 13 frames or a side of 49 pixels; "
                f"got {num_frames} frames of {width}×{height}"
            )
        self.in_channels = in_channels
        self.trunk = S3DTrunk(in_channels)
        self.head = mlp(S3DTrunk.width, 1024, 128, num_classes, dropout=dropout)

    def stages(self) -> list[nn.Module]:
        """The trunk's layers that learn, then the head."""
        return [*(layer for layer in self.trunk.features if not isinstance(layer, nn.MaxPool3d)), self.head]

    def mend(self, name: str, foreign: Tensor, origin: Origin | None) -> Tensor | None:  # noqa: ARG002
        """The first convolution for another number of channels."""
        return fit_channels(foreign, self.in_channels) if name == f"trunk.{S3DTrunk.stem}" else None

    def forward(self, clips: Tensor) -> Tensor:
        """[B, T, C, H, W] → logits [B, K]."""
        logits: Tensor = self.head(self.trunk(clips.transpose(1, 2)))  # [B, C, T, H, W]
        return logits


def _cells(length: int, halvings: int) -> int:
    """What the trunk leaves of a dimension: it halves it so often, rounding up, and then once rounding down."""
    for _ in range(halvings):
        length = -(-length // 2)
    return length // 2
