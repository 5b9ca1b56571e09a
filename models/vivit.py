"""ViViT: a video vision transformer (Arnab et al. 2021, arXiv 2103.15691).

A clip is cut into tubelets of 2 frames by 16×16 pixels, each becomes a token, and tokens attend to one another:
all to all (`joint`, the paper's model 1), or with attention factorised over space and time (models 2 to 4).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.vit import (
    EPS,
    Attention,
    Block,
    Scale,
    Transformer,
    TubeletEmbedding,
    drop_rates,
    find_scale,
    init_head,
    init_linear,
)

TUBELETS = {"tubelet": 2, "uniform": 1}  # embedding -> frames of a token
ATTENTIONS = ("joint", "factorised_encoder", "factorised_self_attention", "factorised_dot_product")
GELU = "tanh"  # as in JAX, where the published weights come from


class FactorisedBlock(Block):
    """Attention over time, then over space, each with weights of its own: the paper's model 3."""

    def __init__(self, scale: Scale, steps: int, *, drop_path: float) -> None:
        super().__init__(scale, drop_path=drop_path, gelu=GELU)
        self.steps = steps
        self.norm_time = nn.LayerNorm(scale.width, EPS)
        self.attn_time = Attention(scale.width, scale.heads)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T·S, D] → [B, T·S, D], for T time steps of S patches."""
        B, shape = len(x), (self.steps, -1)
        x = x.unflatten(1, shape).transpose(1, 2).flatten(0, 1)  # [B·S, T, D]
        x = x + self._drop(self.attn_time(self.norm_time(x)), B)
        x = x.unflatten(0, (B, -1)).transpose(1, 2).flatten(0, 1)  # [B·T, S, D]
        x = x + self._drop(self.attn(self.norm1(x)), B)
        x = x.unflatten(0, (B, -1)).flatten(1, 2)
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x

    def _drop(self, x: Tensor, samples: int) -> Tensor:
        """Stochastic depth drops a branch for a whole sample, not for some of its frames."""
        dropped: Tensor = self.drop_path(x.unflatten(0, (samples, -1)))
        return dropped.flatten(0, 1)


class FactorisedAttention(Attention):
    """Half of the heads attend over time, the others over space: the paper's model 4. No weights are added."""

    def __init__(self, width: int, heads: int, steps: int) -> None:
        super().__init__(width, heads)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        """[B, T·S, D] → [B, T·S, D], for T time steps of S patches."""
        qkv = self.project(x).unflatten(1, (self.steps, -1))  # [B, T, S, 3, heads, d]
        half = self.heads // 2
        over_time = _attend(qkv[..., :half, :].transpose(1, 2)).transpose(1, 2)
        over_space = _attend(qkv[..., half:, :])
        x = torch.cat([over_time, over_space], dim=-2)  # [B, T, S, heads, d]
        x = self.proj(x.flatten(3).flatten(1, 2))
        return x


def _attend(qkv: Tensor) -> Tensor:
    """[B, M, N, 3, heads, d] → [B, M, N, heads, d]: attention among N tokens, for each of M by itself."""
    q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).flatten(1, 2).unbind()  # each [B·M, heads, N, d]
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(0, qkv.shape[:2])


