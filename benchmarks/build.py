"""Decoding against its peers: same videos, same frames, one thread each, CPU time.

    make bench VIDEOS=videos.csv                     # makes .venv-peers, too; or a folder of <label>/*.mp4
    python benchmarks/build.py videos.csv --rounds 5 --every 3

Each method (`benchmarks/decoders.py`) has a process of its own, peers in the environment of `--peers`; they take
turns on the same few clips. Ratios are taken round by round; their median is quoted, with the least and the most.
OpenCV, the base, is the loop that everybody writes, with an area `resize`, which averages as we do; its default,
INTER_LINEAR, is cheaper and aliases. The limit decodes only what the kept frames need and converts nothing.

Last result, 2026-11-23, 100 surveillance clips, 5 rounds: ours 1.83 × OpenCV, 1.30 × the best peer (plain PyAV),
0.88 of the limit; the table is in docs/architecture.md.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import click
from decoders import FPS, OURS, PEERS, SIZE

from pipeline.decode import get_decoder
from pipeline.decode.container import demux, open_video
from pipeline.recipe import Recipe
from pipeline.sources import list_videos

BASE, MINE, LIMIT = "OpenCV", "pyav decoder", "limit"
TURN = 10  # clips that a method decodes before the next one has its turn
ROOT = Path(__file__).parents[1]

Clip = tuple[str, list[int]]  # path, and which frames to keep, in order of display


class Cost(NamedTuple):
    """What one method did in one round."""

    frames: int
    cpu_seconds: float


class Contender:
    """A process that decodes by one method. `missing` says why it cannot."""

    def __init__(self, name: str, python: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)} if name in OURS else dict(os.environ)
        self.process = subprocess.Popen(
            [python, str(ROOT / "benchmarks" / "decoders.py"), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        said = self._answer()
        self.missing: str = said.get("missing", "")
        self.version: str = said.get("version", "")

    def decode(self, clips: list[Clip]) -> Cost:
        """Decode the clips and say what it took."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(clips) + "\n")
        self.process.stdin.flush()
        return Cost(**self._answer())

    def try_out(self, clips: list[Clip]) -> None:
        """Pay for what the first call alone costs; one that fails already there is `missing`, too."""
        try:
            self.decode(clips)
        except (TypeError, BrokenPipeError):
            self.missing = self.missing or "it ended at its first clip"

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"missing": "its process ended"}
        return answer

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def clips_of(videos: Path, every: int) -> list[Clip]:
    """Every n-th video with the numbers of the frames that our decoder keeps."""
    return [(video.path, kept_numbers(video.path)) for video in list_videos(videos)[::every]]


def kept_numbers(path: str) -> list[int]:
    """Which frames of the video are kept, counted in order of display."""
    recipe = Recipe(fps=Fraction(FPS), width=SIZE, height=SIZE)
    kept = {frame.pts for frame in get_decoder("pyav").frames(path, recipe)}
    with open_video(path) as (container, stream):
        pts = sorted(packet.pts for packet in demux(container, stream) if not packet.is_discard)
    return [number for number, time in enumerate(pts) if time in kept]


def contest(contenders: dict[str, Contender], clips: list[Clip], rounds: int) -> dict[str, list[Cost]]:
    """What each method took in each round; methods take turns every few clips."""
    turns = [clips[start : start + TURN] for start in range(0, len(clips), TURN)]
    costs: dict[str, list[Cost]] = {name: [] for name in contenders}
    for _ in range(rounds):
        spent: dict[str, list[Cost]] = {name: [] for name in contenders}
        for turn in turns:
            for name, contender in contenders.items():
                spent[name].append(contender.decode(turn))
        for name, parts in spent.items():
            costs[name].append(Cost(sum(part.frames for part in parts), sum(part.cpu_seconds for part in parts)))
    return costs


def ratio(costs: dict[str, list[Cost]], slower: str, faster: str) -> tuple[float, float, float]:
    """How many times as fast `faster` is as `slower`: median, least and most of the rounds."""
    ratios = [a.cpu_seconds / b.cpu_seconds for a, b in zip(costs[slower], costs[faster], strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def best_peer(costs: dict[str, list[Cost]]) -> str:
    """The fastest method that is not ours."""
    return min(
        (name for name in costs if name in PEERS),
        key=lambda name: statistics.median(cost.cpu_seconds for cost in costs[name]),
    )


def report(contenders: dict[str, Contender], costs: dict[str, list[Cost]]) -> dict[str, Any]:
    """The table's rows and the three ratios that are promised."""
    rows = {
        name: {
            "version": contenders[name].version,
            "frames": taken[0].frames,
            "cpu_seconds": round(statistics.median(cost.cpu_seconds for cost in taken), 3),
            "ratio": [round(value, 2) for value in ratio(costs, BASE, name)],
        }
        for name, taken in costs.items()
    }
    against = {"OpenCV": BASE, "best peer": best_peer(costs), "limit": LIMIT}
    ours = {
        f"{what} ({name})" if what != name else name: [round(value, 2) for value in ratio(costs, name, MINE)]
        for what, name in against.items()
    }
    return {"methods": rows, "ours": ours}


def print_report(found: dict[str, Any], missing: dict[str, str]) -> None:
    """The table in plain text."""
    print(f"{'':22}{'version':38}{'frames':>7}{'CPU s':>9}{'× OpenCV':>10}   (least to most)")
    for name, row in found["methods"].items():
        middle, low, high = row["ratio"]
        numbers = f"{row['frames']:>7}{row['cpu_seconds']:>9.2f}{middle:>10.2f}   ({low:.2f} to {high:.2f})"
        print(f"{name:22}{row['version']:38}{numbers}")
    for name, reason in missing.items():
        print(f"{name:22}not measured: {reason}")
    for name, (middle, low, high) in found["ours"].items():
        print(f"{MINE} over {name}: {middle:.2f} ({low:.2f} to {high:.2f})")


@click.command()
@click.argument("videos", type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=5, show_default=True)
@click.option("--every", default=3, show_default=True, help="Take every n-th video.")
@click.option(
    "--peers", default=".venv-peers/bin/python", show_default=True, help="Python that has benchmarks/peers.txt."
)
@click.option("--json", "as_json", is_flag=True)
def main(videos: Path, rounds: int, every: int, peers: str, as_json: bool) -> None:
    """Print CPU seconds, ratios to the OpenCV loop, and ours to the loop, the best peer and the limit."""
    found_peers = shutil.which(peers)
    if not found_peers:
        print(f"{peers} is not there (make bench makes it): peers are taken from this Python", file=sys.stderr)
    clips = clips_of(videos, every)
    with ExitStack() as stack:
        contenders: dict[str, Contender] = {}
        for name in [*PEERS, *OURS]:
            python = sys.executable if name in OURS else found_peers or sys.executable
            contenders[name] = Contender(name, python)
            if not contenders[name].missing:
                contenders[name].try_out(clips[:1])
            stack.callback(contenders[name].close)
        missing = {name: contender.missing for name, contender in contenders.items() if contender.missing}
        there = {name: contender for name, contender in contenders.items() if not contender.missing}
        found = report(there, contest(there, clips, rounds))
    if as_json:
        print(json.dumps({"videos": len(clips), "rounds": rounds, **found, "missing": missing}, indent=2))
        return
    print(f"{len(clips)} videos, {rounds} interleaved rounds, one thread each")
    print_report(found, missing)


if __name__ == "__main__":
    main()
