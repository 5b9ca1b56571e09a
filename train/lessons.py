"""What weights say that they have learnt from (`models.origin.Lesson`), back to the first of their ancestors."""

from collections.abc import Iterable
from pathlib import Path

from models.origin import Lesson, read_origin
from models.weights import weights_file
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


def tell_unknown(unknown: list[str]) -> str:
    """A warning of them."""
    return f"has learnt from {', '.join(unknown)}: whether those had copies of what is held out here is unknown"
