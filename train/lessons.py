"""What weights say that they have learnt from (`models.origin.Lesson`), back to the first of their ancestors."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from models.origin import Lesson, read_origin
from models.weights import weights_file
from pipeline.console import counted
from pipeline.errors import UserError
from pipeline.shards.index import ShardSet
from pipeline.summary import digest
from train.folds import train_and_val


def learnt_videos(shard_set: ShardSet, lessons: Iterable[Lesson], *, chosen_by: bool = False) -> dict[str, bool]:
    """The videos of the set that were learnt, each with whether its label was. `chosen_by`: with those that a best
    epoch was chosen by. What was learnt from other sets is left out. Raises `UserError`."""
    known, found = digest(shard_set), dict[str, bool]()
    for lesson in lessons:
        if lesson.digest == known:
            train, val = train_and_val(shard_set, lesson.fold, lesson.leave_out)
            for index in [train, val] if chosen_by and val is not None else [train]:
                found |= {video: found.get(video, False) or lesson.labels for video in index.videos}
    return found


def lessons_in(weights: Path) -> tuple[Lesson, ...]:
    """What the weights of a file, or of a run's folder, have learnt from; none where they are other people's.
    Raises `UserError`."""
    try:
        origin = read_origin(weights_file(weights))
    except ValueError as error:
        raise UserError(f"--weights {error}") from error
    return origin.learnt if origin else ()


def unknown_lessons(lessons: Iterable[Lesson], *known: ShardSet) -> list[str]:
    """What was learnt that may hold the sets' videos or not: names of other sets' digests, once each."""
    digests = {digest(shard_set) for shard_set in known}
    others = (lesson.digest for lesson in lessons if lesson.digest not in digests)
    return list(dict.fromkeys(f"the set {other}" if other else "a set that it does not name" for other in others))


def cautions(metrics: Mapping[str, Any]) -> list[str]:
    """What makes the numbers of `train.evaluate` too good, or may."""
    leaks, told = metrics["leaks"], []
    if metrics["chose_epoch"]:
        told.append("chose the epoch of these weights, so the scores flatter; --checkpoint last was not chosen")
    if not leaks["checked"]:
        return [*told, f"leaks were not looked for: {leaks['reason']}"]
    if leaks["changed"]:
        told.append("the set has changed since; what was learnt of it is known by digests that the run has kept")
    if leaks["count"]:
        told.append(f"{leaks['count']} of its videos, groups or copies were learnt; this is no test score")
    if leaks["namesakes"]:
        first = leaks["namesakes"][0]
        told.append(
            f"{counted(len(leaks['namesakes']), 'group')} of it, the first is {first}, "
            "has the name of one that was learnt from another set: of the same recording?"
        )
    if leaks["unknown"]:
        told.append(f"the run or what it started from {tell_unknown(leaks['unknown'])}")
    return told


def tell_unknown(unknown: list[str]) -> str:
    """A warning of them."""
    return f"has learnt from {', '.join(unknown)}: whether those had copies of what is held out here is unknown"
