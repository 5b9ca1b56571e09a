"""The whole of `prep build-shards`, start-up and hashing included, against processes that only decode. Wall time.

    python benchmarks/whole_build.py videos.csv              # 2,500 files, 3 repeats: some 15 minutes
    python benchmarks/whole_build.py videos.csv --files 300 --repeats 1

The files are cut from the videos by stream copy: of each video a copy, one without its last packet, one without
its last two, … so that no two have the same bytes. Two bare processes (start, import, decode half of the files
each with our decoder, forget the frames) alternate with `prep build-shards --workers 2` as a user runs it, and one
bare process with `--workers 1`. Ratios are taken repeat by repeat. What two bare processes gain over one is all
that this machine has to give.

Last result, 2026-11-23: the build has 0.92 of the speed of two bare processes (0.86 to 0.93), two workers 1.81 ×
one (1.81 to 1.86); two bare processes 1.90 × one.
"""

import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import click
from av.video.stream import VideoStream

from pipeline.sources import Video, list_videos

BARE = """
import sys
from pipeline.decode import get_decoder
from pipeline.recipe import Recipe
decoder, recipe = get_decoder("pyav"), Recipe()
for path in sys.stdin.read().splitlines():
    list(decoder.frames(path, recipe))
"""
PREP = "from pipeline.cli import main; main()"


def cut(videos: list[Video], files: int, folder: Path) -> tuple[Path, list[str]]:
    """`files` distinct files and a CSV that names them, with the labels and groups of their videos."""
    copies = -(-files // len(videos))
    rows: list[tuple[str, str, str]] = []
    for number, video in enumerate(videos):
        for dropped in range(copies):
            path = folder / f"{number:04d}-{dropped:02d}.mp4"
            if len(rows) < files and copy_video(video.path, path, dropped):
                rows.append((path.name, video.label, video.group))
    source = folder / "videos.csv"
    with source.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "group"), *rows])
    return source, [str(folder / name) for name, _, _ in rows]


def copy_video(source: str, copy: Path, dropped: int) -> bool:
    """The video stream as it is, without its last `dropped` packets; False where that would leave nothing."""
    with av.open(source) as read:
        stream = read.streams.best("video")
        assert isinstance(stream, VideoStream)
        packets = [packet for packet in read.demux(stream) if packet.size]
        packets = packets[: len(packets) - dropped]
        if not packets:
            return False
        with av.open(str(copy), "w") as written:
            target = written.add_stream_from_template(stream)
            for packet in packets:
                packet.stream = target
                written.mux(packet)
    return True


def decode_bare(paths: list[str], processes: int) -> None:
    """Decode the files in so many processes, from their start to their end."""
    running = []
    for number in range(processes):
        process = subprocess.Popen([sys.executable, "-c", BARE], stdin=subprocess.PIPE, text=True)
        assert process.stdin is not None
        process.stdin.write("\n".join(paths[number::processes]))
        process.stdin.close()
        running.append(process)
    codes = [process.wait() for process in running]
    if any(codes):
        raise click.ClickException("a bare decoding process failed")


def build(source: Path, out: Path, workers: int) -> None:
    """`prep build-shards` into a new set."""
    command = ["build-shards", str(source), "--out", str(out), "--workers", str(workers), "--json", "--overwrite"]
    done = subprocess.run([sys.executable, "-c", PREP, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(done.stderr)
    rejected = json.loads(done.stdout)["rejected"]
    if rejected:
        raise click.ClickException(f"{rejected} files were rejected: the two sides would not do the same work")


def seconds(work: Callable[[], None]) -> float:
    """How long it takes by the clock on the wall."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@click.command()
@click.argument("videos", type=click.Path(path_type=Path, exists=True))
@click.option("--files", default=2500, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(videos: Path, files: int, repeats: int, as_json: bool) -> None:
    """Print wall times, and the ratios that are promised."""
    with tempfile.TemporaryDirectory() as folder:
        source, paths = cut(list_videos(videos), files, Path(folder))
        out = Path(folder) / "set"
        methods: dict[str, Callable[[], None]] = {
            "2 bare processes": lambda: decode_bare(paths, 2),
            "--workers 2": lambda: build(source, out, 2),
            "1 bare process": lambda: decode_bare(paths, 1),
            "--workers 1": lambda: build(source, out, 1),
        }
        taken: dict[str, list[float]] = {name: [] for name in methods}
        for _ in range(repeats):
            for name, work in methods.items():
                taken[name].append(seconds(work))
    compared = {
        "build of two bare processes": ("2 bare processes", "--workers 2"),
        "two workers over one": ("--workers 1", "--workers 2"),
        "two bare processes over one": ("1 bare process", "2 bare processes"),
    }
    ratios = {
        what: sorted(round(a / b, 3) for a, b in zip(taken[slower], taken[faster], strict=True))
        for what, (slower, faster) in compared.items()
    }
    if as_json:
        print(json.dumps({"files": len(paths), "seconds": taken, "ratios": ratios}, indent=2))
        return
    print(f"{len(paths)} files, {repeats} interleaved repeats")
    for name, times in taken.items():
        print(f"{name:18}{statistics.median(times):8.1f} s")
    for what, values in ratios.items():
        print(f"{what}: {statistics.median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})")


if __name__ == "__main__":
    main()
