"""What augmentation does to pixels: plain functions of uint8 or float frames [b, T, H, W, 3] in 0 … 255.

All frames of a clip are treated alike. `box`es are int [b, 4]: top, left, height, width in pixels.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
# To luma and the two chroma axes of YIQ, in whose plane a turn changes the hue.
YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def crop_and_flip(frames: Tensor, box: Ints, flip: NDArray[np.bool_]) -> Tensor:
    """Each clip's box, resized (bilinear, antialiased) to full size, mirrored where `flip`.

    On a CPU in uint8: PyTorch's resize of bytes with channels last is ten times as fast as `grid_sample`.
    """
    height, width = frames.shape[2:4]
    if (box[:, 2:] == (height, width)).all() and not flip.any():
        return frames
    moved = (
        torch.empty_like(frames) if frames.device.type == "cpu" else torch.empty_like(frames, dtype=torch.float)
    )
    for clip, out, (top, left, rows, columns), mirror in zip(frames, moved, box.tolist(), flip, strict=True):
        cut = clip[:, top : top + rows, left : left + columns]
        pictures = cut.permute(0, 3, 1, 2).to(moved.dtype)  # [T, 3, rows, columns], channels last
        if (rows, columns) != (height, width):
            pictures = functional.interpolate(pictures, (height, width), mode="bilinear", antialias=True)
        out.copy_((pictures.flip(3) if mirror else pictures).permute(0, 2, 3, 1))
    return moved


def blur(frames: Tensor, sigma: Floats) -> Tensor:
    """Gaussian blur of each clip with its own `sigma` [b] in pixels; 0: none."""
    if not sigma.any():
        return frames
    blurred = frames.float() if frames.dtype == torch.uint8 else frames.clone()
    for clip, width in zip(blurred, sigma.tolist(), strict=True):
        if width:
            clip.copy_(_blur_clip(clip.permute(0, 3, 1, 2), width).permute(0, 2, 3, 1))
    return blurred


def _blur_clip(pictures: Tensor, sigma: float) -> Tensor:
    reach = min(max(math.ceil(3 * sigma), 1), min(pictures.shape[2:]) - 1)  # what reflection can fill
    places = torch.arange(-reach, reach + 1, device=pictures.device)
    weights = torch.exp(-(places**2) / (2 * sigma**2))
    kernel = (weights / weights.sum()).expand(3, 1, 1, -1)
    padded = functional.pad(pictures, [reach] * 4, mode="reflect")
    return functional.conv2d(functional.conv2d(padded, kernel, groups=3), kernel.mT, groups=3)


def colour_matrices(brightness: Floats, contrast: Floats, saturation: Floats, hue: Floats, grey: Floats) -> Floats:
    """The changes of colour in this order as one matrix a clip, [b, 3, 3], for `change_colours`.

    Factors [b] with 1 as no change; `hue` in turns; `grey` 1 takes the colour out. The brightness and contrast of
    torchvision's ColorJitter, with the hue turned in the plane of chroma instead of HSV: it keeps the luma.
    """
    angle = 2 * np.pi * hue
    # Saturation, a turn and grey all act on the plane of chroma alone, so they leave greys as they are.
    chroma = saturation * (1 - grey)
    turned = np.zeros((len(hue), 3, 3))
    turned[:, 0, 0] = 1
    turned[:, 1, 1] = turned[:, 2, 2] = chroma * np.cos(angle)
    turned[:, 2, 1] = chroma * np.sin(angle)
    turned[:, 1, 2] = -turned[:, 2, 1]
    matrices: Floats = (brightness * contrast)[:, None, None] * (np.linalg.inv(YIQ) @ turned @ YIQ)
    same = (brightness == 1) & (contrast == 1) & (saturation == 1) & (hue == 0) & (grey == 0)
    matrices[same] = np.eye(3)  # exactly, so that such clips are left alone
    return matrices


def change_colours(frames: Tensor, matrix: Floats, pull: Floats) -> Tensor:
    """matrix · pixel + pull · (mean luma of the clip), cut to 0 … 255. `matrix` [b, 3, 3], `pull` [b]."""
    if (matrix == np.eye(3)).all() and not pull.any():
        return frames
    frames = frames.float()
    batch, device = len(frames), frames.device
    luma = frames.mean((1, 2, 3)) @ torch.tensor(LUMA, dtype=torch.float32, device=device)
    offset = luma * torch.tensor(pull, dtype=torch.float32, device=device)
    # Several pixels a row, each with the matrix on the diagonal: rows of three would be too short to be fast.
    together = math.gcd(frames.shape[3], 4)
    blocks = np.kron(np.eye(together), matrix.transpose(0, 2, 1))  # [b, 3g, 3g]
    weights = torch.tensor(blocks, dtype=torch.float32, device=device)
    pixels = frames.reshape(batch, -1, 3 * together)
    return torch.baddbmm(offset.view(-1, 1, 1), pixels, weights).clamp_(0, 255).view(frames.shape)


def fill_boxes(clips: Tensor, box: Ints) -> None:
    """Put zero, which is the mean colour, into each normalised clip's box, through all its frames, in place.

    `clips` [B, T, C, H, W].
    """
    for clip, (top, left, rows, columns) in zip(clips, box.tolist(), strict=True):
        if rows and columns:
            clip[..., top : top + rows, left : left + columns] = 0


def mix_pairs(clips: Tensor, weight: Floats, box: Ints, on: Ints) -> None:
    """Mix each clip with the one `on` [B] places on, in place; both have the same `weight` [B] and `box`.

    Where the box is empty: weight · own + (1 - weight) · other (mixup). Else the box of the other (CutMix).
    """
    for first in np.flatnonzero(on > 0):
        one, other = clips[first], clips[first + on[first]]
        top, left, rows, columns = box[first].tolist()
        if rows and columns:
            region = (..., slice(top, top + rows), slice(left, left + columns))
            kept = one[region].clone()
            one[region] = other[region]
            other[region] = kept
        elif weight[first] != 1:
            kept = one.clone()
            one.lerp_(other, 1 - float(weight[first]))
            other.lerp_(kept, 1 - float(weight[first]))
