"""CNN-LSTM: a recurrent network reads the features of the frames in order (Donahue et al. 2015, arXiv 1411.4389,
"Long-term Recurrent Convolutional Networks")."""

from torch import Tensor, nn

from models.frames import FrameFamily, mlp
from models.precision import full_precision

FEATURES, HIDDEN = 256, 512


class CnnLstm(FrameFamily):
    """ResNet-18, Linear 512-256, two LSTM layers of 512, MLP 512-512-128-K on the last state: 15,314,626
    parameters for C = 3, K = 2. `bidirectional` reads the clip backwards, too, and joins both last states."""

    source = "Donahue et al. 2015, arXiv 1411.4389"

    def __init__(
        self,
        *,
        num_classes: int,
        num_frames: int,  # noqa: ARG002 - any length will do
        size: tuple[int, int],
        in_channels: int = 3,
        dropout: float = 0.0,
        backbone: str = "resnet18",
        bidirectional: bool = False,
    ) -> None:
        super().__init__(in_channels, size, backbone)
        self.project = nn.Linear(self.trunk.width, FEATURES)
        self.lstm = nn.LSTM(FEATURES, HIDDEN, num_layers=2, batch_first=True, bidirectional=bidirectional)
        self.directions = 2 if bidirectional else 1
        self.head = mlp(HIDDEN * self.directions, 512, 128, num_classes, dropout=dropout)

    def forward(self, clips: Tensor) -> Tensor:
        """[B, T, C, H, W] → logits [B, K]."""
        features = self.project(self.features(clips))  # [B, T, 256]
        with full_precision(features.device):  # gates saturate: float32, it costs little
            _, (last, _) = self.lstm(features.float())  # [layers · directions, B, 512]
        state = last[-self.directions :].transpose(0, 1).flatten(1)  # [B, directions · 512]
        logits: Tensor = self.head(state)
        return logits
