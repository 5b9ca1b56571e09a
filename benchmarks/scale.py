"""What ten million videos cost: planning, the scheduler, the archive on disk, its index in memory.

    python benchmarks/scale.py                       # ten million; about 10 minutes and 4 GB
    python benchmarks/scale.py --videos 100000       # a minute

No video is made: the plan is the real `pipeline.plan` on made-up names, the tasks go through the real
`pipeline.cluster` to two workers that do nothing but report, the sidecars are real ones of samples that nobody
decoded. Each part runs in a process of its own, whose peak memory is VmHWM. Parts that grow with the number of
videos in proportion are measured on fewer, and the table says on how many; bytes are arithmetic.

Last result: see docs/scale.md.
"""

import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from pipeline import cluster
from pipeline.plan import ShardTask, assign_splits, plan, sample_key
from pipeline.recipe import RECIPE_FILE, Recipe, recipe_text
from pipeline.report import Report
from pipeline.shards import get_format
from pipeline.shards.directory import Standing, sidecar_name
from pipeline.shards.index import read_set
from pipeline.shards.sidecar import Sample, Sidecar, parse_sidecar
from pipeline.sources import Video, list_videos

RECIPE = Recipe()
PER_SHARD = 32
SAMPLE_BYTES = 1_885_000  # 50 frames of 112 pixels with their header and description
LABELS = [f"class_{number:03}" for number in range(400)]
# Times smaller than raw frames, measured on real clips (docs/format.md says what the codecs are).
CODECS = {"raw": 1.0, "zstd": 2.5, "jpeg": 6.8}

Figures = dict[str, float]


def made_up(count: int) -> Iterator[Video]:
    """Videos named as a large public set names them: label, id of the recording, from which second to which."""
    for number in range(count):
        label = LABELS[number % len(LABELS)]
        id_ = f"{label}/{number:08x}abc_000012_000022.mp4"
        yield Video(id_, f"/mnt/archive/videos/{id_}", label, id_)


def digest_of(video: Video) -> str:
    """A made-up SHA-256 of the video's bytes."""
    return f"{hash(video.id) & (2**64 - 1):064x}"


def memory(field: str) -> float:
    """Of this process, in GB (10^9 bytes): VmRSS now, or VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field)) / 1e9


def plan_from_nothing(count: int) -> Figures:
    """Splits and shard tasks of `count` videos; their list is there when the clock starts, and in the peak."""
    videos = list(made_up(count))
    held, began = memory("VmRSS"), time.perf_counter()
    todo = plan(assign_splits(videos, 0.2), {}, Standing(), PER_SHARD)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "videos_gb": held, "peak_gb": memory("VmHWM"), "tasks": len(todo.tasks)}


def list_from_csv(count: int) -> Figures:
    """`list_videos` of a CSV with `count` rows."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "videos.csv")
        Path(folder, "there.mp4").touch()
        rows = (f"{video.id},{video.label}\n" for video in made_up(count - 1))
        with source.open("w") as file:
            file.write("path,label\nthere.mp4,class_000\n")
            file.writelines(rows)
        held, began = memory("VmRSS"), time.perf_counter()
        list_videos(source)
        return {"seconds": time.perf_counter() - began, "peak_gb": memory("VmHWM") - held}


def add_one(count: int) -> Figures:
    """One more video than the set holds, and everything of the others known: what stands, and all digests."""
    bare = memory("VmRSS")
    videos = assign_splits(list(made_up(count)), 0.2)
    standing = Standing()
    for task in plan(videos, {}, standing, PER_SHARD).tasks:
        sidecar = sidecar_of(task)
        parsed = parse_sidecar(sidecar.text(), task.name)
        standing.shards[sidecar_name(parsed)] = parsed
        standing.learn(parsed.shard, parsed)
    videos += assign_splits([Video("class_000/new.mp4", "/mnt/archive/new.mp4", "class_000", "new")], 0.2)
    digests = {video.id: digest_of(video) for video in videos}
    began = time.perf_counter()
    todo = plan(videos, digests, standing, PER_SHARD)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "peak_gb": memory("VmHWM") - bare, "tasks": len(todo.tasks)}


def sidecar_of(task: ShardTask) -> Sidecar:
    """The sidecar that the task would leave."""
    samples = tuple(
        Sample(sample_key(v.id), v.id, v.label, v.group, digest_of(v), 50, 640 + number * SAMPLE_BYTES)
        for number, v in enumerate(task.videos)
    )
    return Sidecar(
        shard=f"{task.name}.tar",
        fingerprint=RECIPE.fingerprint,
        split=task.split,
        bucket=task.bucket,
        buckets=task.buckets,
        bytes=len(samples) * SAMPLE_BYTES,
        sha256="0" * 64,
        samples=samples,
        rejected=(),
    )


def report_only(task: ShardTask, report: Report) -> str:
    """What a build tells the scheduler, without the build."""
    for _ in task.videos:
        report(1)
    return task.name


