"""How long work tells that it is alive and how far it is: the types that workers, drivers and consoles share."""

from collections.abc import Callable
from typing import Protocol

Step = Callable[[int], None]  # called with how many more are done
Stage = Callable[[str, int], Step]  # opens a stage of the work: its name, and how many there are


class Report(Protocol):
    """What a worker calls as it goes."""

    def __call__(self, done: int, silence: float = 0.0) -> None:
        """`done` more videos are done (0: still alive), and for `silence` seconds beyond the usual limit no
        further word may come."""
        ...


def no_report(done: int, silence: float = 0.0) -> None:
    """A `Report` for callers whom nobody watches."""


def no_stage(what: str, total: int) -> Step:  # noqa: ARG001
    """For callers who watch nothing."""
    return lambda done: None  # noqa: ARG005
