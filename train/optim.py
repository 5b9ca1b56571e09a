"""Optimiser and schedule."""

import math

import torch
from torch import nn

from models.family import Family

FUSED = ("cpu", "cuda")  # where AdamW is one kernel for each parameter rather than one for each term of it


def make_optimizer(
    model: Family, lr: float, weight_decay: float, layer_decay: float = 1.0, beta2: float = 0.999
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) in groups that the model's stages and `undecayed` make.

    Each group's `lr_scale` is layer_decay^(stages after its own) (Clark et al. 2020, arXiv 2003.10555), which
    `set_rate` applies. Stages of the same scale share a group.
    """
    stages = list(model.stages())
    undecayed = model.undecayed()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for number, stage in enumerate(stages):
        scale = layer_decay ** (len(stages) - 1 - number)
        parameters = [stage] if isinstance(stage, nn.Parameter) else list(stage.parameters())
        for parameter in parameters:
            if parameter.requires_grad:
                decay = 0.0 if parameter in undecayed else weight_decay
                groups.setdefault((scale, decay), []).append(parameter)
    _check_stages(model, [p for parameters in groups.values() for p in parameters])
    rows = [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (scale, decay), parameters in groups.items()
    ]
    fused = all(p.device.type in FUSED for p in model.parameters())
    return torch.optim.AdamW(rows, lr=lr, betas=(0.9, beta2), fused=fused)


def _check_stages(model: Family, found: list[nn.Parameter]) -> None:
    if len(found) != len(set(found)) or set(found) != {p for p in model.parameters() if p.requires_grad}:
        raise ValueError(f"{type(model).__name__}.stages() must name each parameter exactly once")


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The rate of this step, times each group's own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def learning_rate(step: int, steps: int, warmup_steps: int, peak: float) -> float:
    """Linear warm-up to `peak`, then half a cosine down to zero at step `steps`."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
