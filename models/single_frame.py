"""Single frame: the verdict on a clip is the mean verdict on its frames, each seen by itself (Karpathy et al.
2014, CVPR, "Large-scale Video Classification with Convolutional Neural Networks").

It knows no motion and no order: what it reaches is what the pictures alone give away.
"""

import math

from torch import Tensor

from models.frames import FrameFamily, mlp


class SingleFrame(FrameFamily):
    """ResNet-18 on each frame, then an MLP 512-512-128-K: 11,505,090 parameters for C = 3, K = 2."""

    source = "Karpathy et al. 2014, CVPR"

    def __init__(
        self,
        *,
        num_classes: int,
        num_frames: int,  # noqa: ARG002 - any length will do
        size: tuple[int, int],
        in_channels: int = 3,
        dropout: float = 0.0,
        backbone: str = "resnet18",
    ) -> None:
        super().__init__(in_channels, size, backbone)
        self.head = mlp(self.trunk.width, 512, 128, num_classes, dropout=dropout)

    def forward(self, clips: Tensor) -> Tensor:
        """[B, T, C, H, W] → logits [B, K]: the mean of the frames' logits in training; in evaluation the logarithm
        of their mean probability, so that softmax gives that mean back."""
        logits: Tensor = self.head(self.features(clips))  # [B, T, K]
        if self.training:
            return logits.mean(1)
        return logits.float().log_softmax(2).logsumexp(1) - math.log(clips.shape[1])
