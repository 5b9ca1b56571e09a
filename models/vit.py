"""Parts that the transformer families share (Dosovitskiy et al. 2021, arXiv 2010.11929). Parameter names are
timm's, so that its checkpoints fit: patch_embed.proj, blocks.0.norm1, .attn.qkv, .attn.proj, .mlp.fc1, …"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.family import Family, UnfitClips
from models.origin import Grid, Origin
from models.vit_mend import mend_kernel, mend_positions

PATCH = 16  # pixels of a patch's side
EPS = 1e-6  # of every LayerNorm; torch's own default is 1e-5


class Scale(NamedTuple):
    """How large a transformer is. Its MLPs are four times as wide as its tokens."""

    width: int
    depth: int
    heads: int


SIZES = {
    "micro": Scale(48, 2, 4),  # for tests
    "mini": Scale(192, 4, 3),  # for a few thousand clips and no weights to start from
    "tiny": Scale(192, 12, 3),
    "small": Scale(384, 12, 6),
    "base": Scale(768, 12, 12),
}


SHORT = 512  # tokens: until here a CPU attends by plain matrix products


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v over [B, heads, N, d].

    On a CPU, torch's fused kernel is slower than plain products, above all backwards and for short sequences. It
    needs less memory, though, so that long ones are left to it.
    """
    if q.device.type != "cpu" or q.shape[-2] > SHORT:
        return F.scaled_dot_product_attention(q, k, v)
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
    attended: Tensor = weights @ v
    return attended


