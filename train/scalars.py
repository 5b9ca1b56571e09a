"""The log for TensorBoard, beside the JSON lines."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from train.component import Component

FOLDER = "tensorboard"


class Scalars(Component):
    """Writes an epoch's numbers as scalars into the run's folder `tensorboard`, the epoch as their step."""

    name = "scalars"

    def __init__(self, run: Path) -> None:
        """Raises `UserError` where TensorBoard is not installed."""
        if find_spec("tensorboard") is None:
            raise UserError(
                "--tensorboard: needs tensorboard; install it with pip install 'reelcache[tensorboard]'"
            )
        self.run = run
        self._writer: Any = None

    def before_epoch(self, epoch: int) -> None:
        """Open the files: what a stopped run wrote of this epoch and later ones is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            self._writer = SummaryWriter(str(self.run / FOLDER), purge_step=epoch + 1)

    def after_epoch(self, line: Mapping[str, Any]) -> bool:
        """Write them out: whoever looks on sees each epoch."""
        for name, value in line.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, line["epoch"])
        self._writer.flush()
        return False
