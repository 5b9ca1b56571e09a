"""CNN-Mamba: Mamba blocks read the features of the frames in order (Gu & Dao 2023, arXiv 2312.00752, "Mamba:
Linear-Time Sequence Modeling with Selective State Spaces"). Parameter names of the blocks are mamba-ssm's."""

from torch import Tensor, nn

from models.frames import FrameFamily, mlp
from models.mamba import MambaLayer


class CnnMamba(FrameFamily):
    """ResNet-18, three Mamba layers of the trunk's width, RMSNorm, mean over time, MLP 512-256-K: 16,394,562
    parameters for C = 3, K = 2."""

    source = "Gu & Dao 2023, arXiv 2312.00752"

    def __init__(
        self,
        *,
        num_classes: int,
        num_frames: int,  # noqa: ARG002 - any length will do
        size: tuple[int, int],
        in_channels: int = 3,
        dropout: float = 0.0,
        backbone: str = "resnet18",
        depth: int = 3,
    ) -> None:
        if depth < 1:
            raise ValueError(f"cnn_mamba needs a depth of at least 1, got {depth}")
        super().__init__(in_channels, size, backbone)
        width = self.trunk.width
        self.layers = nn.ModuleList(MambaLayer(width) for _ in range(depth))
        self.norm_f = nn.RMSNorm(width, eps=1e-5)
        self.head = mlp(width, 256, num_classes, dropout=dropout)

    def stages(self) -> list[nn.Module]:
        """The trunk's stages, the Mamba layers, then norm and head."""
        return [*self.trunk.stages(), *self.layers, nn.ModuleList([self.norm_f, self.head])]

    def undecayed(self) -> set[nn.Parameter]:
        """As everywhere, and A and D of the state spaces."""
        return super().undecayed().union(*(layer.mixer.undecayed() for layer in self._layers()))

    def _layers(self) -> list[MambaLayer]:
        return [layer for layer in self.layers if isinstance(layer, MambaLayer)]

    def forward(self, clips: Tensor) -> Tensor:
        """[B, T, C, H, W] → logits [B, K]."""
        x = self.features(clips)  # [B, T, 512]
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm_f(x).mean(1))
        return logits
