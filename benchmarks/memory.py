"""Peak memory of a process that builds shards: a video of two hours against one of two minutes.

    python benchmarks/memory.py                      # makes the videos, builds each alone, prints a table
    python benchmarks/memory.py --hours 10

Both videos are of one size, codec and rate: the long one is the short one's packets over and over. Each is
built by `prep build-shards`, once with `--workers 0` and once by the worker of a Dask cluster (`--workers 1`);
the peak is VmHWM of the process that decodes, as Linux counts it. Wanted: less than 10 % apart in the worker,
under 400 MB.

Last result: docs/scale.md, "Memory of one worker".
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import click
import numpy as np
import psutil
from av.video.stream import VideoStream

MINUTES = 2
RATE = 15
SIZE = (320, 240)
PREP = [sys.executable, "-c", "from pipeline.cli import main; main()"]


def write_short(path: Path) -> None:
    """Two minutes of a texture that drifts, h264."""
    texture = np.random.default_rng(0).integers(0, 255, (SIZE[1] // 8, SIZE[0] // 8, 3), np.uint8)
    texture = texture.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "30"})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for number in range(MINUTES * 60 * RATE):
            frame = av.VideoFrame.from_ndarray(np.roll(texture, 2 * number, axis=1), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_long(short: Path, path: Path, times: int) -> None:
    """The short video `times` times over, packet by packet."""
    with av.open(str(path), "w") as output:
        copy = None
        for turn in range(times):
            with av.open(str(short)) as container:
                stream = container.streams.video[0]
                copy = copy or output.add_stream_from_template(stream)
                assert stream.time_base is not None
                shift = turn * round(MINUTES * 60 / stream.time_base)
                for packet in container.demux(stream):
                    if packet.pts is None or packet.dts is None:
                        continue
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                    output.mux(packet)


def peak_megabytes(source: Path, out: Path, workers: int) -> float:
    """VmHWM of the process that decodes, in units of 10^6 bytes: `prep` itself, or its largest child."""
    command = [*PREP, "build-shards", str(source), "--out", str(out), "--workers", str(workers), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as prep:
        peak = 0
        while prep.poll() is None:
            peak = max([peak, *_high_water(psutil.Process(prep.pid), children=workers > 0)])
            time.sleep(0.02)
        assert prep.stdout is not None
        assert json.load(prep.stdout)["decoded"] == 1 and prep.returncode == 0
    return peak / 1e6


def _high_water(process: psutil.Process, children: bool) -> Iterator[int]:
    with suppress(psutil.NoSuchProcess):
        for one in process.children(recursive=True) if children else [process]:
            with suppress(FileNotFoundError, ProcessLookupError):
                lines = Path(f"/proc/{one.pid}/status").read_text().splitlines()
                yield from (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@click.command()
@click.option("--hours", default=2.0, show_default=True, help="Length of the long video.")
@click.option("--json", "as_json", is_flag=True)
def main(hours: float, as_json: bool) -> None:
    """Print the peaks and how far they are apart."""
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        short, long = Path(folder, "short", "a", "a.mp4"), Path(folder, "long", "a", "a.mp4")
        for path in (short, long):
            path.parent.mkdir(parents=True)
        write_short(short)
        write_long(short, long, round(hours * 60 / MINUTES))
        for workers in (0, 1):
            peaks = [
                peak_megabytes(path.parents[1], Path(folder, f"{path.parents[1].name}-{workers}"), workers)
                for path in (short, long)
            ]
            rows["prep --workers 0" if workers == 0 else "Dask worker"] = {
                "short_mb": round(peaks[0], 1),
                "long_mb": round(peaks[1], 1),
                "apart": round(peaks[1] / peaks[0] - 1, 3),
            }
    if as_json:
        print(json.dumps({"hours": hours, "peaks": rows}, indent=2))
        return
    print(f"{'peak MB':20}{f'{MINUTES} minutes':>12}{f'{hours:g} hours':>12}{'apart':>9}")
    for name, row in rows.items():
        print(f"{name:20}{row['short_mb']:>12}{row['long_mb']:>12}{row['apart']:>9.1%}")


if __name__ == "__main__":
    main()
