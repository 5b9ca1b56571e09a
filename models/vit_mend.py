"""Foreign weights in the shape of a transformer's own: kernels of pictures, other channels, other grids."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from models.frames import fit_channels

Grid = tuple[int, int, int]  # time steps, rows, columns


def resize_positions(positions: Tensor, old: Grid, new: Grid) -> Tensor:
    """[1, N, D] on the grid `old` → [1, N', D] on `new`, linear in time, rows and columns."""
    if old == new:
        return positions
    volume = positions.reshape(1, *old, -1).permute(0, 4, 1, 2, 3)  # [1, D, T, H, W]
    volume = F.interpolate(volume, size=new, mode="trilinear", align_corners=False)
    return volume.flatten(2).transpose(1, 2)


def mend_positions(foreign: Tensor, shape: torch.Size, grid: Grid) -> Tensor | None:
    """Positions [1, N, D] or [1, 1 + N, D] on the grid that `shape` is for; the [class] token's position is kept.

    `foreign`: [1, N', D] of a video, [1, 1, N', D] of a picture; with or without a [class] token. Its grid is
    not written anywhere, and frames are taken for square: see `read_grid`.
    """
    own_class = shape[1] - math.prod(grid)
    if own_class not in (0, 1):  # one position for all time steps, as a factorised encoder has them
        grid = (1, *grid[1:])
        own_class = shape[1] - math.prod(grid)
    picture = foreign.ndim == 4
    if picture:
        foreign = foreign.flatten(0, 1)
    if foreign.ndim != 3 or foreign.shape[-1] != shape[-1]:
        return None
    for foreign_class in (1, 0):
        old = read_grid(foreign.shape[1] - foreign_class, 1 if picture else None, grid[0])
        if old is not None and foreign_class >= own_class:
            positions = resize_positions(foreign[:, foreign_class:], old, grid)
            return torch.cat([foreign[:, :own_class], positions], dim=1)
    return None


def read_grid(count: int, steps: int | None, wanted_steps: int) -> Grid | None:
    """The grid that so many patches lie on: squares of at least 4×4 in a number of time steps, or None.

    Frames of 224 pixels, 14×14 patches, come first where that leaves four time steps or more: what is published
    is like that. Next is the number of time steps nearest to `wanted_steps`.
    """
    sides = [side for side in range(4, math.isqrt(max(count, 0)) + 1) if count % side**2 == 0]
    grids = [(count // side**2, side, side) for side in sides]
    if steps is not None:
        grids = [grid for grid in grids if grid[0] == steps]
    if not grids:
        return None
    return min(grids, key=lambda g: (g[1] != 14 or g[0] < 4, abs(math.log2(g[0] / wanted_steps))))


def mend_kernel(foreign: Tensor, shape: torch.Size, inflation: str) -> Tensor | None:
    """A patch kernel [D, C', p, p] or [D, C', t', p, p] in the shape [D, C, t, p, p] of `shape`.

    From a picture's kernel, `inflation` (Arnab et al. 2021, arXiv 2103.15691, section 3.4): "central_frame" sees
    the middle frame of a tubelet as the picture, "average" all of them. A tubelet of another length counts as a
    picture's kernel, summed over time. Other channels: see `fit_channels`.
    """
    kernel = foreign.unsqueeze(2) if foreign.ndim == 4 else foreign
    if kernel.ndim != 5 or (kernel.shape[0], *kernel.shape[3:]) != (shape[0], *shape[3:]):
        return None
    if kernel.shape[1] != shape[1]:
        kernel = fit_channels(kernel, shape[1])
    steps = shape[2]
    if kernel.shape[2] == steps:
        return kernel
    kernel = kernel.sum(2, keepdim=True)
    if inflation == "average":
        return kernel.repeat(1, 1, steps, 1, 1) / steps
    inflated = kernel.new_zeros((*kernel.shape[:2], steps, *kernel.shape[3:]))
    inflated[:, :, steps // 2] = kernel[:, :, 0]
    return inflated
