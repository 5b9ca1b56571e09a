"""A stream with planted events, watched: what is told, how late; a model that is too slow; a cut.

    train run --model early_fusion --shards SHARDS --frames 8 --input diff --epochs 15 --out runs/watch
    OMP_NUM_THREADS=1 python benchmarks/watch.py runs/watch videos.csv --label fight

Joins real clips of the CSV (quiet ones, then some of the label, and so on), lets ffmpeg serve them on loopback in
real time, and runs `train watch` on one core. It is the watcher that is tried here, not the model: the planted
clips and the quiet ones are those that the model judges best, whether it was trained on them or not.

    plain      every planted event should be told once
    slow       the same with a model that takes 3 × as long for a clip as the clip lasts
    cut        the server is gone for 5 s between two events
    slow-cut   both: no clip may reach over the gap, though frames around it are dropped

Last result, 2026-11-28, early_fusion of 8 frames at 5 fps, on one core of an EPYC of Zen 3; the other core worked:
plain: 5 of 5 told once, none beside; frame to decision p50 78, p95 119, at most 176 ms.
slow: 288 of 440 frames dropped, 394 clips skipped; a decision takes 4.8 s and is then behind the stream by p50
5.0, at most 5.1 s. Too slow for events of 6 s: none is told. slow-cut: the same, with one reconnection.
cut: 5 of 5 told once, none beside; one gap, frames again 7.7 s after the last one, one reconnection; p95 119, at
most 345 ms (a browser was started beside it).
"""

import csv
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

TRAIN = [sys.executable, "-c", "from train.cli import main; main()"]
SLOWED = """
import time, train.watch as module
make = module.judge_with
def slowed(trained, *rest):
    judge, seconds = make(trained, *rest), 3 * float(trained.window / trained.recipe.fps)
    return lambda clip: (time.sleep(seconds), judge(clip))[1]
module.judge_with = slowed
from train.cli import main; main()
"""
QUIET, PLANTED, EVENTS = 4, 3, 5  # clips before each event, clips of each, and how many
ENCODE = [
    "-r", "25", "-c:v", "libx264", "-preset", "veryfast", "-bf", "0", "-g", "25", "-pix_fmt", "yuv420p", "-an",
    "-f", "mpegts",
]  # fmt: skip
FFMPEG = ["ffmpeg", "-nostdin", "-loglevel", "error", "-y"]
AFTER = 2.0  # seconds after a planted event in which its alarm still counts
CUT = 5.0  # seconds


@dataclass(frozen=True)
class Piece:
    """A part of the stream: a file, and when the planted events in it are, in seconds."""

    file: Path
    planted: list[tuple[float, float]]


def choose(run: Path, videos: Path, label: str) -> tuple[list[str], list[str]]:
    """Clips of the label, and others, as many as are needed: those that the model judges best."""
    rows = list(csv.DictReader(videos.open()))
    paths = {str(videos.parent / row["path"]): row["label"] == label for row in rows}
    done = subprocess.run([*TRAIN, "predict", str(run), *paths, "--every", "0.2", "--json"], check=True, stdout=-1)
    found = {video["video"]: video["timeline"] for video in json.loads(done.stdout)["videos"]}
    chances = {path: [moment["probabilities"][label] for moment in found[path]] for path in paths}
    planted = sorted((p for p in paths if paths[p]), key=lambda p: -min(chances[p]))[: PLANTED * EVENTS]
    quiet = sorted((p for p in paths if not paths[p]), key=lambda p: max(chances[p]))[: QUIET * (EVENTS + 1)]
    return planted, quiet


