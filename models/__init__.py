"""Model families: `[B, T, C, H, W]` float clips to `[B, classes]` logits. torch only; no data, no training.

Adding a family: one file here, one line in MODELS.
"""

from importlib import import_module
from typing import Any

from torch import nn

# name -> class, imported on first use
MODELS = {
    "early_fusion": "models.early_fusion:EarlyFusion",
    "vivit": "models.vivit:ViViT",
    "videomae": "models.videomae:VideoMAE",
}


def build_model(
    name: str, *, num_classes: int, num_frames: int, size: tuple[int, int], **options: Any
) -> nn.Module:
    """The family's network with fresh weights.

    `size`: (width, height) of a frame in pixels. Raises `ValueError` for a name that is not in MODELS and for
    an input that the family does not take.
    """
    if name not in MODELS:
        raise ValueError(f"no model family is called {name!r}; there are {', '.join(MODELS)}")
    module, _, cls = MODELS[name].partition(":")
    family = getattr(import_module(module), cls)
    model: nn.Module = family(num_classes=num_classes, num_frames=num_frames, size=size, **options)
    return model


def count_parameters(model: nn.Module) -> int:
    """How many numbers the model learns."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
