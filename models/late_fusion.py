"""Late fusion: features of single frames are joined, and one verdict is made of them (Karpathy et al. 2014, CVPR,
"Large-scale Video Classification with Convolutional Neural Networks").

The mean forgets the order of the frames; `fusion="concat"` keeps it, for one length of clip.
"""

from torch import Tensor

from models.frames import FrameFamily, check_length, mlp


class LateFusion(FrameFamily):
    """ResNet-18 on each frame, features fused, then an MLP 512-512-128-K: 11,505,090 parameters for C = 3, K = 2;
    15,437,250 with "concat" of 16 frames."""

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
        fusion: str = "mean",
    ) -> None:
        super().__init__(in_channels, size, backbone)
        if fusion not in ("mean", "concat"):
            raise ValueError(f"late_fusion: fusion is 'mean' or 'concat', not {fusion!r}")
        self.num_frames, self.fusion = num_frames, fusion
        fused = self.trunk.width * (num_frames if fusion == "concat" else 1)
        self.head = mlp(fused, 512, 128, num_classes, dropout=dropout)

    def forward(self, clips: Tensor) -> Tensor:
        """[B, T, C, H, W] → logits [B, K]."""
        features = self.features(clips)  # [B, T, F]
        if self.fusion == "concat":
            check_length(clips, self.num_frames, "late_fusion with concat")
            features = features.flatten(1)  # [B, T·F]
        else:
            features = features.mean(1)
        logits: Tensor = self.head(features)
        return logits
