"""Ctrl-C and SIGTERM end a run after the step that is being made, with all saved; and when to save besides."""

import signal
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any, Self

from pipeline.errors import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A run was asked to stop by the signal `number`, and has saved all that it needs to go on."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(where)
        self.number = number or signal.SIGTERM  # another rank was asked

    def __reduce__(self) -> tuple[type[Self], tuple[int, str]]:
        """From a worker process to the one that waits for it."""
        return type(self), (self.number, str(self))


class StopSignals:
    """Within it, the first of `SIGNALS` is noted in `number`; a second one acts as ever.

    In threads other than the main one there are no signals, and nothing is noted.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()


@dataclass(frozen=True)
class Every:
    """So many steps or seconds, whichever is given."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Every":
        """`500` steps, or `10min`. Raises `UserError`."""
        number, minutes = text.removesuffix("min"), text.endswith("min")
        try:
            if minutes and float(number) >= 0:
                return cls(seconds=60 * float(number))
            if not minutes and int(number) > 0:
                return cls(steps=int(number))
        except ValueError:
            pass
        raise UserError(f"--checkpoint-every {text}: must be a number of steps, such as 500, or minutes: 10min")


TEN_MINUTES = Every(seconds=600)


class Clock:
    """Says when a checkpoint is due."""

    def __init__(self, every: Every) -> None:
        self._every = every
        self.restart()

    def restart(self) -> None:
        """A checkpoint was saved."""
        self._steps, self._began = 0, time.monotonic()

    def due(self) -> bool:
        """To be asked once after each step."""
        self._steps += 1
        if self._every.steps is not None:
            return self._steps >= self._every.steps
        return self._every.seconds is not None and time.monotonic() - self._began >= self._every.seconds
