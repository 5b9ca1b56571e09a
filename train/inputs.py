"""Stored frames to model input, on the device: normalisation, and what of the clip the model is shown."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Kinds of input, with their channels: colour, what changed since the frame before, or one above the other.
INPUTS = {"rgb": 3, "diff": 3, "rgb+diff": 6}


def make_input(clips: Tensor, kind: str) -> Tensor:
    """Normalised clips [B, T, 3, H, W] → [B, T, INPUTS[kind], H, W], channels last in memory. Raises `ValueError`.

    The difference of frame t is x[t] - x[t-1]; frame 0 has none before it and repeats that of frame 1, so that
    T stays and the first frame looks like the others. Of a clip of one frame it is zero.
    """
    if kind not in INPUTS:
        raise ValueError(f"input {kind!r}: must be one of {', '.join(INPUTS)}")
    if kind == "rgb":
        return clips
    batch, frames, colours, height, width = clips.shape
    shown = clips.new_empty((batch, frames, height, width, INPUTS[kind])).permute(0, 1, 4, 2, 3)
    change = shown[:, :, -colours:]
    torch.sub(clips[:, 1:], clips[:, :-1], out=change[:, 1:])
    change[:, 0] = change[:, 1] if frames > 1 else 0
    if kind == "rgb+diff":
        shown[:, :, :colours] = clips
    return shown


def pixel_constants(
    kind: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation with which the channels of `make_input` are pixels in [0, 1] again: x · std + mean.

    A change is shown around grey, at half its size.
    """
    constants = {"rgb": (mean, std), "diff": ((0.5,) * len(mean), tuple(value / 2 for value in std))}
    means, deviations = zip(*(constants[part] for part in kind.split("+")), strict=True)
    return sum(means, ()), sum(deviations, ())


def to_clips(
    frames: Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """uint8 [B, T, H, W, C] → normalised [B, T, C, H, W], a view with the channels last in memory."""
    normalise = Normalise(frames, mean, std, dtype)
    for part in parts(frames):
        normalise(part, frames[part])
    return normalise.clips


class Normalise:
    """Writes a batch of clips part by part: (x / 255 - mean) / std, of frames in 0 … 255."""

    def __init__(
        self, frames: Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype = torch.float32
    ) -> None:
        self._out = torch.empty(frames.shape, dtype=dtype, device=frames.device)
        deviation = torch.tensor(std, device=frames.device)
        # A row of pixels at a time: three numbers would be too short for the vector units.
        width = frames.shape[3]
        self._scale = (1 / (255 * deviation)).repeat(width)
        self._shift = (-torch.tensor(mean, device=frames.device) / deviation).repeat(width)

    @property
    def clips(self) -> Tensor:
        """[B, T, C, H, W], a view with the channels last in memory."""
        return self._out.permute(0, 1, 4, 2, 3)

    def __call__(self, part: slice, frames: Tensor) -> None:
        """Normalise `frames` [b, T, H, W, C], uint8 or float, into the clips of `part`."""
        rows = torch.addcmul(self._shift, frames.float().flatten(3), self._scale)
        self._out[part].flatten(3).copy_(rows)


def parts(frames: Tensor) -> Iterator[slice]:
    """The batch in parts to work on: the whole on a GPU, one clip on a CPU.

    A clip's steps stay in the CPU's cache that way: normalisation alone is several times as fast.
    """
    step = 1 if frames.device.type == "cpu" else max(len(frames), 1)
    for first in range(0, len(frames), step):
        yield slice(first, first + step)
