"""Early fusion: all frames of a clip at once in the first convolution (Karpathy et al. 2014, CVPR, "Large-scale
Video Classification with Convolutional Neural Networks").

The clip is one picture with T·C channels, so the first layer sees motion as differences between channels;
everything after it is an ordinary ResNet-18. Cheap: one picture's cost for a whole clip.
"""

from torch import Tensor

from models.frames import FrameFamily, check_length, fit_channels, mlp
from models.origin import Origin


class EarlyFusion(FrameFamily):
    """ResNet-18 over T·C channels, then an MLP 512-512-128-K: 11,646,210 parameters for T = 16, C = 3, K = 2."""

    source = "Karpathy et al. 2014, CVPR"

    def __init__(
        self,
        *,
        num_classes: int,
        num_frames: int,
        size: tuple[int, int],
        in_channels: int = 3,
        dropout: float = 0.0,
        backbone: str = "resnet18",
    ) -> None:
        super().__init__(num_frames * in_channels, size, backbone)
        self.num_frames = num_frames
        self.head = mlp(self.trunk.width, 512, 128, num_classes, dropout=dropout)

    def forward(self, clips: Tensor) -> Tensor:
        """[B, T, C, H, W] → logits [B, K]."""
        check_length(clips, self.num_frames, "early_fusion")
        # [B, T·C, H, W] in one copy, channels last in memory: `flatten` makes one, and the convolution another.
        x = clips.permute(0, 3, 4, 1, 2).flatten(3).permute(0, 3, 1, 2)
        logits: Tensor = self.head(self.trunk(x))
        return logits

    def mend(self, name: str, foreign: Tensor, origin: Origin | None) -> Tensor | None:
        """The first convolution of a picture network, inflated: a clip that stands still is answered as its frame
        was. That of another length of clip cannot be mended."""
        of_clips = origin is not None and origin.family == "early_fusion"  # three grey frames look like RGB
        if name != f"trunk.{self.trunk.stem}" or of_clips or foreign.shape[1] != 3:
            return None
        frame = fit_channels(foreign, self.channels // self.num_frames)
        return frame.repeat(1, self.num_frames, 1, 1) / self.num_frames