class TemporalEncoder(nn.Module):
    """The second transformer of a factorised encoder (the paper's model 2): one token for each time step."""

    def __init__(self, scale: Scale, steps: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, scale.width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + steps, scale.width))
        self.blocks = nn.Sequential(*(Block(scale, gelu=GELU) for _ in range(scale.depth)))
        self.norm = nn.LayerNorm(scale.width, EPS)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] → [B, D]."""
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        x = self.norm(self.blocks(x)[:, 0])
        return x


class ViViT(Transformer):
    """86,540,546 parameters for the base scale with joint attention, T = 16, 112×112 pixels and 2 classes.

    `attention`: one of ATTENTIONS; the factorised encoder has `temporal_depth` blocks over time after those over
    space. `embedding`: "tubelet" of two frames, or "uniform" sampling, where every frame has its own patches.
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
        attention: str = "joint",
        embedding: str = "tubelet",
        drop_path: float = 0.0,
        temporal_depth: int = 4,
        inflation: str = "central_frame",
    ) -> None:
        if attention not in ATTENTIONS:
            raise ValueError(f"vivit has no attention {attention!r}; there are {', '.join(ATTENTIONS)}")
        if embedding not in TUBELETS:
            raise ValueError(f"vivit has no embedding {embedding!r}; there are {', '.join(TUBELETS)}")
        tubelet = TUBELETS[embedding]
        super().__init__(
            num_frames=num_frames, size=size, in_channels=in_channels, tubelet=tubelet, inflation=inflation
        )
        chosen = find_scale(scale)
        self.patch_embed = TubeletEmbedding(chosen.width, in_channels, tubelet)
        self._make_encoder(chosen, attention, drop_path, temporal_depth)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(chosen.width, num_classes)
        self._init_weights()

    def _make_encoder(self, scale: Scale, attention: str, drop_path: float, temporal_depth: int) -> None:
        T, H, W = self.grid
        with_class = attention in ("joint", "factorised_encoder")
        positions = H * W if attention == "factorised_encoder" else T * H * W
        self.cls_token = nn.Parameter(torch.zeros(1, 1, scale.width)) if with_class else None
        self.pos_embed = nn.Parameter(torch.empty(1, positions + with_class, scale.width))
        blocks: list[Block] = []
        for rate in drop_rates(scale.depth, drop_path):
            if attention == "factorised_self_attention":
                blocks.append(FactorisedBlock(scale, T, drop_path=rate))
            else:
                blocks.append(Block(scale, drop_path=rate, gelu=GELU))
            if attention == "factorised_dot_product":
                blocks[-1].attn = FactorisedAttention(scale.width, scale.heads, T)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(scale.width, EPS)
        self.temporal: TemporalEncoder | None = None
        if attention == "factorised_encoder":
            self.temporal = TemporalEncoder(scale._replace(depth=temporal_depth), T)

    def _init_weights(self) -> None:
        self.apply(init_linear)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        init_head(self.head)
        for block in self.blocks:
            if isinstance(block, FactorisedBlock):  # starts as the model of pictures that its other weights may be
                nn.init.zeros_(block.attn_time.proj.weight)

    def tokens(self, clips: Tensor) -> Tensor:
        """[B, T, C, H, W] → the encoder's tokens [B, N, D]; [B·T', 1 + H'·W', D] with a factorised encoder."""
        x = self.patch_embed(self.split(clips))
        if self.temporal is not None:
            x = x.unflatten(1, (self.grid[0], -1)).flatten(0, 1)  # [B·T', H'·W', D]
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = self.norm(self.blocks(x + self.pos_embed))
        return x

    def forward(self, clips: Tensor) -> Tensor:
        """[B, T, C, H, W] → logits [B, K]."""
        x = self.tokens(clips)
        x = x.mean(1) if self.cls_token is None else x[:, 0]  # [B, D] or [B·T', D]
        if self.temporal is not None:
            x = self.temporal(x.unflatten(0, (len(clips), -1)))
        logits: Tensor = self.head(self.dropout(x))
        return logits

    def stages(self) -> Sequence[nn.Module | nn.Parameter]:
        """The embedding with positions and [class] token, each block, the head with the norm before it."""
        tokens = [self.pos_embed] if self.cls_token is None else [self.cls_token, self.pos_embed]
        first = nn.ModuleList([self.patch_embed, nn.ParameterList(tokens)])
        if self.temporal is None:
            return [first, *self.blocks, nn.ModuleList([self.norm, self.head])]
        between = nn.ParameterList([self.temporal.cls_token, self.temporal.pos_embed])
        spatial = [first, *self.blocks, nn.ModuleList([self.norm, between])]
        return [*spatial, *self.temporal.blocks, nn.ModuleList([self.temporal.norm, self.head])]
