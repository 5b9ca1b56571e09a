"""Foreign weights in the shape of a transformer's own: kernels of pictures, other channels, other grids."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from models.frames import fit_channels
from models.origin import Grid

SIDES, STEPS = range(7, 25), range(2, 17)  # of a foreign grid: frames of 112 to 384 pixels, 2 to 16 time steps


def resize_positions(positions: Tensor, old: Grid, new: Grid) -> Tensor:
    """[1, N, D] on the grid `old` → [1, N', D] on `new`, linear in time, rows and columns."""
    if old == new:
        return positions
    volume = positions.reshape(1, *old, -1).permute(0, 4, 1, 2, 3)  # [1, D, T, H, W]
    volume = F.interpolate(volume, size=new, mode="trilinear", align_corners=False)
    return volume.flatten(2).transpose(1, 2)


def mend_positions(foreign: Tensor, shape: torch.Size, grid: Grid, old: Grid | None) -> Tensor | None:
    """Positions [1, N, D] or [1, 1 + N, D] on the grid that `shape` is for; the [class] token's position is kept.

    `foreign`: [1, N', D] of a video, [1, 1, N', D] of a picture; with or without a [class] token. `old`: its grid,
    None where nobody wrote it down: then the count must tell. Raises `ValueError` where it does not.
    """
    own_layout = _lay_out(shape[1], grid)
    picture = foreign.ndim == 4
    if picture:
        foreign = foreign.flatten(0, 1)
    if foreign.ndim != 3 or foreign.shape[-1] != shape[-1]:
        return None
    count = foreign.shape[1]
    layout = guess_layout(count, picture) if old is None else _lay_out(count, old)
    if own_layout is None or layout is None or layout[0] < own_layout[0]:
        return None
    own_class, own_grid = own_layout
    foreign_class, foreign_grid = layout
    positions = resize_positions(foreign[:, foreign_class:], foreign_grid, own_grid)
    return torch.cat([foreign[:, :own_class], positions], dim=1)


def _lay_out(count: int, grid: Grid) -> tuple[int, Grid] | None:
    """How many of the positions are [class] tokens', and the grid of the others: `grid`, or one time step of it,
    as a factorised encoder has it."""
    for laid in (grid, (1, *grid[1:])):
        if count - math.prod(laid) in (0, 1):
            return count - math.prod(laid), laid
    return None


def guess_layout(count: int, picture: bool) -> tuple[int, Grid] | None:
    """As above, of positions that nobody wrote the grid of: squares of SIDES in a number of STEPS, or None. A
    picture's is any one square. Raises `ValueError` where more than one grid would do."""
    layouts: list[tuple[int, Grid]] = []
    for tokens in (1, 0):
        for side in [math.isqrt(max(count - tokens, 1))] if picture else SIDES:
            steps, rest = divmod(count - tokens, side**2)
            if not rest and steps in ([1] if picture else STEPS):
                layouts.append((tokens, (steps, side, side)))
    if len(layouts) > 1:
        grids = " or ".join(str(grid) for _, grid in layouts)
        raise ValueError(
            f"its {count} positions lie on {grids} (time steps, rows, columns); the file does not say which, "
            f"so that it fits only a model of as many positions"
        )
    return layouts[0] if layouts else None


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
