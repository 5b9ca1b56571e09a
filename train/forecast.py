"""How long the runs that are left will take, by the epochs that stand in the logs of all."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.report import Stage, Step
from train.report_log import read_log

BACKWARD = 3  # a step costs about three times what its forward pass does


@dataclass(frozen=True)
class Load:
    """One run: a family, in how many `epochs` it learns `trained` clips each and is judged by `judged`, what a
    clip costs forward, and its log."""

    model: str
    epochs: int
    trained: int
    judged: int
    gflops: float
    log: Path

    @property
    def work(self) -> float:
        """GFLOPs of an epoch."""
        return self.gflops * (BACKWARD * self.trained + self.judged)

    def spent(self) -> list[float]:
        """The seconds of each epoch that is done; a log tells those of training alone."""
        judging = self.judged / (BACKWARD * self.trained)
        return [line["seconds"] * (1 + judging) for line in read_log(self.log)]


def seconds_left(loads: Sequence[Load]) -> float | None:
    """One after the other; None before anything is known. A family goes on as fast as it went so far. One without
    an epoch yet is taken to make as many FLOPs a second as the others, which may be several times off."""
    spent, done, left = (defaultdict[str, float](float) for _ in range(3))
    for load in loads:
        epochs = load.spent()
        spent[load.model] += sum(epochs)
        done[load.model] += len(epochs) * load.work
        left[load.model] += max(0, load.epochs - len(epochs)) * load.work
    if not any(done.values()):
        return None
    mean = sum(spent.values()) / sum(done.values())
    return sum(work * (spent[model] / done[model] if done[model] else mean) for model, work in left.items())


@dataclass(frozen=True)
class Outlook:
    """As a text, how long it will take until all runs are done, `jobs` of them at a time. Whoever has it takes
    the load of a run that failed out of `loads`."""

    loads: list[Load]
    jobs: int

    def __str__(self) -> str:
        seconds = seconds_left(self.loads)
        if seconds is None:
            return f"how long they take is told after the first {'epoch' if self.jobs == 1 else 'run'}"
        if not seconds:
            return "nothing left to train"
        guessed = {load.model for load in self.loads} - {load.model for load in self.loads if load.spent()}
        by = f" ({len(guessed)} of the families only guessed, by their FLOPs)" if guessed else ""
        return f"about {duration(seconds / self.jobs)} to go{by}"

    def after_an_epoch(self, stage: Stage, say: Callable[[str], None]) -> Stage:
        """`stage` for the epochs of one run; tells after the first of them."""
        begun = 0

        def watched(what: str, total: int) -> Step:
            nonlocal begun
            begun += 1
            if begun == 2:
                say(f"all runs: {self}")
            return stage(what, total)

        return watched


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h` or `2.1 days`."""
    for unit, length in (("days", 86_400), ("h", 3600)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
