"""What `train models` lists: every family with its size, cost, input, and what it can start from."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from models import MODELS, count_parameters
from models.weights import OURS, accepted_formats
from train.compute import make_model


def list_models(frames: int, size: tuple[int, int], classes: int) -> list[dict[str, Any]]:
    """A row a family; `gflops` for one clip, a multiply-add counted as two. Raises `UserError`."""
    return [model_row(name, frames, size, classes) for name in MODELS]


def model_row(name: str, frames: int, size: tuple[int, int], classes: int, **options: Any) -> dict[str, Any]:
    """One family's row; `options` are its own. Raises `UserError`."""
    width, height = size
    with torch.device("meta"):  # shapes without numbers: nothing is computed
        model = make_model(name, num_classes=classes, num_frames=frames, size=size, **options).eval()
        clip = torch.zeros(1, frames, 3, height, width)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(clip)
    return {
        "model": name,
        "parameters": count_parameters(model),
        "gflops": round(counter.get_total_flops() / 1e9, 2),
        "input": [frames, 3, height, width],
        "weights": [*accepted_formats(name), OURS],
        "source": model.source,
        "about": (type(model).__doc__ or "").partition(":")[0],
    }
