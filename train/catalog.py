"""What `train models` lists: every family with its size, cost, input, and what it can start from."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from models import MODELS, count_parameters
from models.origin import OURS
from models.weights import accepted_formats
from pipeline.errors import UserError
from train.compute import make_model


def list_models(frames: int, size: tuple[int, int], classes: int) -> list[dict[str, Any]]:
    """A row a family; `gflops` for one clip, a multiply-add counted as two. A family that takes no such clips has
    its reason as `error` instead. Raises `UserError` where none takes them."""
    rows: list[dict[str, Any]] = []
    refused: list[UserError] = []
    for name in MODELS:
        try:
            rows.append(describe_model(name, frames, size, classes))
        except UserError as error:
            refused.append(error)
            rows.append({"model": name, "error": str(error)})
    if len(refused) == len(rows):
        raise refused[0]
    return rows


def describe_model(name: str, frames: int, size: tuple[int, int], classes: int, **options: Any) -> dict[str, Any]:
    """One such row, of a family with these options. Raises `UserError`."""
    width, height = size
    channels = options.get("in_channels", 3)
    with torch.device("meta"):  # shapes without numbers: nothing is computed
        model = make_model(name, num_classes=classes, num_frames=frames, size=size, **options).eval()
        clip = torch.zeros(1, frames, channels, height, width)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(clip)
    return {
        "model": name,
        "parameters": count_parameters(model),
        "gflops": round(counter.get_total_flops() / 1e9, 2),
        "input": [frames, channels, height, width],
        "weights": [*accepted_formats(name), OURS],
        "source": model.source,
        "about": " ".join((type(model).__doc__ or "").partition(":")[0].split()),
    }
