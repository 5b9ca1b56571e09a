"""What every model family is: a module from clips to logits that also says how it wants to be trained."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from models.origin import Grid, Origin


class UnfitClips(ValueError):
    """A family cannot be made for clips of so many frames, or frames of that size."""


class Family(nn.Module):
    """Base of all families. `forward` maps float clips [B, T, C, H, W] to logits [B, K].

    What a family's own docstring says up to its first colon is what `train models --json` tells about it.
    """

    source: ClassVar[str] = ""  # the paper: authors, year, arXiv number
    grid: Grid | None = None  # what its tokens lie on, where it has any

    def stages(self) -> Sequence[nn.Module | nn.Parameter]:
        """The model from input to output, each parameter in exactly one stage.

        Layer-wise decay trains stage i of n at the rate lr · decay^(n-1-i): what sees the pixels moves least.
        """
        raise NotImplementedError

    def undecayed(self) -> set[nn.Parameter]:
        """Parameters that weight decay leaves alone: biases and norm layers, and what a family adds to them."""
        return {parameter for parameter in self.parameters() if parameter.ndim <= 1}

    def mend(self, name: str, foreign: Tensor, origin: Origin | None) -> Tensor | None:  # noqa: ARG002 - for families to use
        """The foreign tensor in the shape of parameter `name`, or None where that cannot be. `origin`: what it is
        from, where it is ours."""
        return None

    def forward(self, clips: Tensor) -> Tensor:
        """[B, T, C, H, W] → logits [B, K]. Raises `ValueError` for clips it was not made for."""
        raise NotImplementedError
