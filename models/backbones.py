"""Networks for single pictures, shared by the 2D families: ResNet, VGG and EfficientNet-Lite without their
classifiers, averaged over the picture. Parameter names of the first two are torchvision's, so that its checkpoints
fit: conv1, layer1.0.conv1, …"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from models.backbone import Backbone
from models.efficientnet import EfficientNetLite0


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al. 2016, arXiv 1512.03385, figure 2)."""

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(channels_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] → [B, C, H/stride, W/stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x))
        return (x + shortcut).relu()


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 and a shortcut (ibid., figure 5); the stride sits in the 3×3, as in torchvision ("v1.5")."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        channels_out = channels * self.expansion
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.downsample = _shortcut(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] → [B, 4·C, H/stride, W/stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        x = self.bn3(self.conv3(x))
        return (x + shortcut).relu()


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels_in == channels_out:
        return None
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out))


class ResNet(Backbone):
    """Four layers of residual blocks (He et al. 2016); the subclasses say which and how many."""

    stem = "conv1.weight"
    block: ClassVar[type[BasicBlock | Bottleneck]]
    depths: ClassVar[tuple[int, int, int, int]]
    channels: ClassVar[int] = 64  # after the first convolution; twice as many from layer to layer

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        first, expansion = self.channels, self.block.expansion
        self.conv1 = nn.Conv2d(in_channels, first, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._layer(first, first, self.depths[0], stride=1)
        self.layer2 = self._layer(first * expansion, 2 * first, self.depths[1], stride=2)
        self.layer3 = self._layer(2 * first * expansion, 4 * first, self.depths[2], stride=2)
        self.layer4 = self._layer(4 * first * expansion, 8 * first, self.depths[3], stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _layer(self, channels_in: int, channels: int, depth: int, stride: int) -> nn.Sequential:
        first = self.block(channels_in, channels, stride)
        rest = (self.block(channels * self.block.expansion, channels, 1) for _ in range(depth - 1))
        return nn.Sequential(first, *rest)

    def stages(self) -> list[nn.Module]:
        """The stem, then the four layers."""
        return [nn.ModuleList([self.conv1, self.bn1]), self.layer1, self.layer2, self.layer3, self.layer4]

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → features [B, width], averaged over the picture."""
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3))


class ResNet18(ResNet):
    """11,176,512 parameters with 3 input channels."""

    width, block, depths = 512, BasicBlock, (2, 2, 2, 2)


class ResNet18Half(ResNet18):
    """Half as wide, for few videos: 2,798,880 parameters with 3 input channels."""

    width, channels = 256, 32


class ResNet18Quarter(ResNet18):
    """A quarter as wide: 702,096 parameters with 3 input channels."""

    width, channels = 128, 16


class ResNet34(ResNet):
    """21,284,672 parameters with 3 input channels."""

    width, block, depths = 512, BasicBlock, (3, 4, 6, 3)


class ResNet50(ResNet):
    """23,508,032 parameters with 3 input channels."""

    width, block, depths = 2048, Bottleneck, (3, 4, 6, 3)


class VGG(Backbone):
    """Stacks of 3×3 convolutions with batch norm between max-pools (Simonyan & Zisserman 2015, arXiv 1409.1556,
    table 1; the fully connected layers left out); the subclasses say how many in each of the five stacks."""

    width = 512
    stem = "features.0.weight"
    depths: ClassVar[tuple[int, int, int, int, int]]

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels_in = in_channels
        for channels, depth in zip((64, 128, 256, 512, 512), self.depths, strict=True):
            for _ in range(depth):
                layers += [nn.Conv2d(channels_in, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
                channels_in = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def stages(self) -> list[nn.Module]:
        """The five stacks."""
        stacks: list[nn.Module] = []
        start = 0
        for number, layer in enumerate(self.features):
            if isinstance(layer, nn.MaxPool2d):
                stacks.append(self.features[start:number])
                start = number + 1
        return stacks

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → features [B, 512], averaged over the picture."""
        x = self.features(x)
        return x.mean((2, 3))


class VGG11(VGG):
    """9,225,984 parameters with 3 input channels."""

    depths = (1, 1, 2, 2, 2)


class VGG16(VGG):
    """14,723,136 parameters with 3 input channels."""

    depths = (2, 2, 3, 3, 3)


BACKBONES: dict[str, Callable[[int], Backbone]] = {
    "resnet18": ResNet18,
    "resnet18_half": ResNet18Half,
    "resnet18_quarter": ResNet18Quarter,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "vgg11": VGG11,
    "vgg16": VGG16,
    "efficientnet_lite0": EfficientNetLite0,
}


def find_backbone(state: Mapping[str, Tensor]) -> str | None:
    """The row of BACKBONES that a whole model's tensors below `trunk.` are of, with any number of input channels;
    None where none is."""
    trunk = {name.removeprefix("trunk."): t for name, t in state.items() if name.startswith("trunk.")}
    for row, backbone in BACKBONES.items():
        with torch.device("meta"):
            own = backbone(3)
        if _shapes(trunk, own.stem) == _shapes(own.state_dict(), own.stem):
            return row
    return None


def _shapes(state: Mapping[str, Tensor], stem: str) -> dict[str, torch.Size]:
    """The shapes of the weights by name, that of the first without its channels of input."""
    shapes = {name: tensor.shape for name, tensor in state.items() if name.endswith(".weight")}
    return {name: shape[:1] + shape[2:] if name == stem else shape for name, shape in shapes.items()}


def get_backbone(name: str, in_channels: int = 3) -> Backbone:
    """A backbone with fresh weights. Raises `ValueError` for a name that is not in BACKBONES."""
    if name not in BACKBONES:
        raise ValueError(
            f"option backbone={name}: no backbone is called {name!r}; there are {', '.join(BACKBONES)}"
        )
    return BACKBONES[name](in_channels)
