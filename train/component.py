"""What a run may carry along beside model and optimiser, such as an average of the weights."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor


class Component:
    """Something that acts at set points of a run; here at each of them it does nothing.

    All of its state goes into the checkpoint as tensors, under its `name`.
    """

    name = ""

    def before_epoch(self, epoch: int) -> None:
        """Epoch `epoch` (from 0 on) begins, or goes on after a resumption."""

    def after_step(self) -> None:
        """The optimiser has changed the weights."""

    def judged(self) -> AbstractContextManager[None]:
        """Within it the model has the weights that are validated, and saved as `best` and `last`."""
        return nullcontext()

    def after_epoch(self, line: Mapping[str, Any]) -> bool:  # noqa: ARG002
        """The epoch's line for the log is complete. Returns whether training should end here."""
        return False

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must hold; names without a slash."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go back to such a state, before the first step. Raises `ValueError` where it does not fit."""
