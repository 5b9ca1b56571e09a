"""Decoders: a video file to the frames that a recipe keeps. Adding one: one file here, one line in DECODERS."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DecodeError, UserError
from pipeline.recipe import Recipe


@dataclass(frozen=True)
class Frame:
    """One kept frame: uint8 `pixels` [H, W, 3] RGB, shown from `pts` · `time_base` seconds on."""

    pts: int
    time_base: Fraction
    pixels: NDArray[np.uint8]


class Decoder(Protocol):
    """What every decoder does, by the contract of docs/format.md."""

    def frames(self, path: str, recipe: Recipe) -> Iterator[Frame]:
        """The frame displayed at t0 + k/fps for k = 0, 1, …, scaled to the recipe; memory stays flat.

        Raises `DecodeError` with a reason, possibly after some frames.
        """
        ...

    def count(self, path: str, recipe: Recipe) -> int:
        """How many frames `frames` would give, from the container alone where it tells; nothing is decoded then.

        Raises `DecodeError`.
        """
        ...

    def version(self) -> str:
        """Name and version of the library that decodes, kept with every sample."""
        ...


__all__ = ["DECODERS", "DecodeError", "Decoder", "Frame", "get_decoder"]

# Imported on first use: a worker loads one decoder, `--help` none.
DECODERS = {
    "pyav": "pipeline.decode.pyav:PyAV",
    "opencv": "pipeline.decode.opencv:OpenCV",
}


def get_decoder(name: str) -> Decoder:
    """The decoder of that name. Raises `UserError` for an unknown one."""
    if name not in DECODERS:
        raise UserError(f"no decoder is called {name!r}; there are {', '.join(DECODERS)}")
    module, _, cls = DECODERS[name].partition(":")
    decoder: Decoder = getattr(import_module(module), cls)()
    return decoder
