"""Frames that anybody of a team has made, by the bytes that they were made from (`prep build-shards --cache`).

    <fingerprint>/recipe.json       what was asked for
    <fingerprint>/ab/ab12….tar      the frames of the video whose SHA-256 is ab12…: a shard of this video alone
    <fingerprint>/ab/ab12….json     its sidecar, written last

What stands there depends on the video's bytes and the recipe alone: key, video and group are the SHA-256, and
there is no label. Any file may be removed at any time. Anybody may write anything there: an entry is used where
its SHA-256 is right and `prep verify --deep` would find nothing in it; any other is passed over, and made again. A
cache that fails costs a warning and a decode, never a build.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TypeVar

import msgspec

from pipeline.errors import UserError
from pipeline.recipe import RECIPE_FILE, Recipe, recipe_text
from pipeline.report import Report
from pipeline.shards import get_format
from pipeline.shards.folder import get_folder, measure
from pipeline.shards.layout import check_layout
from pipeline.shards.sidecar import Broken, Sample, Sidecar, parse_sidecar
from pipeline.verify_deep import check_samples

SILENCE = 900.0  # seconds without a word, in which a file system tries again and again before it gives up
REST = 300.0  # seconds for which a cache that failed is left alone
ONLY = "train-000000"  # what a set with a single shard calls it
AT_ONCE = 8
NOBODYS = "-"  # the label of frames that belong to whoever has the same bytes

GotT = TypeVar("GotT")
Fresh = tuple[tuple[Sample, ...], Broken | None]  # a video's samples, and what is known of a break behind them


class FrameCache:
    """The cache at `place`, for one recipe. `trouble` is why it could not be used lately, if so.

    Raises `UserError` for a place that is none.
    """

    def __init__(self, place: str, recipe: Recipe) -> None:
        self._folder, self._recipe = get_folder(place, probe=False), recipe
        self._format = get_format(recipe.format)
        self._suffix = Path(self._format.name(ONLY)).suffix
        self._failed: dict[str, float] = {}
        self.trouble: str | None = None

    def begin(self) -> None:
        """Say in the cache what its frames are, and remove what killed builders left half-written."""

        def write() -> None:
            name = f"{self._recipe.fingerprint}/{RECIPE_FILE}"
            self._folder.create(name, recipe_text(self._recipe))
            self._folder.sweep()

        self._try("written", write)

    def fetch(self, source: str, copies: ExitStack, report: Report) -> tuple[Path, Sidecar] | None:
        """The shard of the video whose bytes have this SHA-256, on this machine for as long as `copies`, with its
        sidecar. None where it is missing, damaged, or cannot be had."""

        def look() -> tuple[Path, Sidecar] | None:
            report(0, SILENCE)
            name = self._name(source)
            try:
                sidecar = parse_sidecar(self._folder.read(f"{name}.json"), f"{self._folder}/{name}.json")
                path = copies.enter_context(self._folder.local(name + self._suffix, report))
                sound = measure(path, report) == (sidecar.bytes, sidecar.sha256) and self._is_of(sidecar, source)
                if sound:
                    check_layout(sidecar, self._recipe)
                    check_samples(path, sidecar, self._recipe, str)
            except (FileNotFoundError, UnicodeDecodeError, UserError):
                return None
            finally:
                report(0)
            return (path, sidecar) if sound else None

        return self._try("read", look)

    def keep(self, shard: Path, fresh: Sequence[Fresh], report: Report) -> None:
        """Put these videos there, whose samples stand in the finished `shard` on this machine."""

        def put() -> None:
            report(0, SILENCE)
            with ThreadPoolExecutor(min(AT_ONCE, self._folder.at_once), "cache") as pool:
                for _ in pool.map(lambda entry: self._put(shard, *entry), fresh):
                    report(0, SILENCE)
            report(0)

        self._try("written", put)

    def _put(self, shard: Path, samples: tuple[Sample, ...], damaged: Broken | None) -> None:
        source, stood = samples[0].source, []
        name = self._name(source) + self._suffix
        with self._folder.making(name) as made, self._format.open(shard, self._recipe) as reader:
            writer = self._format.create(made, self._recipe)
            for index, old in enumerate(samples):
                key = f"{source}#{index:04d}"
                names = {"key": key, "video": source, "label": NOBODYS, "group": source}
                place = writer.copy(key, reader, old, {**reader.meta(old), **names, "split": "train"})
                stood.append(msgspec.structs.replace(old, **names, **place._asdict()))
            writer.close()
            stood = [msgspec.structs.replace(sample, crc32c=writer.checksums(sample)) for sample in stood]
            size, sha256 = measure(made)
            breaks = (Broken(source, NOBODYS, source, source, damaged.reason, damaged.frames),) if damaged else ()
            head = self._format.name(ONLY), self._recipe.fingerprint, "train", 0, 1, size, sha256
            sidecar = Sidecar(*head, samples=tuple(stood), rejected=(), damaged=breaks)
            self._folder.put(made, name)
        self._folder.write(f"{self._name(source)}.json", sidecar.text())

    def _name(self, source: str) -> str:
        return f"{self._recipe.fingerprint}/{source[:2]}/{source}"

    def _is_of(self, sidecar: Sidecar, source: str) -> bool:
        ours = sidecar.fingerprint == self._recipe.fingerprint and len(sidecar.samples) > 0
        broken = sidecar.rejected or sidecar.damaged[1:]
        return ours and not broken and all({sample.source, sample.video} == {source} for sample in sidecar.samples)

    def _try(self, what: str, work: Callable[[], GotT]) -> GotT | None:
        """What the work gives; None, and `trouble`, where the cache fails."""
        if what in self._failed and time.monotonic() < self._failed[what] + REST:
            return None
        try:
            return work()
        except MemoryError:
            raise  # the machine's fault, not the cache's
        except Exception as error:  # each file system has exceptions of its own
            self._failed[what] = time.monotonic()
            self.trouble = f"--cache {self._folder}: cannot be {what}: {type(error).__name__}: {error}"
            return None


@cache
def frame_cache(place: str, recipe: Recipe) -> FrameCache:
    """One for all shards that a process makes: it remembers that it failed."""
    return FrameCache(place, recipe)
