"""Where the numbers are crunched: device, precision and memory layout, chosen once and used everywhere."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import build_model, build_pretraining
from models.family import Family
from models.weights import Loaded, load_weights
from pipeline.errors import UserError

PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class Compute:
    """A device and the precision of its autocast."""

    device: torch.device
    bf16: bool

    def prepare(self, model: Family) -> Family:
        """The model on the device, its convolutions with channels last: with bf16 several times as fast."""
        model = model.to(self.device)
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                layout = torch.channels_last if isinstance(module, nn.Conv2d) else torch.channels_last_3d
                module.weight.data = module.weight.data.contiguous(memory_format=layout)
        return model

    def autocast(self) -> AbstractContextManager[None]:
        """The context that forward passes run in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def logits(self, model: nn.Module, clips: Tensor) -> Tensor:
        """Float32 logits [B, K] of clips [B, T, C, H, W]."""
        with self.autocast():
            logits: Tensor = model(clips)
        return logits.float()


def choose_compute(device: str = "auto", precision: str = "auto") -> Compute:
    """`auto` takes a GPU where there is one, and bf16 where the hardware multiplies it. Raises `UserError`."""
    if precision not in PRECISIONS:
        raise UserError(f"--precision {precision}: must be one of {', '.join(PRECISIONS)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
        if chosen.type not in ("cpu", "cuda", "mps", "xpu"):
            raise RuntimeError("it does not compute")
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: not to be had here ({str(error).splitlines()[0]})") from error
    return Compute(chosen, _fast_bf16(chosen) if precision == "auto" else precision == "bf16")


def _fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def make_model(name: str, **options: Any) -> Family:
    """`models.build_model`, with its refusals as `UserError`."""
    try:
        return build_model(name, **options)
    except ValueError as error:
        raise UserError(str(error)) from error


def make_pretraining(name: str, **options: Any) -> Family:
    """`models.build_pretraining`, likewise."""
    try:
        return build_pretraining(name, **options)
    except ValueError as error:
        raise UserError(str(error)) from error


def fill_model(path: Path, model: Family, name: str) -> Loaded:
    """`models.weights.load_weights`, with its refusals as `UserError`."""
    try:
        return load_weights(path, model, name)
    except ValueError as error:
        raise UserError(f"--weights {error}") from error
