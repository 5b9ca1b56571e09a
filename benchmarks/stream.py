"""Loading against its peers: the same clips, the same batch size, each loader at its best number of workers.

    make bench-stream VIDEOS=videos.csv                # makes .venv-loaders, too; or a folder of <label>/*.mp4
    python benchmarks/stream.py videos.csv --folder scratch --gigabytes 4 --rounds 5
    python benchmarks/stream.py videos.csv --folder scratch --prepare                # writes the files only
    python benchmarks/stream.py videos.csv --folder scratch --only "ours zstd" --only "litdata zstd"

All videos are built into shards once, cut into clips of 16 frames, and these repeated up to `--gigabytes`; every
loader gets them in its own form (`benchmarks/loaders.py`; `webdataset` reads our raw shards). Each loader has a
process of its own, peers in the environment of `--peers`. They take turns, an epoch each, on files that are read
into the page cache first; the median of the rounds is quoted, with the least and the most. Ratios are taken round
by round. The limit is a bare NumPy gather from a mapped array into a reused buffer; that of a codec, its decoder
alone on two threads over our shards in order. The workers of ours are threads,
beside the loop's own, which helps while it waits for a batch.

Then: an epoch of raw shards that are on disk alone, against reading their bytes from end to end; and every n-th
video decoded on the fly by decord2 in a `DataLoader`. Asks for about 8 times `--gigabytes` of disk.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from loaders import FRAMES, READ, WRITE
from msgspec.structs import replace

from pipeline.driver import Wanted, build_set
from pipeline.recipe import Recipe, recipe_text
from pipeline.shards import get_format
from pipeline.shards.folder import measure
from pipeline.shards.index import read_set
from pipeline.shards.sidecar import Sample, Sidecar
from pipeline.sources import list_videos

ROOT = Path(__file__).parents[1]
PER_SHARD = 128
OURS = {
    "ours": Recipe(),
    "ours zarr": Recipe(format="zarr"),
    "ours zstd": Recipe(codec="zstd"),
    "ours jpeg": Recipe(codec="jpeg"),
}
STANDS = {  # reads another's files
    "webdataset": "ours",
    "limit zstd": "ours zstd",
    "limit jpeg": "ours jpeg",
}
HERE = {"limit", *OURS, "limit zstd", "limit jpeg"}  # run in this Python
CLIPS_ALONE = {"limit", "map-style", "map-style, 2 workers", "decord2"}  # need no form of their own
NO_WORKERS = {"limit"}
TWO_WORKERS = {"ours zstd", "ours jpeg", "decord2", "map-style, 2 workers", "limit zstd", "limit jpeg"}
AGAINST = {  # what is promised of ours, by whom it is compared with
    "ours": ("limit", "litdata", "webdataset", "mosaic", "map-style", "map-style, 2 workers", "decord2"),
    "ours zarr": ("limit",),
    "ours zstd": ("limit zstd", "litdata zstd", "webdataset zstd"),
    "ours jpeg": ("limit jpeg", "litdata jpeg", "webdataset jpeg", "mosaic jpeg"),
}


class Epoch(NamedTuple):
    """What one loader did in one round."""

    clips: int
    seconds: float
    checksum: int


class Contender:
    """A process that loads epochs. `missing` says why it cannot."""

    def __init__(self, name: str, python: str, folder: Path, workers: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **({"PYTHONPATH": str(ROOT)} if name in HERE else {})}
        self.folder, self.workers = folder, workers
        self.process = subprocess.Popen(
            [python, str(ROOT / "benchmarks" / "loaders.py"), "read", name, str(folder), str(workers)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        self.missing: str = self._answer().get("missing", "")

    def epoch(self) -> Epoch:
        """One epoch on warm files. Raises `RuntimeError` where the loader fails."""
        warm(self.folder)
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        said = self._answer()
        if "missing" in said:
            raise RuntimeError(said["missing"])
        return Epoch(**said)

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = next((line for line in self.process.stdout if line.startswith("{")), "")  # litdata prints advice
        answer: dict[str, Any] = json.loads(line) if line else {"missing": "its process ended"}
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def files_of(folder: Path) -> list[Path]:
    """What a loader reads: its own files, or the clips alone."""
    clips = folder / "clips.npy"
    return [clips] if clips.exists() else sorted(path for path in folder.rglob("*") if path.is_file())


def warm(folder: Path) -> float:
    """Read all files from end to end into the page cache; bytes a second."""
    began, size, room = time.perf_counter(), 0, bytearray(1 << 22)
    for path in files_of(folder):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(room):
                size += count
    return size / (time.perf_counter() - began)


def evict(folder: Path) -> None:
    """Drop the files from the page cache; they must not be mapped anywhere."""
    os.sync()
    for path in files_of(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make_clips(videos: Path, folder: Path, gigabytes: float) -> None:
    """`clips.npy` [N, 16, 112, 112, 3]: every clip of every video, over and over, in a seeded order."""
    if not (folder / "built" / "recipe.json").exists():
        build_set(Wanted(videos, Recipe()), folder / "built")
    clips = []
    shard_set = read_set(folder / "built")
    for sidecar in shard_set.sidecars:
        with get_format("webdataset").open(folder / "built" / sidecar.shard, shard_set.recipe) as reader:
            for sample in sidecar.samples:
                frames = reader.frames(sample)
                clips += [np.array(frames[at : at + FRAMES]) for at in range(0, len(frames) - FRAMES + 1, FRAMES)]
    count = int(gigabytes * 1e9 / clips[0].nbytes) + 1
    order = np.random.default_rng(0).permutation(count) % len(clips)
    made = folder / "clips.part.npy"
    array = np.lib.format.open_memmap(made, "w+", np.uint8, (count, *clips[0].shape))
    for place, number in enumerate(order):
        array[place] = clips[number]
    array.flush()
    made.rename(folder / "clips.npy")


def write_ours(folder: Path, out: Path, recipe: Recipe) -> None:
    """The clips as a set of ours, each a sample; by the writers that a build uses."""
    clips, form = np.load(folder / "clips.npy", mmap_mode="r"), get_format(recipe.format)
    out.mkdir(parents=True)
    (out / "recipe.json").write_text(recipe_text(recipe))
    for name, text in form.around(recipe).items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(text)
    buckets = -(-len(clips) // PER_SHARD)
    for bucket in range(buckets):
        stem = f"train-{bucket:06d}"
        writer = form.create(out / form.name(stem), recipe)
        samples = []
        for number in range(bucket * PER_SHARD, min((bucket + 1) * PER_SHARD, len(clips))):
            for frame in np.array(clips[number]):
                writer.frame(frame)
            key = f"{number:08d}"
            samples.append(Sample(key, key, "all", key, key, FRAMES, *writer.finish(key, {"label": "all"})))
        writer.close()
        summed = tuple(replace(sample, crc32c=writer.checksums(sample)) for sample in samples)
        size, sha256 = measure(out / form.name(stem))
        about = Sidecar(form.name(stem), recipe.fingerprint, "train", bucket, buckets, size, sha256, summed, ())
        (out / f"{stem}.json").write_text(about.text())


def prepare(name: str, folder: Path, python: str) -> tuple[Path, str]:
    """Where the loader's form of the clips stands, made if need be; and why it cannot be made."""
    if name in CLIPS_ALONE:
        return folder, ""
    name = STANDS.get(name, name)
    out = folder / name.replace(" ", "-")
    if (out / ".whole").exists():
        return out, ""
    shutil.rmtree(out, ignore_errors=True)
    if name in OURS:
        write_ours(folder, out, OURS[name])
    elif name in WRITE:
        command = [python, str(ROOT / "benchmarks" / "loaders.py"), "write", name, str(folder), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return out, (done.stderr.strip().splitlines() or ["it failed"])[-1]
    (out / ".whole").touch()
    return out, ""


def best_contender(name: str, python: str, folder: Path, stack: ExitStack) -> Contender:
    """The loader with the number of workers with which its second epoch is fastest."""
    best: tuple[float, Contender] | None = None
    none, two = name in NO_WORKERS, name in TWO_WORKERS
    for workers in (0,) if none else (2,) if two else (1, 2) if name in OURS else (0, 1, 2):
        contender = Contender(name, python, folder, workers)
        stack.callback(contender.close)
        try:
            seconds = contender.missing or [contender.epoch() for _ in range(2)][1].seconds
        except RuntimeError as error:
            contender.missing, seconds = str(error), ""
        if isinstance(seconds, float) and (best is None or seconds < best[0]):
            if best:
                best[1].close()
            best = seconds, contender
        else:
            contender.close()
            failed = contender
    return best[1] if best else failed


def speed(epoch: Epoch) -> float:
    """Clips a second."""
    return epoch.clips / epoch.seconds


def middle(values: list[float]) -> list[float]:
    """Median, least and most."""
    return [round(value, 2) for value in (statistics.median(values), min(values), max(values))]


def cold(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Bytes a second of our raw shards from disk: an epoch, against reading the files from end to end."""
    found: dict[str, list[float]] = {"read": [], "epoch": []}
    for _ in range(rounds):
        evict(folder)
        found["read"].append(warm(folder) / 1e6)
        evict(folder)
        contender = Contender("ours", sys.executable, folder, 0)
        contender.folder = Path(os.devnull)  # nothing to warm
        found["epoch"].append(speed(contender.epoch()) * FRAMES * 112 * 112 * 3 / 1e6)
        contender.close()
    return {name: middle(values) for name, values in found.items()}


def print_report(found: dict[str, Any]) -> None:
    """The tables in plain text."""
    print(f"{'':20}{'workers':>8}{'clips/s':>12}   (least to most)      same frames")
    for name, row in found["loaders"].items():
        half, low, high = row["clips_per_second"]
        print(f"{name:20}{row['workers']:>8}{half:>12.0f}   ({low:.0f} to {high:.0f})      {row['same_frames']}")
    for name, reason in found["missing"].items():
        print(f"{name:20}not measured: {reason}")
    for name, (half, low, high) in found["ratios"].items():
        print(f"{name}: {half:.2f} ({low:.2f} to {high:.2f})")
    if found["cold"]:
        print("cold, MB/s: " + ", ".join(f"{name} {value[0]:.0f}" for name, value in found["cold"].items()))


def contest(there: dict[str, Contender], rounds: int) -> tuple[dict[str, list[Epoch]], dict[str, str]]:
    """An epoch of every loader in every round, in turn; and those that broke."""
    epochs: dict[str, list[Epoch]] = {name: [] for name in there}
    broken: dict[str, str] = {}
    for _ in range(rounds):
        for name, contender in there.items():
            if name not in broken:
                try:
                    epochs[name].append(contender.epoch())
                except RuntimeError as error:
                    broken[name] = str(error)
    return {name: taken for name, taken in epochs.items() if name not in broken}, broken


@click.command()
@click.argument("videos", type=click.Path(path_type=Path, exists=True))
@click.option("--folder", type=click.Path(path_type=Path), required=True, help="Scratch; kept, and used again.")
@click.option("--gigabytes", default=4.0, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--every", default=3, show_default=True, help="decord2 decodes every n-th video.")
@click.option("--only", multiple=True, type=click.Choice(list(READ)), help="These loaders; all, if none is given.")
@click.option("--peers", default=".venv-loaders/bin/python", show_default=True)
@click.option("--prepare", "prepare_only", is_flag=True, help="Write every loader's files, and measure nothing.")
@click.option("--json", "as_json", is_flag=True)
def main(
    videos: Path, folder: Path, gigabytes: float, rounds: int, every: int, only: tuple[str, ...], peers: str,
    prepare_only: bool, as_json: bool,
) -> None:  # fmt: skip
    """Print clips a second of every loader, and how many times as fast ours are."""
    python = shutil.which(peers) or sys.executable
    if python == sys.executable:
        print(f"{peers} is not there (make bench-stream makes it): peers run in this Python", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    (folder / "videos.json").write_text(json.dumps([str(video.path) for video in list_videos(videos)[::every]]))
    if not (folder / "clips.npy").exists():
        make_clips(videos, folder, gigabytes)
    missing, there = {}, {}
    with ExitStack() as stack:
        for name in only or READ:
            runs_in = sys.executable if name in HERE else python
            place, reason = prepare(name, folder, runs_in)
            if not reason and not prepare_only:
                contender = best_contender(name, runs_in, place, stack)
                reason = contender.missing
            if reason:
                missing[name] = reason
            elif not prepare_only:
                there[name] = contender
            print(f"{name}: {reason or 'ready'}", file=sys.stderr)
        epochs, broken = contest(there, rounds)
    if prepare_only:
        return
    found = {
        **report(there, epochs),
        "missing": {**missing, **broken},
        "cold": cold(folder / "ours", min(rounds, 3)) if "ours" in epochs else {},
    }
    if as_json:
        print(json.dumps({"gigabytes": gigabytes, "rounds": rounds, **found}, indent=2))
    else:
        print_report(found)


def report(there: dict[str, Contender], epochs: dict[str, list[Epoch]]) -> dict[str, Any]:
    """Rows of the table, and the ratios."""
    limits = {name: taken[0].checksum for name, taken in epochs.items() if name.startswith("limit")}
    lossy = limits.pop("limit jpeg", None)  # other decoders of JPEG may round otherwise
    truth = next(iter(limits.values()), None)
    rows = {
        name: {
            "workers": there[name].workers,
            "clips_per_second": middle([speed(epoch) for epoch in taken]),
            "same_frames": all(epoch.checksum == (lossy if name.endswith("jpeg") else truth) for epoch in taken),
        }
        for name, taken in epochs.items()
    }
    ratios = {
        f"{ours} / {other}": middle(
            [speed(a) / speed(b) for a, b in zip(epochs[ours], epochs[other], strict=True)]
        )
        for ours, others in AGAINST.items()
        for other in others
        if ours in epochs and other in epochs
    }
    return {"loaders": rows, "ratios": ratios}


if __name__ == "__main__":
    main()