def schedule(count: int) -> Figures:
    """Tasks as a build submits them, on two workers of this machine; the scheduler lives in this process."""
    tasks = plan(assign_splits(list(made_up(count)), 0.0), {}, Standing(), PER_SHARD).tasks
    held, began, reported = memory("VmRSS"), time.perf_counter(), 0

    def step(done: int) -> None:
        nonlocal reported
        reported += done

    done = sum(1 for _ in cluster.run(report_only, tasks, step, workers=2, time_limit=120.0))
    assert done == len(tasks)
    seconds = time.perf_counter() - began
    size = sum(len(pickle.dumps(task)) for task in tasks[:1000]) / min(1000, len(tasks))
    return {"tasks": done, "per_second": done / seconds, "task_bytes": size, "peak_gb": memory("VmHWM") - held}


def index(count: int) -> Figures:
    """`read_set` and the columns of its only split, from sidecars on disk."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / RECIPE_FILE).write_text(recipe_text(RECIPE))
        size = 0
        for task in plan(assign_splits(list(made_up(count)), 0.0), {}, Standing(), PER_SHARD).tasks:
            size += (root / f"{task.name}.json").write_text(sidecar_of(task).text())
            with (root / f"{task.name}.tar").open("wb") as shard:
                shard.truncate(len(task.videos) * SAMPLE_BYTES)  # a hole: takes no room on disk
        held, began = memory("VmRSS"), time.perf_counter()
        columns = read_set(root).split("train")
        seconds, now = time.perf_counter() - began, memory("VmRSS")
        assert len(columns) == count
    return {"seconds": seconds, "index_gb": now - held, "sidecars_gb": size / 1e9}


PARTS: dict[str, Callable[[int], Figures]] = {
    function.__name__: function for function in (plan_from_nothing, list_from_csv, add_one, schedule, index)
}


def archive_rows(count: int, seconds: float) -> Iterable[tuple[str, str]]:
    """Bytes of the finished set, by codec: frames, and what a sample needs beside them."""
    pixels = seconds * float(RECIPE.fps) * RECIPE.height * RECIPE.width * 3
    beside, _ = get_format(RECIPE.format).overhead(RECIPE)
    for codec, ratio in CODECS.items():
        yield f"archive, {codec}", f"{count * (pixels / ratio + beside) / 1e12:.2f} TB"


def rows(count: int, sample: int, seconds: float, found: dict[str, Figures]) -> Iterable[tuple[str, str]]:
    """The table: what was measured, and what that means for `count` videos."""
    planned, listed, added, scheduled, indexed = (found[name] for name in PARTS)
    more = count / sample
    on = f"   ({sample:,} measured, × {more:g})" if more > 1 else ""
    yield "plan from nothing", f"{planned['seconds']:.0f} s, {planned['peak_gb']:.2f} GB at the peak"
    yield "  of it the list of videos", f"{planned['videos_gb']:.2f} GB"
    yield "  shard tasks", f"{planned['tasks']:,.0f} of up to {PER_SHARD} videos on average"
    yield "list a CSV", f"{listed['seconds'] * more:.0f} s, {listed['peak_gb'] * more:.1f} GB{on}"
    yield (
        "plan one video more",
        f"{added['seconds'] * more:.0f} s, {added['peak_gb'] * more:.1f} GB, {added['tasks']:.0f} task{on}",
    )
    yield (
        "scheduler",
        f"{scheduled['per_second']:.0f} tasks/s, "
        f"{planned['tasks'] / scheduled['per_second'] / 60:.0f} minutes for all of them",
    )
    yield "  a task on the wire", f"{scheduled['task_bytes']:,.0f} bytes"
    yield (
        "  client and scheduler",
        f"{scheduled['peak_gb'] * 1000:.0f} MB beyond the plan, after {scheduled['tasks']:,.0f} tasks",
    )
    yield "index in memory", f"{indexed['index_gb'] * more:.1f} GB, read in {indexed['seconds'] * more:.0f} s{on}"
    yield "  a sample", f"{indexed['index_gb'] / sample * 1e9:.0f} bytes"
    yield "sidecars on disk", f"{indexed['sidecars_gb'] * more:.1f} GB{on}"
    yield from archive_rows(count, seconds)


@click.command()
@click.option("--videos", default=10_000_000, show_default=True)
@click.option("--sample", default=400_000, show_default=True, help="Videos for what is measured on fewer.")
@click.option("--seconds", default=10.0, show_default=True, help="Mean length of a video.")
@click.option("--only", type=click.Choice(list(PARTS)), help="One part, in this process, on --videos; as JSON.")
@click.option("--json", "as_json", is_flag=True)
def main(videos: int, sample: int, seconds: float, only: str | None, as_json: bool) -> None:
    """Print what so many videos cost."""
    if only:
        print(json.dumps(PARTS[only](videos)))
        return
    sample = min(sample, videos)
    found = {name: _apart(name, videos if name == "plan_from_nothing" else sample) for name in PARTS}
    if as_json:
        print(json.dumps({"videos": videos, "sample": sample, "parts": found}, indent=2))
        return
    print(f"{videos:,} videos of {seconds:g} s at {RECIPE.fps} fps, {RECIPE.width} px; {os.cpu_count()} cores")
    for name, value in rows(videos, sample, seconds, found):
        print(f"{name:28}{value}")


def _apart(name: str, count: int) -> Figures:
    command = [sys.executable, __file__, "--only", name, "--videos", str(count)]
    figures: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return figures


if __name__ == "__main__":
    main()
