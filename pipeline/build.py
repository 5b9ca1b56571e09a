"""One task → one committed shard. Runs on a worker, knows no Dask; a bad video never ends a build."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec

from pipeline.decode import DecodeError, Frame, get_decoder
from pipeline.decode.apart import frames_apart
from pipeline.decode.truncation import truncation
from pipeline.errors import UserError
from pipeline.places import local_file
from pipeline.plan import Item, ShardTask, sample_key
from pipeline.recipe import Recipe
from pipeline.report import Report
from pipeline.shards import ShardWriter, get_format
from pipeline.shards.builders import is_held, lease
from pipeline.shards.directory import Reuse, commit, standing_shard
from pipeline.shards.folder import Folder, file_sha256, get_folder, measure
from pipeline.shards.frame_cache import Fresh, frame_cache
from pipeline.shards.sidecar import Broken, Sample, Sidecar
from pipeline.sources import Video

SLOWEST_DISK = 4_000_000  # bytes a second: a large file may be read so slowly before its first frame comes


@dataclass(frozen=True)
class Built:
    """What became of one task: how many videos were decoded, copied, and rejected (those already known too), and
    why the team's cache was of no use, if so."""

    name: str
    decoded: int
    copied: int
    rejected: int
    trouble: str | None = None


class Elsewhere(Enum):
    """Another builder has the shard."""

    IN_HAND = "in hand"
    DONE = "done"


@dataclass
class _Part:
    """What is known of the sample in the making: consecutive kept frames of one video, at most `max_frames`.

    `first`: the slot of its first frame, which was displayed at t0 + first/fps; `index`: which of the video's
    parts it is.
    """

    index: int = 0
    first: int = 0
    time_base: Fraction = Fraction(1)
    pts: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """What all tasks of a build have in common: the set at `root`, its recipe, the token of the `builder` (""; it
    is alone), and the `cache` of the team, if any.

    With a `time_limit` each video is decoded in a process of its own, and may give no frame for so many seconds.
    """

    root: str
    recipe: Recipe
    builder: str = ""
    cache: str | None = None
    time_limit: float | None = None


def build_shard(task: ShardTask, report: Report, job: Job) -> Built | Elsewhere:
    """Write the task's shard and its sidecar into the set, whole or not at all, unless another builder does."""
    folder = get_folder(job.root, probe=False)  # the driver has
    with lease(folder, task.name, job.builder) as ours:
        if not ours:
            return Elsewhere.IN_HAND
        report(0)
        if job.builder and task.is_done(standing_shard(folder, job.recipe, task.name)):
            report(len(task.videos))
            return Elsewhere.DONE
        return _make(task, report, folder, job)


def _make(task: ShardTask, report: Report, folder: Folder, job: Job) -> Built | Elsewhere:
    shard_format = get_format(job.recipe.format)
    name = shard_format.name(task.name)
    with folder.making(name) as made, ExitStack() as copies:
        writer = shard_format.create(made, job.recipe)
        filling = _Filling(task, _Standing(folder, copies, report), job, writer, report)
        for item in task.items:
            filling.add(item)
            report(1)
        filling.writer.close()
        size, sha256 = measure(made, report)
        sidecar = Sidecar(
            shard=name,
            fingerprint=job.recipe.fingerprint,
            split=task.split,
            bucket=task.bucket,
            buckets=task.buckets,
            bytes=size,
            sha256=sha256,
            samples=tuple(
                msgspec.structs.replace(item, crc32c=writer.checksums(item)) for item in filling.samples
            ),
            rejected=tuple(filling.rejected),
            damaged=tuple(filling.damaged),
        )
        if not is_held(folder, task.name, job.builder):
            return Elsewhere.IN_HAND
        commit(folder, made, sidecar, report)
        if filling.cache and filling.fresh:
            shard = made if made.exists() else copies.enter_context(folder.local(name, report))
            filling.cache.keep(shard, filling.fresh, report)
    decoded = len(task.items) - filling.copied - len(filling.rejected)
    trouble = filling.cache.trouble if filling.cache else None
    return Built(task.name, decoded, filling.copied, len(filling.rejected), trouble)


