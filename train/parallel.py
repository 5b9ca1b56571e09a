"""One model on several ranks: gradients averaged (DDP), or its weights divided among them (FSDP)."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from models.family import Family
from train.compute import Compute


class Replica:
    """The model as the step calls it: backward passes leave the mean of all ranks' gradients in the parameters."""

    def __init__(self, model: Family, compute: Compute) -> None:
        self._model, self._compute = model, compute
        self._ddp: DistributedDataParallel | None = None
        self._trained: list[bool] = []

    @property
    def module(self) -> nn.Module:
        """What is called. DDP is told anew where other parameters are trained than before (frozen ones)."""
        if self._compute.ranks.of == 1 or isinstance(self._model, FSDPModule):
            return self._model
        trained = [parameter.requires_grad for parameter in self._model.parameters()]
        if self._ddp is None or trained != self._trained:
            device = self._compute.device
            # Convolutions of one pixel have two names for the same layout, of which DDP warns.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            self._ddp = DistributedDataParallel(self._model, [device] if device.type == "cuda" else None)
            self._trained = trained
        return self._ddp

    @contextmanager
    def backward(self, *, last: bool) -> Iterator[None]:
        """Around forward and backward of a micro-batch: gradients meet after the last one of a batch."""
        module = self.module
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(last)
            yield
        elif isinstance(module, DistributedDataParallel) and not last:
            with module.no_sync():
                yield
        else:
            yield


def shard_model(model: Family, compute: Compute) -> None:
    """Divide the weights among the ranks, stage by stage, in place (Zhao et al. 2023, arXiv 2304.11277; FSDP2).

    Each stage is gathered when it is needed, so a rank never holds more than one of them besides its part.
    """
    for parameter in model.parameters():  # FSDP2 takes no other layout
        parameter.data = parameter.data.contiguous()
    mesh = init_device_mesh(compute.device.type, (compute.ranks.of,))
    for stage in model.stages():
        if _is_called(stage, model):
            fully_shard(stage, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _is_called(stage: nn.Module | nn.Parameter, model: Family) -> TypeGuard[nn.Module]:
    """Lists of modules, and slices of a sequence, have no forward that the model calls: nothing would gather for
    them, and the model gathers what is in them."""
    return stage in set(model.modules()) and not isinstance(stage, nn.ModuleList | nn.ParameterList)


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with divided ones put together; to be called on all ranks."""
    return {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}


def divided_like(tensor: Tensor, own: Tensor) -> Tensor:
    """A whole tensor in the place of `own`: on its device, divided as it is, in its layout of memory.

    The layout matters: fused optimisers walk through a parameter and its moments side by side.
    """
    if isinstance(own, DTensor):
        return distribute_tensor(tensor.to(own.device, own.dtype), own.device_mesh, own.placements)
    return torch.empty_like(own).copy_(tensor)
