"""Where the numbers are crunched: device, precision and memory layout, chosen once and used everywhere."""

import logging
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import build_model, build_pretraining
from models.family import Family, UnfitClips
from models.weights import Loaded, load_weights
from pipeline.errors import UserError
from train.allocator import keep_freed_memory
from train.ranks import ALONE, Ranks

LOG = logging.getLogger(__name__)
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Compute:
    """A device, the precision of its autocast (neither: float32), and the ranks that share the work."""

    device: torch.device
    bf16: bool
    fp16: bool = False
    ranks: Ranks = ALONE

    @property
    def precision(self) -> str:
        """`fp32`, `bf16` or `fp16`."""
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "fp32"

    def prepare(self, model: Family) -> Family:
        """The model on the device, its convolutions with channels last: with bf16 several times as fast.

        On several CUDA devices batch norm takes its statistics over all of them (SyncBatchNorm); elsewhere each
        rank's norm layers see its own clips.
        """
        if self.device.type == "cpu":
            keep_freed_memory()
        model = model.to(self.device)
        if self.ranks.of > 1 and self.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                layout = torch.channels_last if isinstance(module, nn.Conv2d) else torch.channels_last_3d
                module.weight.data = module.weight.data.contiguous(memory_format=layout)
        return model

    def autocast(self) -> AbstractContextManager[None]:
        """The context that forward passes run in."""
        dtype = torch.float16 if self.fp16 else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.bf16 or self.fp16)

    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss where gradients would be too small for fp16; else it does nothing."""
        return torch.amp.GradScaler(self.device.type, enabled=self.fp16)

    def logits(self, model: nn.Module, clips: Tensor) -> Tensor:
        """Float32 logits [B, K] of clips [B, T, C, H, W]."""
        with self.autocast():
            logits: Tensor = model(clips)
        return logits.float()


def choose_compute(device: str = "auto", precision: str = "auto", ranks: Ranks = ALONE) -> Compute:
    """`auto` takes a GPU where there is one, and bf16 where the hardware multiplies it. Raises `UserError`.

    Each rank takes the GPU of its number on this machine.
    """
    if precision not in PRECISIONS:
        raise UserError(f"--precision {precision}: must be one of {', '.join(PRECISIONS)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and ranks.of > 1:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
        if chosen.type not in ("cpu", "cuda", "mps", "xpu"):
            raise RuntimeError("it does not compute")
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: not to be had here ({str(error).splitlines()[0]})") from error
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if precision == "fp16" and chosen.type != "cuda":
        raise UserError(f"--precision fp16: is for CUDA devices, not for {chosen.type}; take bf16 or fp32")
    bf16 = _fast_bf16(chosen) if precision == "auto" else precision == "bf16"
    compute = Compute(chosen, bf16, precision == "fp16", ranks)
    LOG.info("computing on %s in %s, %d threads", chosen, compute.precision, torch.get_num_threads())
    return compute


def compile_model(model: Family, compute: Compute) -> None:
    """Have the model's forward pass compiled when it is first called; its names stay. Raises `UserError`."""
    try:  # a tiny one first: a missing compiler is told before any work is done
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=compute.device))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--compile: this machine cannot compile ({reason}); leave it out") from error
    model.compile()


def _fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def make_model(name: str, **options: Any) -> Family:
    """`models.build_model`, with its refusals as `UserError`."""
    try:
        return build_model(name, **options)
    except ValueError as error:
        raise _refusal(error) from error


def make_pretraining(name: str, **options: Any) -> Family:
    """`models.build_pretraining`, likewise."""
    try:
        return build_pretraining(name, **options)
    except ValueError as error:
        raise _refusal(error) from error


def _refusal(error: ValueError) -> UserError:
    way_out = ": give other --frames, or frames of another --size" if isinstance(error, UnfitClips) else ""
    return UserError(f"{error}{way_out}")


def fill_model(path: Path, model: Family, name: str, labels: Sequence[str] | None) -> Loaded:
    """`models.weights.load_weights`, with its refusals as `UserError`."""
    try:
        return load_weights(path, model, name, labels)
    except ValueError as error:
        raise UserError(f"--weights {error}") from error
