"""`train` in a process of its own, with a family of few weights besides the others, that does what WATCH says.

WATCH is JSON: `kill_at_step` or `kill_at_write` (the number of a checkpoint, killed when half of it is written);
`losses`: a file that gets the mean loss of every step.
"""

import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import models
from models.family import Family
from train import checkpoint
from train.cli import main
from train.recipes import RECIPES, TrainRecipe
from train.step import Stepper
from train.stream import Batch


class Few(Family):
    """A convolution, norm, dropout, a linear layer: what a checkpoint must get right, in a few weights."""

    source = "nobody"

    def __init__(
        self,
        *,
        num_classes: int,
        num_frames: int,  # noqa: ARG002
        size: tuple[int, int],  # noqa: ARG002
        in_channels: int = 3,
        dropout: float = 0.0,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 8, 5, stride=4)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, num_classes)

    def stages(self) -> Sequence[nn.Module | nn.Parameter]:
        """The layers."""
        return [self.conv, self.norm, self.head]

    def forward(self, clips: Tensor) -> Tensor:
        """Logits."""
        features = self.norm(self.conv(clips.flatten(0, 1))).relu().mean((2, 3))
        logits: Tensor = self.head(self.dropout(features.unflatten(0, clips.shape[:2]).mean(1)))
        return logits


def register() -> None:
    """Make the family known."""
    models.MODELS["few"] = "watched_train:Few"
    RECIPES["few"] = TrainRecipe(epochs=3, frames=4, batch_size=5, lr=0.01)


def watch(wanted: dict[str, Any]) -> None:
    """Have the run do what is wanted at its steps and writes."""
    make_step, save, written = Stepper.__call__, checkpoint.write_tensors, []

    def step(self: Stepper, batch: Batch, number: int) -> dict[str, float]:
        if number == wanted.get("kill_at_step"):
            os.kill(os.getpid(), signal.SIGKILL)
        sums = make_step(self, batch, number)
        if "losses" in wanted and self.compute.ranks.first:
            with Path(wanted["losses"]).open("a") as file:
                file.write(f"{sums['loss'] / batch.size!r}\n")
        return sums

    def write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
        if path.name == checkpoint.CHECKPOINT:
            written.append(path)
            if len(written) == wanted.get("kill_at_write"):
                path.with_name(f".{path.name}.tmp").write_bytes(b"half of it")
                os.kill(os.getpid(), signal.SIGKILL)
        save(path, tensors, metadata)

    Stepper.__call__ = step  # type: ignore[method-assign]
    checkpoint.write_tensors = write


if __name__ == "__main__":
    register()
    watch(json.loads(os.environ.get("WATCH", "{}")))
    main()
