"""Freeze, then unfreeze: what is new learns first, so that its first gradients do not spoil loaded weights."""

from collections.abc import Collection

from torch import nn

from models.family import Family
from train.component import Component


class Freeze(Component):
    """Holds all but the last of the model's `stages` still for the first `epochs` epochs, and but for parameters
    named in `fresh`, that no weights were loaded for.

    Still are weights, the statistics of norm layers, and dropout, so that the head sees the features that it will
    be judged on. The optimiser knows all weights from the start and skips those without a gradient: it keeps no
    state for them, and their bias correction begins when they do. So there is no state to save.
    """

    name = "freeze"

    def __init__(self, model: Family, epochs: int, fresh: Collection[str] = ()) -> None:
        self.epochs = epochs
        learns = {id(parameter) for name, parameter in model.named_parameters() if name in fresh}
        stages = list(model.stages())[:-1]
        self._modules = [stage for stage in stages if isinstance(stage, nn.Module)]
        found = [stage for stage in stages if isinstance(stage, nn.Parameter)]
        found += [parameter for stage in self._modules for parameter in stage.parameters()]
        self._parameters = [
            parameter for parameter in found if parameter.requires_grad and id(parameter) not in learns
        ]
        inner = (module for stage in self._modules for module in stage.modules())
        self._fresh = [
            module for module in inner if any(id(p) in learns for p in module.parameters(recurse=False))
        ]

    def before_epoch(self, epoch: int) -> None:
        """Freeze or unfreeze a model that is in training mode."""
        frozen = epoch < self.epochs
        for parameter in self._parameters:
            parameter.requires_grad_(not frozen)
        if frozen:
            for module in self._modules:
                module.eval()
            for module in self._fresh:  # a fresh norm layer gathers its statistics; children were set on their own
                module.training = True
