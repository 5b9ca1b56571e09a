"""One task → one committed shard. Runs on a worker, knows no Dask; a bad video never ends a build."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
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
from pipeline.shards.directory import Reuse, commit
from pipeline.shards.folder import Folder, file_sha256, get_folder, measure
from pipeline.shards.sidecar import Broken, Sample, Sidecar
from pipeline.sources import Video

SLOWEST_DISK = 4_000_000  # bytes a second: a large file may be read so slowly before its first frame comes


@dataclass(frozen=True)
class Built:
    """What became of one task: how many videos were decoded, copied, and rejected (those already known too)."""

    name: str
    decoded: int
    copied: int
    rejected: int


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


def build_shard(
    task: ShardTask, report: Report, root: str, recipe: Recipe, time_limit: float | None = None
) -> Built:
    """Write the task's shard and its sidecar into the set at `root`, whole or not at all.

    With a `time_limit` each video is decoded in a process of its own, and may give no frame for so many seconds.
    """
    shard_format, folder = get_format(recipe.format), get_folder(root, probe=False)  # the driver has
    name = shard_format.name(task.name)
    with folder.making(name) as made, ExitStack() as copies:
        writer = shard_format.create(made, recipe)
        filling = _Filling(task, _Standing(folder, copies, report), recipe, writer, report, time_limit)
        for item in task.items:
            filling.add(item)
            report(1)
        filling.writer.close()
        size, sha256 = measure(made, report)
        sidecar = Sidecar(
            shard=name,
            fingerprint=recipe.fingerprint,
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
        commit(folder, made, sidecar, report)
    decoded = len(task.items) - filling.copied - len(filling.rejected)
    return Built(task.name, decoded, filling.copied, len(filling.rejected))


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
        recipe: Recipe,
        writer: ShardWriter,
        report: Report,
        time_limit: float | None,
    ) -> None:
        self.split, self.standing, self.recipe, self.writer = task.split, standing, recipe, writer
        self.report, self.time_limit = report, time_limit
        self.decoder = get_decoder(recipe.decoder)
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
        else:
            self._decode(item.video)

    def _copy(self, item: Item, reuse: Reuse) -> bool:
        """Frames that stand already, under the video's present name, label and split; False if they are gone."""
        path = self.standing.path(reuse)
        if path is None:
            return False
        video, mark, before = item.video, self.writer.mark(), len(self.samples)
        try:
            shard_format = get_format(self.recipe.format)
            with shard_format.open(path, self.recipe) as reader:
                for index, old in enumerate(reuse.samples):
                    key = _part_key(video.id, index, len(reuse.samples))
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
        if item.damaged:
            self.damaged.append(_broken(video, *_about(item.damaged)))
        return True

    def _decode(self, video: Video) -> None:
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
            if cut:
                self.damaged.append(_broken(video, source[0], f"{cut}; {count} frames came out", count))
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
