"""VideoMAE: a video transformer that learns without labels (Tong et al. 2022, arXiv 2203.12602).

`VideoMAE` classifies. `VideoMAEPretraining` sees a tenth of a clip's tubelets and paints the others; the encoder
of one is the encoder of the other.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.normalisation import IMAGENET_MEAN, IMAGENET_STD
from models.origin import Grid
from models.vit import (
    EPS,
    PATCH,
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
from models.vit_mend import resize_positions

TUBELET = 2  # frames of a token
NATIVE_GRID = (8, 14, 14)  # 16 frames of 224×224 pixels: what the published weights were trained on


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
    `patch_gain`: a factor on that kernel's first weights. With 1, patches are as loud as their fixed positions;
    with 0.3, a model without weights learns order far sooner.
    """

    source = "Tong et al. 2022, arXiv 2203.12602"

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
        patch_gain: float = 1.0,
    ) -> None:
        if not patch_gain > 0:
            raise ValueError(f"videomae needs a patch_gain above 0, got {patch_gain}")
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
        with torch.no_grad():
            self.patch_embed.proj.weight *= patch_gain

    def forward(self, clips: Tensor) -> Tensor:
        """[B, T, C, H, W] → logits [B, K]."""
        x = self.patch_embed(self.split(clips)) + self.get_buffer("positions")
        x = self.fc_norm(self.blocks(x).mean(1))  # [B, D]
        logits: Tensor = self.head(self.dropout(x))
        return logits

    def stages(self) -> Sequence[nn.Module | nn.Parameter]:
        """The embedding, each block, the head with the norm before it."""
        return [self.patch_embed, *self.blocks, nn.ModuleList([self.fc_norm, self.head])]


class Encoder(nn.Module):
    """VideoMAE's transformer over the tubelets that it is given."""

    def __init__(self, scale: Scale, in_channels: int) -> None:
        super().__init__()
        self.patch_embed = TubeletEmbedding(scale.width, in_channels, TUBELET)
        self.blocks = make_blocks(scale)
        self.norm = nn.LayerNorm(scale.width, EPS)

    def forward(self, tubelets: Tensor, positions: Tensor) -> Tensor:
        """Tubelets [B, N, C, t, p, p] and their positions [B, N, D] → [B, N, D]."""
        tokens: Tensor = self.norm(self.blocks(self.patch_embed(tubelets) + positions))
        return tokens


class Decoder(nn.Module):
    """A narrow, shallow transformer from all tokens to the pixels of the hidden ones, which come last."""

    def __init__(self, scale: Scale, pixels: int) -> None:
        super().__init__()
        self.blocks = make_blocks(scale)
        self.norm = nn.LayerNorm(scale.width, EPS)
        self.head = nn.Linear(scale.width, pixels)

    def forward(self, x: Tensor, hidden: int) -> Tensor:
        """[B, N, D] → [B, hidden, pixels of a tubelet]."""
        x = self.head(self.norm(self.blocks(x)[:, -hidden:]))
        return x