class Attention(nn.Module):
    """Multi-head self-attention, query, key and value in one matrix product.

    `key_bias=False`: biases for query and value alone, named q_bias and v_bias, as VideoMAE has it. A key's bias
    adds the same to all logits of a softmax, so that nothing is lost.
    """

    def __init__(self, width: int, heads: int, *, key_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.key_bias = key_bias
        self.qkv = nn.Linear(width, 3 * width, bias=key_bias)
        if not key_bias:
            self.q_bias = nn.Parameter(torch.zeros(width))
            self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def project(self, x: Tensor) -> Tensor:
        """[B, N, D] → query, key and value of every head [B, N, 3, heads, D / heads]."""
        bias: Tensor = self.qkv.bias
        if not self.key_bias:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias)
        return qkv.view(*x.shape[:2], 3, self.heads, -1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] → [B, N, D]."""
        q, k, v = self.project(x).permute(2, 0, 3, 1, 4).unbind()  # each [B, heads, N, D / heads]
        x = self.proj(attend(q, k, v).transpose(1, 2).flatten(2))
        return x


class Mlp(nn.Module):
    """Two linear layers with GELU between them: exact, or by tanh as the JAX models are trained."""

    def __init__(self, width: int, gelu: str = "none") -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] → [..., D]."""
        x = self.fc2(F.gelu(self.fc1(x), approximate=self.gelu))
        return x


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382): some samples skip a branch in training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] → the same, zero for a share `rate` of the samples, the others scaled up to keep the mean."""
        if not self.training or not self.rate:
            return x
        keep = x.new_empty([len(x)] + [1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class Block(nn.Module):
    """LayerNorm, attention, LayerNorm, MLP, with two shortcuts."""

    def __init__(self, scale: Scale, *, drop_path: float = 0.0, gelu: str = "none", key_bias: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(scale.width, EPS)
        self.attn = Attention(scale.width, scale.heads, key_bias=key_bias)
        self.norm2 = nn.LayerNorm(scale.width, EPS)
        self.mlp = Mlp(scale.width, gelu)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] → [B, N, D]."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


def drop_rates(depth: int, last: float) -> list[float]:
    """Stochastic depth's rate for each block: from 0 in the first to `last` in the last.

    Raises `ValueError` for a rate outside [0, 1): at 1 nothing would be left to scale up.
    """
    if not 0 <= last < 1:
        raise ValueError(f"drop_path is at least 0 and less than 1, not {last}")
    return [last * index / max(1, depth - 1) for index in range(depth)]


def split_tubelets(clips: Tensor, tubelet: int) -> Tensor:
    """[B, T, C, H, W] → [B, N, C, tubelet, PATCH, PATCH], N = time · rows · columns, in this order."""
    B, T, C, H, W = clips.shape
    x = clips.reshape(B, T // tubelet, tubelet, C, H // PATCH, PATCH, W // PATCH, PATCH)
    return x.permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(1, 3)


def join_tubelets(tubelets: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """`split_tubelets` undone: [B, N, C, tubelet, PATCH, PATCH] on the grid (T', H', W') → [B, T, C, H, W]."""
    B, _, C, tubelet, _, _ = tubelets.shape
    T, H, W = grid
    x = tubelets.view(B, T, H, W, C, tubelet, PATCH, PATCH).permute(0, 1, 5, 4, 2, 6, 3, 7)
    return x.reshape(B, T * tubelet, C, H * PATCH, W * PATCH)


class TubeletEmbedding(nn.Module):
    """A convolution whose kernel does not overlap itself, computed as what it is: one matrix product.

    The weight has a convolution's shape, [D, C, tubelet, PATCH, PATCH].
    """

    def __init__(self, width: int, in_channels: int, tubelet: int) -> None:
        super().__init__()
        kernel = (tubelet, PATCH, PATCH)
        self.tubelet = tubelet
        self.proj = nn.Conv3d(in_channels, width, kernel, stride=kernel)

    def forward(self, tubelets: Tensor) -> Tensor:
        """[B, N, C, tubelet, PATCH, PATCH] → tokens [B, N, D]."""
        return F.linear(tubelets.flatten(2), self.proj.weight.flatten(1), self.proj.bias)


class Transformer(Family):
    """Base of the transformer families: what they take, what does not decay, how foreign weights are mended."""

    def __init__(
        self, *, num_frames: int, size: tuple[int, int], in_channels: int, tubelet: int, inflation: str
    ) -> None:
        super().__init__()
        name, (width, height) = type(self).__name__, size
        if num_frames < 1 or num_frames % tubelet:
            raise UnfitClips(f"{name} needs a multiple of {tubelet} frames, got {num_frames}")
        if min(size) < 1 or width % PATCH or height % PATCH:
            raise UnfitClips(f"{name} needs frames of a multiple of {PATCH} pixels, got {width}×{height}")
        if inflation not in ("central_frame", "average"):
            raise ValueError(f"inflation is central_frame or average, not {inflation!r}")
        self.clip_shape = (num_frames, in_channels, height, width)
        self.grid: Grid = (num_frames // tubelet, height // PATCH, width // PATCH)
        self.tubelet = tubelet
        self.inflation = inflation

    def split(self, clips: Tensor) -> Tensor:
        """[B, T, C, H, W] → tubelets [B, N, C, tubelet, PATCH, PATCH]. Raises `ValueError` for other clips."""
        if tuple(clips.shape[1:]) != self.clip_shape:
            T, C, H, W = self.clip_shape
            raise ValueError(
                f"{type(self).__name__} was made for {T} frames, got {clips.shape[1]}"
                if clips.shape[1] != T
                else f"{type(self).__name__} was made for [{T}, {C}, {H}, {W}] clips, got {list(clips.shape[1:])}"
            )
        return split_tubelets(clips, self.tubelet)

    def undecayed(self) -> set[nn.Parameter]:
        """Besides vectors the [class] and mask tokens and the positions."""
        tokens = ("cls_token", "pos_embed", "mask_token")
        return super().undecayed() | {p for name, p in self.named_parameters() if name.endswith(tokens)}

    def mend(self, name: str, foreign: Tensor, origin: Origin | None) -> Tensor | None:
        """Kernels of pictures, or for other channels, and positions of another grid are mended."""
        own = self.get_parameter(name)
        if name.endswith("patch_embed.proj.weight"):
            return mend_kernel(foreign, own.shape, self.inflation)
        if name == "pos_embed":
            return mend_positions(foreign, own.shape, self.grid, origin.grid if origin else None)
        return None


def find_scale(name: str) -> Scale:
    """A row of SIZES. Raises `ValueError` for a name that it does not have."""
    if name not in SIZES:
        raise ValueError(f"option scale={name}: no scale is called {name!r}; there are {', '.join(SIZES)}")
    return SIZES[name]


def name_scale(state: Mapping[str, Tensor]) -> str | None:
    """The row of SIZES that a transformer's tensors are of, by width and depth; None where there is no such."""
    kernels = [tensor for name, tensor in state.items() if name.endswith("patch_embed.proj.weight")]
    blocks = {found[1] for name in state if (found := re.match(r"(?:encoder\.)?blocks\.(\d+)\.", name))}
    shape = len(kernels) == 1 and (kernels[0].shape[0], len(blocks))
    return next((name for name, scale in SIZES.items() if shape == (scale.width, scale.depth)), None)


def init_linear(module: nn.Module) -> None:
    """A linear layer's fresh weights, to be used with `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_head(head: nn.Linear) -> None:
    """A head starts near zero: what was learnt before is not disturbed by what a random one asks for."""
    nn.init.trunc_normal_(head.weight, std=2e-5)
    nn.init.zeros_(head.bias)