def join(folder: Path, planted: list[str], quiet: list[str]) -> tuple[Piece, list[Piece]]:
    """A stream whole, and in two pieces, so that it can be cut between them."""
    pieces = []
    offset, moved = 0.0, list[tuple[float, float]]()
    for number, events in enumerate((range(EVENTS // 2 + 1), range(EVENTS // 2 + 1, EVENTS))):
        order: list[str] = []
        marks: list[tuple[int, int]] = []
        for event in events:
            order += quiet[QUIET * event : QUIET * (event + 1)]
            marks.append((len(order), len(order) + PLANTED))
            order += planted[PLANTED * event : PLANTED * (event + 1)]
        order += quiet[QUIET * (EVENTS - 1 + number) : QUIET * (EVENTS + number)]
        seconds = [encode(path, folder / f"{number}-{place}.ts") for place, path in enumerate(order)]
        listing = folder / f"{number}.txt"
        listing.write_text("".join(f"file {number}-{place}.ts\n" for place in range(len(order))))
        file = folder / f"{number}.ts"
        subprocess.run([*FFMPEG, "-f", "concat", "-i", str(listing), *scaled(), str(file)], check=True)
        pieces.append(Piece(file, [(sum(seconds[:first]), sum(seconds[:stop])) for first, stop in marks]))
        moved += [(offset + first, offset + stop) for first, stop in pieces[-1].planted]
        offset += sum(seconds)
    listing, file = folder / "whole.txt", folder / "whole.ts"
    listing.write_text("".join(f"file {piece.file.name}\n" for piece in pieces))
    copied = ["-f", "concat", "-i", str(listing), "-c", "copy", "-f", "mpegts", str(file)]
    subprocess.run([*FFMPEG, *copied], check=True)
    return Piece(file, moved), pieces


def scaled() -> list[str]:
    """Options that make all clips alike."""
    return ["-vf", "scale=640:360,setsar=1", *ENCODE]


def encode(path: str, file: Path) -> float:
    """One clip as the stream has it; its length in seconds."""
    subprocess.run([*FFMPEG, "-i", path, *scaled(), str(file)], check=True)
    return length(file)


def length(file: Path) -> float:
    """How long a file plays, in seconds: frames do not tell, for slower clips stay slower."""
    command = ["ffprobe", "-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0", str(file)]
    return float(subprocess.run(command, check=True, stdout=-1, text=True).stdout.split()[0].strip(","))


def serve(file: Path, port: int) -> "subprocess.Popen[bytes]":
    """ffmpeg, which plays the file in real time to whoever connects first."""
    url = f"tcp://127.0.0.1:{port}?listen=1"
    return subprocess.Popen([*FFMPEG, "-re", "-i", str(file), "-c", "copy", "-f", "mpegts", url])


def watch(run: Path, port: int, label: str, program: list[str]) -> "subprocess.Popen[str]":
    """`train watch` on one core."""
    one_core = ["taskset", "-c", "0"] if shutil.which("taskset") else []
    flags = ["--label", label, "--device", "cpu", "--reconnect", "15", "--json"]
    command = [*one_core, *program, "watch", str(run), f"tcp://127.0.0.1:{port}", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def scenario(name: str, run: Path, label: str, pieces: list[Piece], program: list[str]) -> dict[str, Any]:
    """Serve the pieces, with a cut after each but the last, and compare what is told with what was planted."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = serve(pieces[0].file, port)
    time.sleep(1)
    watcher = watch(run, port, label, program)
    for piece in pieces[1:]:
        server.wait()
        time.sleep(CUT)
        server = serve(piece.file, port)
    server.wait()
    time.sleep(8)
    watcher.terminate()
    lines = [json.loads(line) for line in watcher.communicate()[0].splitlines()]
    return compare(name, pieces, lines)


def compare(name: str, pieces: list[Piece], lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Print alarms beside planted events; returns the summary, with how often each planted event was told."""
    summary = next(line for line in lines if line["kind"] == "summary")
    starts = [line for line in lines if line["kind"] == "start"]
    origins = [line["stream_seconds"] for line in lines if line["kind"] == "watching"]
    told: list[int] = []
    print(f"\n{name}")
    for number, (piece, origin) in enumerate(zip(pieces, origins, strict=False), 1):
        for first, stop in piece.planted:
            delays = [line["stream_seconds"] - origin - first for line in starts]
            here = [delay for delay in delays if 0 <= delay <= stop - first + AFTER]
            told.append(len(here))
            text = ", ".join(f"{delay:.1f} s after its start" for delay in here) or "not told"
            print(f"  piece {number}, {first:5.1f} to {stop:5.1f} s: {text}")
    print(f"  alarms beside: {len(starts) - sum(told)}")
    for line in lines:
        if line["kind"] in ("watching", "gap"):
            print(f"  {line['kind']} at {line['stream_seconds']:.1f} s {line.get('reason', '')}")
    for key in ("frames", "frames_dropped", "clips", "clips_skipped", "latency_ms", "inference_ms", "behind_ms",
                "time_to_alarm_seconds", "reconnects"):  # fmt: skip
        print(f"  {key}: {summary[key]}")
    return {**summary, "told": told}


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.argument("videos", type=click.Path(path_type=Path, exists=True))
@click.option("--label", required=True, help="What is planted and watched for.")
@click.option("--only", type=click.Choice(["plain", "slow", "cut", "slow-cut"]))
def main(run: Path, videos: Path, label: str, only: str | None) -> None:
    """Watch a stream with planted events of the LABEL."""
    with tempfile.TemporaryDirectory() as folder:
        whole, pieces = join(Path(folder), *choose(run, videos, label))
        slow = [sys.executable, "-c", SLOWED]
        cases = {
            "plain": ([whole], TRAIN),
            "slow": ([whole], slow),
            "cut": (pieces, TRAIN),
            "slow-cut": (pieces, slow),
        }
        for name, (shown, program) in cases.items():
            if only in (None, name):
                scenario(name, run, label, shown, program)


if __name__ == "__main__":
    main()
