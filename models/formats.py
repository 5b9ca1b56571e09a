"""What a foreign checkpoint format is: how to know it, how to rename it, and the pixels it was trained on."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

LEFT_OUT = "left_out."  # put before the name of a tensor that must not be taken: no model has such a name


@dataclass(frozen=True)
class Format:
    """A checkpoint format of other people.

    `recognises` judges by the key names alone; `convert` renames the tensors to our names, and loses none that
    ought to be reported. `families` are the
    names in MODELS that take it. `mean` and `std`: the normalisation of RGB in [0, 1] that the weights expect.
    """

    name: str
    recognises: Callable[[set[str]], bool]
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    families: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
