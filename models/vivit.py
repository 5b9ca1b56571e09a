"""ViViT: a video vision transformer (Arnab et al. 2021, arXiv 2103.15691).

A clip is cut into tubelets of 2 frames by 16×16 pixels, each becomes a token, and tokens attend to one another:
all to all (`joint`, the paper's model 1), or with attention factorised over space and time (models 2 to 4).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.origin import Origin
from models.vit import (
    EPS,
    Attention,
    Block,
    Scale,
    Transformer,
    TubeletEmbedding,
    attend,
    drop_rates,
    find_scale,
    init_head,
    init_linear,
)
from models.vit_mend import mend_positions

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
        B, N, D = x.shape
        T, S = self.steps, N // self.steps
        over_time = self.norm_time(x).view(B, T, S, D).transpose(1, 2)
        over_time = self.attn_time(over_time.reshape(B * S, T, D)).view(B, S, T, D).transpose(1, 2)
        x = x + self.drop_path(over_time.reshape(B, N, D))
        over_space = self.attn(self.norm1(x).view(B * T, S, D))
        x = x + self.drop_path(over_space.view(B, N, D))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class FactorisedAttention(Attention):
    """Half of the heads attend over time, the others over space: the paper's model 4. No weights are added."""

    def __init__(self, width: int, heads: int, steps: int) -> None:
        super().__init__(width, heads)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        """[B, T·S, D] → [B, T·S, D], for T time steps of S patches."""
        B, N, D = x.shape
        qkv = self.project(x).view(B, self.steps, N // self.steps, 3, self.heads, -1)
        half = self.heads // 2
        over_time = _attend(qkv[..., :half, :].transpose(1, 2)).transpose(1, 2)
        over_space = _attend(qkv[..., half:, :])
        x = self.proj(torch.cat([over_time, over_space], dim=-2).view(B, N, D))
        return x


def _attend(qkv: Tensor) -> Tensor:
    """[B, M, N, 3, heads, d] → [B, M, N, heads, d]: attention among N tokens, for each of M by itself."""
    B, M, N, _, heads, d = qkv.shape
    q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).reshape(3, B * M, heads, N, d).unbind()
    return attend(q, k, v).transpose(1, 2).reshape(B, M, N, heads, d)


class TemporalEncoder(nn.Module):
    """The second transformer of a factorised encoder (the paper's model 2): one token for each time step."""

    def __init__(self, scale: Scale, steps: int, position_std: float) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, scale.width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + steps, scale.width))
        self.blocks = nn.Sequential(*(Block(scale, gelu=GELU) for _ in range(scale.depth)))
        self.norm = nn.LayerNorm(scale.width, EPS)
        nn.init.trunc_normal_(self.pos_embed, std=position_std)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] → [B, D]."""
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        x = self.norm(self.blocks(x)[:, 0])
        return x


class ViViT(Transformer):
    """ViT on tubelets that attends over space and time, a linear head: 86,540,546 parameters for the base scale
    with joint attention, T = 16, 112×112 pixels and 2 classes.

    `attention`: one of ATTENTIONS; the factorised encoder has `temporal_depth` blocks over time after those over
    space. `embedding`: "tubelet" of two frames, or "uniform" sampling, where every frame has its own patches.
    `inflation`: how a picture's patch kernel becomes a tubelet's, "central_frame" or "average".
    `position_std`: the deviation of the first positions. 0.02 is ViT's, tokens of normalised frames have 0.3 or
    so; a model without weights learns order far sooner when positions are as loud as that.
    """

    source = "Arnab et al. 2021, arXiv 2103.15691"

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
        position_std: float = 0.02,
    ) -> None:
        if attention not in ATTENTIONS:
            raise ValueError(f"vivit has no attention {attention!r}; there are {', '.join(ATTENTIONS)}")
        if embedding not in TUBELETS:
            raise ValueError(f"vivit has no embedding {embedding!r}; there are {', '.join(TUBELETS)}")
        if temporal_depth < 1:
            raise ValueError(f"vivit needs a temporal_depth of at least 1, got {temporal_depth}")
        if not position_std > 0:
            raise ValueError(f"vivit needs a position_std above 0, got {position_std}")
        tubelet = TUBELETS[embedding]
        super().__init__(
            num_frames=num_frames, size=size, in_channels=in_channels, tubelet=tubelet, inflation=inflation
        )
        chosen = find_scale(scale)
        self.patch_embed = TubeletEmbedding(chosen.width, in_channels, tubelet)
        self._make_encoder(chosen, attention, drop_path)
        self.temporal: TemporalEncoder | None = None
        if attention == "factorised_encoder":
            self.temporal = TemporalEncoder(chosen._replace(depth=temporal_depth), self.grid[0], position_std)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(chosen.width, num_classes)
        self._init_weights(position_std)

    def _make_encoder(self, scale: Scale, attention: str, drop_path: float) -> None:
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

    def _init_weights(self, position_std: float) -> None:
        self.apply(init_linear)
        nn.init.trunc_normal_(self.pos_embed, std=position_std)
        init_head(self.head)
        for block in self.blocks:
            if isinstance(block, FactorisedBlock):  # starts as the model of pictures that its other weights may be
                nn.init.zeros_(block.attn_time.proj.weight)

    def tokens(self, clips: Tensor) -> Tensor:
        """[B, T, C, H, W] → the encoder's tokens [B, N, D]; [B·T', 1 + H'·W', D] with a factorised encoder."""
        x = self.patch_embed(self.split(clips))
        if self.temporal is not None:
            x = x.view(x.shape[0] * self.grid[0], -1, x.shape[-1])  # [B·T', H'·W', D]
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        tokens: Tensor = self.norm(self.blocks(x + self.pos_embed))
        return tokens

    def forward(self, clips: Tensor) -> Tensor:
        """[B, T, C, H, W] → logits [B, K]."""
        x = self.tokens(clips)
        x = x.mean(1) if self.cls_token is None else x[:, 0]  # [B, D] or [B·T', D]
        if self.temporal is not None:
            x = self.temporal(x.view(clips.shape[0], self.grid[0], -1))
        logits: Tensor = self.head(self.dropout(x))
        return logits

    def mend(self, name: str, foreign: Tensor, origin: Origin | None) -> Tensor | None:
        """As every transformer, and the positions in time of a factorised encoder for another number of steps."""
        if name == "temporal.pos_embed" and foreign.ndim == 3:
            steps = foreign.shape[1] - 1
            return mend_positions(foreign, self.get_parameter(name).shape, (self.grid[0], 1, 1), (steps, 1, 1))
        return super().mend(name, foreign, origin)

    def stages(self) -> Sequence[nn.Module | nn.Parameter]:
        """The embedding with positions and [class] token, each block, the head with the norm before it."""
        tokens = [self.pos_embed] if self.cls_token is None else [self.cls_token, self.pos_embed]
        first = nn.ModuleList([self.patch_embed, nn.ParameterList(tokens)])
        if self.temporal is None:
            return [first, *self.blocks, nn.ModuleList([self.norm, self.head])]
        between = nn.ParameterList([self.temporal.cls_token, self.temporal.pos_embed])
        spatial = [first, *self.blocks, nn.ModuleList([self.norm, between])]
        return [*spatial, *self.temporal.blocks, nn.ModuleList([self.temporal.norm, self.head])]
