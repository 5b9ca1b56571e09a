"""VideoMAE: a video transformer that learns without labels (Tong et al. 2022, arXiv 2203.12602).

`VideoMAE` classifies. `VideoMAEPretraining` sees a tenth of a clip's tubelets and paints the others; the encoder
of one is the encoder of the other.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.vit import (
    EPS,
    Block,
    Scale,
    Transformer,
    TubeletEmbedding,
    drop_rates,
    find_scale,
    init_head,
    init_linear,
    join_tubelets,
)
from models.vit_mend import Grid, resize_positions

TUBELET = 2  # frames of a token
NATIVE_GRID = (8, 14, 14)  # 16 frames of 224×224 pixels: what the published weights were trained on
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def sincos_table(count: int, width: int) -> Tensor:
    """Sines and cosines of a token's number, [1, count, width] (Vaswani et al. 2017, arXiv 1706.03762)."""
    exponents = torch.arange(width, dtype=torch.float64) // 2 * 2 / width
    angles = torch.arange(count, dtype=torch.float64)[:, None] / 10000**exponents
    even = torch.arange(width) % 2 == 0
    return torch.where(even, angles.sin(), angles.cos()).float()[None]


def sincos_positions(grid: Grid, width: int) -> Tensor:
    """Fixed positions [1, N, width] of a grid of tubelets.

    They number the native grid's tokens. Another grid's are resized from these, not numbered anew: published
    weights then find each place where they learnt it.
    """
    T, H, W = NATIVE_GRID
    return resize_positions(sincos_table(T * H * W, width), NATIVE_GRID, grid)


def make_blocks(scale: Scale, drop_path: float = 0.0) -> nn.Sequential:
    """Blocks as VideoMAE has them: keys without bias."""
    rates = drop_rates(scale.depth, drop_path)
    return nn.Sequential(*(Block(scale, drop_path=rate, key_bias=False) for rate in rates))


class VideoMAE(Transformer):
    """ViT on tubelets, the mean of its tokens, a linear head: 86,228,738 parameters for the base scale, 2 classes.

    `inflation`: how a picture's patch kernel becomes a tubelet's, "central_frame" or "average".
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_frames: int,
        size: tuple[int, int],
        in_channels: int = 3,
        dropout: float = 0.0,
        scale: str = "base",
        drop_path: float = 0.0,
        inflation: str = "central_frame",
    ) -> None:
        super().__init__(
            num_frames=num_frames, size=size, in_channels=in_channels, tubelet=TUBELET, inflation=inflation
        )
        chosen = find_scale(scale)
        self.patch_embed = TubeletEmbedding(chosen.width, in_channels, TUBELET)
        self.register_buffer("positions", sincos_positions(self.grid, chosen.width), persistent=False)
        self.blocks = make_blocks(chosen, drop_path)
        self.fc_norm = nn.LayerNorm(chosen.width, EPS)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(chosen.width, num_classes)
        self.apply(init_linear)
        init_head(self.head)

    def forward(self, clips: Tensor) -> Tensor:
        """[B, T, C, H, W] → logits [B, K]."""
        x = self.patch_embed(self.split(clips)) + self.get_buffer("positions")
        x = self.fc_norm(self.blocks(x).mean(1))  # [B, D]
        logits: Tensor = self.head(self.dropout(x))
        return logits

    def stages(self) -> Sequence[nn.Module | nn.Parameter]:
        """The embedding, each block, the head with the norm before it."""
        return [self.patch_embed, *self.blocks, nn.ModuleList([self.fc_norm, self.head])]
