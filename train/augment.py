"""Frames to model input, on the device and on whole batches: normalisation, and augmentation in training.

Every frame of a clip gets the same transform. Draws depend on the generator alone, so a step can be repeated.
"""

import torch
from torch import Tensor
from torch.nn import functional

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_clips(frames: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 [B, T, H, W, C] → normalised float [B, T, C, H, W], a view with the channels last in memory."""
    device = frames.device
    scale = 1 / (255 * torch.tensor(std, device=device))
    shift = torch.tensor(mean, device=device) / torch.tensor(std, device=device)
    return (frames * scale - shift).permute(0, 1, 4, 2, 3)


def augment(
    clips: Tensor, generator: torch.Generator, *, scale: tuple[float, float], jitter: float, flip: bool = True
) -> Tensor:
    """Random crop resized to full size, horizontal flip, contrast and brightness, drawn once a clip.

    `clips` [B, T, C, H, W]; `scale`: the share of the area that a crop keeps; `jitter`: how far contrast
    (factor) and brightness (in units of the normalised input) may move.
    """
    batch = len(clips)

    def draw(low: float, high: float) -> Tensor:
        values = torch.rand(batch, generator=generator) * (high - low) + low
        return values.to(clips.device)

    side = draw(*scale).sqrt()
    mirror = torch.where(draw(0, 1) < (0.5 if flip else 0.0), -1.0, 1.0)
    room = 1 - side
    zero = torch.zeros_like(side)
    across = torch.stack([side * mirror, zero, draw(-1, 1) * room], 1)
    down = torch.stack([zero, side, draw(-1, 1) * room], 1)
    theta = torch.stack([across, down], 1)  # [B, 2, 3]
    pictures = clips.flatten(1, 2)  # [B, T·C, H, W]
    grid = functional.affine_grid(theta, list(pictures.shape), align_corners=False)
    moved = functional.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    contrast, brightness = draw(1 - jitter, 1 + jitter), draw(-jitter, jitter)
    moved = moved * contrast.view(-1, 1, 1, 1) + brightness.view(-1, 1, 1, 1)
    return moved.view(clips.shape)
