"""EfficientNet-Lite0: inverted bottlenecks (Tan & Le 2019, arXiv 1905.11946) without squeeze-and-excitation, and
with ReLU6 instead of swish, so that small devices run it. Without its classifier, averaged over the picture."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from models.backbone import Backbone

EPS = 1e-3  # of every batch norm, as in TensorFlow, where the published weights come from


class Block(nn.Module):
    """1×1 convolution to `expand` times the channels, a k×k one a channel, 1×1 to fewer (Sandler et al. 2018,
    arXiv 1801.04381); a shortcut where the shape stays."""

    def __init__(self, channels_in: int, channels: int, *, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = channels_in * expand
        if expand > 1:
            self.expand_conv = nn.Conv2d(channels_in, wide, 1, bias=False)
            self.bn0 = nn.BatchNorm2d(wide, EPS)
        self.depthwise_conv = nn.Conv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self.bn1 = nn.BatchNorm2d(wide, EPS)
        self.project_conv = nn.Conv2d(wide, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, EPS)
        self.expands, self.has_shortcut = expand > 1, stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] → [B, C, ⌈H/stride⌉, ⌈W/stride⌉]."""
        shortcut = x
        if self.expands:
            x = functional.relu6(self.bn0(self.expand_conv(x)))
        x = functional.relu6(self.bn1(convolve(self.depthwise_conv, x)))
        x = self.bn2(self.project_conv(x))
        return x + shortcut if self.has_shortcut else x


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution with TensorFlow's padding "SAME": of an odd number, right and bottom get the larger half."""
    height, width = (
        max((-(-side // stride) - 1) * stride + kernel - side, 0)
        for side, stride, kernel in zip(x.shape[2:], conv.stride, conv.kernel_size, strict=True)
    )
    padded = functional.pad(x, [width // 2, width - width // 2, height // 2, height - height // 2])
    found: Tensor = conv(padded)
    return found


class EfficientNetLite0(Backbone):
    """3,371,008 parameters with 3 input channels."""

    width = 1280
    stem = "conv_stem.weight"
    kernels = (3, 3, 5, 3, 5, 5, 3)  # of the seven stages
    strides = (1, 2, 2, 2, 1, 2, 1)
    depths = (1, 2, 2, 3, 3, 4, 1)
    channels = (32, 16, 24, 40, 80, 112, 192, 320)

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(in_channels, self.channels[0], 3, stride=2, bias=False)
        self.bn0 = nn.BatchNorm2d(self.channels[0], EPS)
        self.blocks = nn.ModuleList()
        shapes = zip(pairwise(self.channels), self.kernels, self.strides, self.depths, strict=True)
        for (channels_in, channels), kernel, stride, depth in shapes:
            expand = 6 if len(self.blocks) else 1
            self.blocks.append(Block(channels_in, channels, kernel=kernel, stride=stride, expand=expand))
            for _ in range(depth - 1):
                self.blocks.append(Block(channels, channels, kernel=kernel, stride=1, expand=expand))
        self.conv_head = nn.Conv2d(self.channels[-1], self.width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(self.width, EPS)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self) -> list[nn.Module]:
        """The stem, the seven stages of blocks, the last convolution."""
        ends = [sum(self.depths[:number]) for number in range(len(self.depths) + 1)]
        groups = [nn.ModuleList(self.blocks[first:end]) for first, end in pairwise(ends)]
        return [nn.ModuleList([self.conv_stem, self.bn0]), *groups, nn.ModuleList([self.conv_head, self.bn1])]

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → features [B, 1280], averaged over the picture."""
        x = functional.relu6(self.bn0(convolve(self.conv_stem, x)))
        for block in self.blocks:
            x = block(x)
        x = functional.relu6(self.bn1(self.conv_head(x)))
        return x.mean((2, 3))
