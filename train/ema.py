"""A moving average of the weights, steadier than the weights themselves: it is what is judged and kept."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from train.component import Component


class Ema(Component):
    """An exponential moving average of the model's weights (Polyak & Juditsky 1992, SIAM J. Control Optim. 30;
    as a teacher of networks: Tarvainen & Valpola 2017, arXiv 1703.01780).

    Statistics of norm layers are averaged as weights are, since they belong to them; whole numbers, such as a
    count of batches, are taken over. It begins at the weights that the model has when this is made.
    """

    name = "ema"

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._model = model
        self._means = _copies(model)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move towards the new weights."""
        share = 1 - decay_after(self.updates, self.decay)
        for name, value in self._model.state_dict().items():
            if value.is_floating_point():
                self._means[name].lerp_(value, share)
            else:
                self._means[name].copy_(value)
        self.updates += 1

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Within it the model has the averaged weights."""
        kept = _copies(self._model)
        self._model.load_state_dict(self._means)
        try:
            yield
        finally:
            self._model.load_state_dict(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, and of how many steps."""
        return {**self._means, "updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises `ValueError` for the averages of another model."""
        means = {name: value for name, value in state.items() if name != "updates"}
        if means.keys() != self._means.keys():
            raise ValueError("the averaged weights are not those of this model")
        self._means = means
        self.updates = int(state["updates"])


def decay_after(updates: int, decay: float) -> float:
    """The decay after so many updates: lower at first, so that the random weights are soon forgotten.

    min(decay, (1 + n) / (10 + n)), as `num_updates` of TensorFlow's `tf.train.ExponentialMovingAverage`.
    """
    return min(decay, (1 + updates) / (10 + updates))


def _copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}
