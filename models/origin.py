"""What a weights file of ours says of the model in it, so that it is known wherever it is copied to."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

OURS = "reelcache"  # our format, and the one key of its metadata: the order of several would not be kept
Grid = tuple[int, int, int]  # time steps, rows, columns


@dataclass(frozen=True)
class Lesson:
    """Videos that weights learnt from: what a run with `fold` (`k/K`; None: no folds) trains on, of the shard set
    that `digest` names, empty where nobody wrote it down; `leave_out` were not. `labels`: theirs were learnt, not
    the frames alone."""

    digest: str
    fold: str | None = None
    labels: bool = True
    leave_out: tuple[str, ...] = ()


UNKNOWN = Lesson("")  # what weights learnt that do not say it


@dataclass(frozen=True)
class Origin:
    """The family's name in MODELS and its options, the normalisation of RGB in [0, 1] that it was trained on, and
    the grid that its tokens lie on, None for a family without tokens.

    `learnt`: what it learnt from, and what the weights that it started from did. `labels`: what the rows of its
    head's last layer stand for, None where there is no such or nobody wrote it down. `input`: what it was shown
    of a clip, as `train.inputs.INPUTS` names it, None where nobody wrote it down.
    """

    family: str
    options: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    grid: Grid | None = None
    learnt: tuple[Lesson, ...] = (UNKNOWN,)
    labels: tuple[str, ...] | None = None
    input: str | None = None

    def as_metadata(self) -> dict[str, str]:
        """For the metadata of a safetensors file."""
        return {OURS: json.dumps(asdict(self))}


def read_origin(path: Path) -> Origin | None:
    """What the file says of itself; None where it is none of ours. Raises `ValueError` where that is damaged."""
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(OURS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if text is None:
        return None
    try:
        return _parse(json.loads(text))
    # RecursionError: JSON that is nested too deep; OverflowError: an infinity
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{path}: its metadata cannot be read: {error!r}") from error


def _parse(told: dict[str, Any]) -> Origin:
    """What older releases did not write is as if nobody knew it."""
    grid = None if told["grid"] is None else (int(told["grid"][0]), int(told["grid"][1]), int(told["grid"][2]))
    learnt = parse_lessons(told.get("learnt"))
    labels = None if told.get("labels") is None else tuple(map(str, told["labels"]))
    rest = learnt, labels, None if told.get("input") is None else str(told["input"])
    return Origin(told["family"], told["options"], tuple(told["mean"]), tuple(told["std"]), grid, *rest)


def parse_lessons(told: Any) -> tuple[Lesson, ...]:
    """From JSON; None where nobody wrote them down. Raises `ValueError` for anything else, or `TypeError`."""
    if told is None:
        return (UNKNOWN,)
    lessons = tuple(Lesson(**{**one, "leave_out": tuple(one.get("leave_out", ()))}) for one in told)
    for lesson in lessons:
        kinds = type(lesson.digest), type(lesson.fold), type(lesson.labels)
        if kinds not in ((str, str, bool), (str, type(None), bool)):
            raise ValueError(f"{lesson} does not say what was learnt")
    return lessons