class _Standing:
    """Shards that frames are copied from: each fetched and checked once, and kept here as long as `copies` is."""

    def __init__(self, folder: Folder, copies: ExitStack, report: Report) -> None:
        self._folder, self._copies, self._report = folder, copies, report
        self._paths: dict[str, Path | None] = {}

    def path(self, reuse: Reuse) -> Path | None:
        """The shard on this machine. None where it is gone or has not the bytes that its sidecar promised: damage
        ends here."""
        if reuse.file not in self._paths:
            try:
                path = self._copies.enter_context(self._folder.local(reuse.file, self._report))
                sound = measure(path, self._report)[1] == reuse.sha256
            except OSError:
                sound = False
            self._paths[reuse.file] = path if sound else None
        return self._paths[reuse.file]


class _Filling:
    """A shard in the making: its writer, and what went in so far."""

    def __init__(
        self,
        task: ShardTask,
        standing: _Standing,
        job: Job,
        writer: ShardWriter,
        report: Report,
    ) -> None:
        self.split, self.standing, self.recipe, self.writer = task.split, standing, job.recipe, writer
        self.report, self.time_limit = report, job.time_limit
        self.decoder = get_decoder(job.recipe.decoder)
        self.cache = frame_cache(job.cache, job.recipe) if job.cache else None
        self.fresh: list[Fresh] = []  # what was decoded whole, for the cache
        self.samples: list[Sample] = []
        self.rejected: list[Broken] = []
        self.damaged: list[Broken] = []
        self.copied = 0

    def add(self, item: Item) -> None:
        """One video: copied where its frames stand and are sound, else decoded, else rejected."""
        if item.reuse and self._copy(item, item.reuse):
            self.copied += 1
        elif item.rejected:
            self.rejected.append(_broken(item.video, *_about(item.rejected)))
        elif not (item.source and self._copy_cached(item.video, item.source)):
            self._decode(item.video, looked_for=item.source)

    def _copy(self, item: Item, reuse: Reuse) -> bool:
        """Frames that stand already in the set; False if they are gone."""
        path = self.standing.path(reuse)
        if path is None or not self._copy_samples(item.video, path, reuse.samples):
            return False
        if item.damaged:
            self.damaged.append(_broken(item.video, *_about(item.damaged)))
        return True

    def _copy_cached(self, video: Video, source: str) -> bool:
        """Frames that the team's cache has for these source bytes; False if it has none."""
        if self.cache is None:
            return False
        with ExitStack() as copies:
            found = self.cache.fetch(source, copies, self.report)
            if not (found and self._copy_samples(video, found[0], found[1].samples)):
                return False
        self.damaged += [_broken(video, *_about(broken)) for broken in found[1].damaged]
        self.copied += 1
        return True

    def _copy_samples(self, video: Video, path: Path, samples: tuple[Sample, ...]) -> bool:
        """A video's samples from another shard, under its present name, label and split; False if they are not
        there."""
        mark, before = self.writer.mark(), len(self.samples)
        try:
            shard_format = get_format(self.recipe.format)
            with shard_format.open(path, self.recipe) as reader:
                for index, old in enumerate(samples):
                    key = _part_key(video.id, index, len(samples))
                    names: dict[str, Any] = {
                        "key": key, "video": video.id, "label": video.label, "group": video.group,
                    }  # fmt: skip
                    meta = {**reader.meta(old), **names, "split": self.split}
                    place = self.writer.copy(key, reader, old, meta)
                    self.samples.append(msgspec.structs.replace(old, **names, **place._asdict()))
                    self.report(0)
        except (UserError, OSError):  # another builder has replaced the shard: the source still has the frames
            self.writer.rewind(mark)
            del self.samples[before:]
            return False
        return True

    def _decode(self, video: Video, looked_for: str | None) -> None:
        """`looked_for`: the SHA-256 that the cache is known not to have."""
        with ExitStack() as stack:
            try:
                path = stack.enter_context(local_file(video.path, self.report))
                size = Path(path).stat().st_size
                self.report(0, size / SLOWEST_DISK)
                source = file_sha256(path)
            except (OSError, ValueError) as error:
                reason = f"cannot be read: {getattr(error, 'strerror', None) or error}"
                self.rejected.append(_broken(video, None, reason, 0))
                return
            if source == looked_for or not self._copy_cached(video, source):
                self._decode_file(video, path, (source, size))

    def _decode_file(self, video: Video, path: str, source: tuple[str, int]) -> None:
        """`path`: the video on this machine; `source`: its SHA-256 and bytes."""
        mark, before, count = self.writer.mark(), len(self.samples), 0
        slow = source[1] / SLOWEST_DISK
        self.report(0, slow)
        reason, cut = "", None

        def until_it_breaks() -> Iterator[Frame]:
            nonlocal count, reason, cut
            try:
                for frame in self._frames(path, slow):
                    count += 1
                    self.report(0)  # still alive
                    yield frame
                cut = truncation(path, count / float(self.recipe.fps))
            except DecodeError as error:
                reason = str(error)
            except MemoryError:
                raise  # the machine's fault, not the video's
            except Exception as error:  # whatever a decoder throws at one file, the others go on
                reason = f"{type(error).__name__}: {error}"

        part = _Part()
        for frame in until_it_breaks():
            if len(part.pts) == self.recipe.max_frames:
                self._finish(video, source, part, is_only=False)
                part = _Part(part.index + 1, part.first + len(part.pts))
            self.writer.frame(frame.pixels)
            part.time_base = frame.time_base
            part.pts.append(frame.pts)
        if part.pts:
            self._finish(video, source, part, is_only=part.index == 0)
        if not reason:
            # A header may be wrong, and the frames are sound: they are kept whatever --on-corrupt says.
            damaged = _broken(video, source[0], f"{cut}; {count} frames came out", count) if cut else None
            self.damaged += [damaged] if damaged else []
            if part.pts:
                self.fresh.append((tuple(self.samples[before:]), damaged))
            return
        broken = _broken(video, source[0], reason, count)
        if self.recipe.on_corrupt == "keep" and count:
            self.damaged.append(broken)
            return
        self.writer.rewind(mark)
        del self.samples[before:]
        self.rejected.append(broken)

    def _frames(self, path: str, slow: float) -> Iterator[Frame]:
        if self.time_limit is None:
            return self.decoder.frames(path, self.recipe)
        return frames_apart(path, self.recipe, self.time_limit + slow)

    def _finish(self, video: Video, source: tuple[str, int], part: _Part, *, is_only: bool) -> None:
        key = _part_key(video.id, part.index, 1 if is_only else 2)
        place = self.writer.finish(key, self._meta(video, key, source, part))
        names = key, video.id, video.label, video.group, source[0]
        self.samples.append(Sample(*names, len(part.pts), *place))

    def _meta(self, video: Video, key: str, source: tuple[str, int], part: _Part) -> dict[str, Any]:
        """What the shard says of a sample beside its frames; docs/format.md explains each field."""
        return {
            "key": key,
            "video": video.id,
            "label": video.label,
            "group": video.group,
            "split": self.split,
            "source": {"sha256": source[0], "bytes": source[1]},
            "fps": str(self.recipe.fps),
            "first": part.first,
            "time_base": str(part.time_base),
            "pts": part.pts,
            "decoder": self.decoder.version(),
        }


def _part_key(video_id: str, index: int, parts: int) -> str:
    key = sample_key(video_id)
    return key if parts == 1 else f"{key}#{index:04d}"


def _broken(video: Video, source: str | None, reason: str, frames: int) -> Broken:
    return Broken(video.id, video.label, video.group, source, reason, frames)


def _about(broken: Broken) -> tuple[str | None, str, int]:
    return broken.source, broken.reason, broken.frames
