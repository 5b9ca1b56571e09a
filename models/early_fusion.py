"""Early fusion: all frames of a clip at once in the first convolution (Karpathy et al. 2014, CVPR, "Large-scale
Video Classification with Convolutional Neural Networks").

The clip is one picture with T·C channels, so the first layer sees motion as differences between channels;
everything after it is an ordinary ResNet-18. Cheap: one picture's cost for a whole clip.
"""

from torch import Tensor, nn

from models.backbones import ResNet18, mlp


class EarlyFusion(nn.Module):
    """ResNet-18 over T·C channels, then an MLP 512-512-128-K: 11,646,210 parameters for T = 16, C = 3, K = 2."""

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
        if min(size) <= 32:  # the trunk divides by 32, and batch norm needs more than one pixel of a clip
            raise ValueError(f"early_fusion needs frames of more than 32 pixels, got {size[0]}×{size[1]}")
        self.num_frames = num_frames
        self.trunk = ResNet18(num_frames * in_channels)
        self.head = mlp(ResNet18.features, 512, 128, num_classes, dropout=dropout)

    def forward(self, clips: Tensor) -> Tensor:
        """[B, T, C, H, W] → logits [B, K]."""
        if clips.shape[1] != self.num_frames:
            raise ValueError(f"early_fusion was made for {self.num_frames} frames, got {clips.shape[1]}")
        x = clips.flatten(1, 2)  # [B, T·C, H, W]
        logits: Tensor = self.head(self.trunk(x))
        return logits