class VideoMAEPretraining(Transformer):
    """The masked autoencoder: 94.21M parameters for the base scale, whose decoder is 4 blocks of width 384.

    `mask_ratio`: the share of each frame's patches that a tube mask hides, rounded down to whole patches.
    `normalised_targets`: the mean and deviation of each hidden tubelet are taken out of what is to be painted.
    Without it (He et al. 2022, arXiv 2111.06377, section 4.1), tubelets with much contrast weigh most.
    `mean` and `std`: how the clips' channels were normalised from pixels in [0, 1].
    """

    source = VideoMAE.source

    def __init__(
        self,
        *,
        num_frames: int,
        size: tuple[int, int],
        in_channels: int = 3,
        scale: str = "base",
        mask_ratio: float = 0.9,
        decoder_depth: int = 4,
        normalised_targets: bool = True,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        inflation: str = "central_frame",
    ) -> None:
        super().__init__(
            num_frames=num_frames, size=size, in_channels=in_channels, tubelet=TUBELET, inflation=inflation
        )
        _, H, W = self.grid
        self.hidden_patches = int(mask_ratio * H * W + 1e-6)  # of a frame
        if not 0 < self.hidden_patches < H * W:
            raise ValueError(
                f"a mask ratio of {mask_ratio} hides {self.hidden_patches} of {H * W} patches; "
                f"one at least must be hidden, and one seen: {1 / (H * W):.3f} to {1 - 1 / (H * W):.3f}"
            )
        if not len(mean) == len(std) == in_channels:
            raise ValueError(f"mean and std must have {in_channels} numbers each, one for every channel")
        wide = find_scale(scale)
        narrow = Scale(wide.width // 2, decoder_depth, max(1, wide.heads // 2))
        self.normalised_targets = normalised_targets
        self.encoder = Encoder(wide, in_channels)
        self.encoder_to_decoder = nn.Linear(wide.width, narrow.width, bias=False)
        self.mask_token = nn.Parameter(torch.empty(1, 1, narrow.width))
        self.decoder = Decoder(narrow, in_channels * TUBELET * PATCH**2)
        constants = {
            "encoder_positions": sincos_positions(self.grid, wide.width),
            "decoder_positions": sincos_positions(self.grid, narrow.width),
            "mean": torch.tensor(mean).view(-1, 1, 1, 1),
            "std": torch.tensor(std).view(-1, 1, 1, 1),
        }
        for name, constant in constants.items():
            self.register_buffer(name, constant, persistent=False)
        self.apply(_init_xavier)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def tube_mask(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """A random mask [B, N], true where hidden: for each clip the same patches in all time steps."""
        T, H, W = self.grid
        device = self.mask_token.device if generator is None else generator.device
        order = torch.rand(batch, H * W, generator=generator, device=device).argsort(1).argsort(1)
        return (order < self.hidden_patches).repeat(1, T).to(self.mask_token.device)

    def forward(self, clips: Tensor, mask: Tensor | None = None) -> Tensor:
        """Clips [B, T, C, H, W] → the mean squared error of each one's hidden tubelets, in normalised pixels, [B].

        `mask`: true where hidden, [B, N], as many in every clip as a tube mask hides; a fresh tube mask without.
        """
        tubelets = self.split(clips)
        mask = self.tube_mask(len(clips)) if mask is None else mask
        visible, hidden = self._order(mask)
        with torch.no_grad():
            targets, _, _ = self._normalise(_pick(tubelets, hidden))
        predicted = self._predict(tubelets, visible, hidden).float()
        return F.mse_loss(predicted, targets, reduction="none").mean((1, 2))

    @torch.no_grad()
    def reconstruct(self, clips: Tensor, mask: Tensor) -> Tensor:
        """[B, T, C, H, W] pixels, 0 to 1: the clip where it was seen, the decoder's picture where it was not.

        A hidden tubelet's brightness and contrast are not predicted; they are taken from the clip.
        """
        tubelets = self.split(clips)
        visible, hidden = self._order(mask)
        predicted = self._predict(tubelets, visible, hidden).float()
        _, mean, std = self._normalise(_pick(tubelets, hidden))
        predicted = predicted.view(*hidden.shape, TUBELET, PATCH, PATCH, -1).permute(0, 1, 5, 2, 3, 4)
        pixels = tubelets * self.get_buffer("std") + self.get_buffer("mean")
        index = hidden.view(*hidden.shape, 1, 1, 1, 1).expand_as(predicted)
        return join_tubelets(pixels.scatter(1, index, predicted * std + mean), self.grid)

    def _order(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Which tokens are visible, which hidden: [B, N - hidden] and [B, hidden], in the clip's order."""
        hidden = self.grid[0] * self.hidden_patches
        if not torch.compiler.is_compiling() and not bool((mask.sum(1) == hidden).all()):
            raise ValueError(f"a mask must hide {hidden} of {mask.shape[1]} tubelets in every clip")
        order = mask.to(torch.uint8).argsort(dim=1, stable=True)
        return order[:, :-hidden], order[:, -hidden:]

    def _predict(self, tubelets: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """[B, N, C, t, p, p] → pixels of the hidden tubelets [B, hidden, t·p·p·C], the channel last."""
        B = len(tubelets)
        positions = self.get_buffer("encoder_positions").expand(B, -1, -1)
        x = self.encoder_to_decoder(self.encoder(_pick(tubelets, visible), _pick(positions, visible)))
        positions = self.get_buffer("decoder_positions").expand(B, -1, -1)
        seen = x + _pick(positions, visible)
        unseen = self.mask_token + _pick(positions, hidden)
        pixels: Tensor = self.decoder(torch.cat([seen, unseen], dim=1), hidden.shape[1])
        return pixels

    def _normalise(self, tubelets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, C, t, p, p] → targets [B, N, t·p·p·C], and the mean and deviation that make pixels of them."""
        pixels = tubelets * self.get_buffer("std") + self.get_buffer("mean")
        if self.normalised_targets:
            deviation, mean = torch.std_mean(pixels, dim=(3, 4, 5), keepdim=True)
            deviation = deviation + 1e-6
        else:  # as the clips are
            mean, deviation = self.get_buffer("mean"), self.get_buffer("std")
        return ((pixels - mean) / deviation).permute(0, 1, 3, 4, 5, 2).flatten(2), mean, deviation

    def stages(self) -> Sequence[nn.Module | nn.Parameter]:
        """The embedding, the encoder's blocks, what joins the two, the decoder's blocks, its head."""
        between = nn.ModuleList([self.encoder.norm, self.encoder_to_decoder, nn.ParameterList([self.mask_token])])
        encoder = [self.encoder.patch_embed, *self.encoder.blocks]
        return [*encoder, between, *self.decoder.blocks, nn.ModuleList([self.decoder.norm, self.decoder.head])]


def _pick(tokens: Tensor, index: Tensor) -> Tensor:
    """[B, N, ...] and [B, M] → [B, M, ...]: the tokens with these numbers."""
    return tokens[torch.arange(len(tokens), device=tokens.device)[:, None], index]


def _init_xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
