"""Our frames against a full decode by the `ffmpeg` command, for files of every kind: count, times and pixels.

    python benchmarks/referee.py FOLDER

FOLDER may hold a MANIFEST.tsv with a `path` column; else every file in it is tried. For each file the frames that
ffmpeg displays at t0 + k/5 s, scaled to 112×112 the same way, are compared with ours: the mean absolute difference
of the worst frame, of 255. Exits with 1 if a file differs by more than 2 or in its count.

Last result (2026-11-22, ffmpeg 5.1 of Debian 12, 98 awkward files): 80 compared, none differs (the worst
frame of all: 1.39), 18 rejected; docs/decoding.md lists those.
"""

import csv
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.decode import get_decoder
from pipeline.errors import DecodeError
from pipeline.recipe import Recipe

RECIPE = Recipe()
SHOWN = re.compile(r"\] n:\s*\d+ pts:\s*(-?\d+|NOPTS) ")
TIME_BASE = re.compile(r"config in time_base: (\d+/\d+)")
Frames = NDArray[np.uint8]


def listed(folder: Path) -> list[str]:
    """The files to try, relative to the folder."""
    manifest = folder / "MANIFEST.tsv"
    if manifest.exists():
        with manifest.open(newline="") as lines:
            return [row["path"] for row in csv.DictReader(lines, delimiter="\t")]
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def is_larger(path: Path) -> bool:
    """Whether the pictures shrink on the way to the recipe's size."""
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        return codec.width >= RECIPE.width and codec.height >= RECIPE.height


def referee(path: Path) -> tuple[list[Fraction | None], Frames, str]:
    """(times in seconds, frames [N, H, W, 3], the last error) of all that ffmpeg decodes."""
    flags = "area" if is_larger(path) else "bicubic"
    scale = f"setfield=prog,showinfo,scale={RECIPE.width}:{RECIPE.height}:flags={flags}"
    command = ["ffmpeg", "-nostdin", "-hide_banner", "-threads", "1", "-i", f"file:{path}", "-an", "-sn", "-dn"]
    output = ["-vsync", "passthrough", "-copyts", "-vf", scale, "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    done = subprocess.run([*command, *output], capture_output=True, check=False)
    text = done.stderr.decode(errors="replace")
    base = TIME_BASE.search(text)
    unit = Fraction(base[1]) if base else Fraction(0)
    times = [None if pts == "NOPTS" else int(pts) * unit for pts in SHOWN.findall(text)]
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, RECIPE.height, RECIPE.width, 3)
    errors = [line for line in text.splitlines() if "rror" in line or "nvalid" in line]
    return times, frames, errors[-1].strip() if errors else ""


def displayed(times: list[Fraction], count: int) -> list[int]:
    """Which frame is on show at t0 + k/fps for k < count: the last one that has begun."""
    order = sorted(range(len(times)), key=lambda i: times[i])
    found, place = [], 0
    for k in range(count):
        while place + 1 < len(order) and times[order[place + 1]] <= times[order[0]] + k / RECIPE.fps:
            place += 1
        found.append(order[place])
    return found


def compare(path: Path) -> tuple[str, float | None]:
    """What was found of one file, and the difference of its worst frame."""
    try:
        ours = [frame.pixels for frame in get_decoder("pyav").frames(str(path), RECIPE)]
    except DecodeError as error:
        return f"rejected: {error}", None
    found, theirs, error_text = referee(path)
    times = [time for time in found if time is not None]
    if not times or len(times) != len(theirs) or len(found) != len(times):
        return f"ffmpeg gives {len(theirs)} frames, {len(times)} with a time: not compared {error_text}", None
    wanted = displayed(times, len(ours))
    worst = max(float(np.abs(a.astype(int) - theirs[i]).mean()) for a, i in zip(ours, wanted, strict=True))
    slots = int((max(times) - min(times)) * RECIPE.fps) + 1  # and what the last frame's duration adds
    note = "" if slots <= len(ours) <= slots + 6 else f"COUNT at least {slots} expected; "
    return f"{note}{len(ours)} frames of {len(theirs)} {error_text}", worst


def main() -> None:
    """Print a line a file, worst first at the end."""
    folder = Path(sys.argv[1])
    bad = 0
    for name in listed(folder):
        note, worst = compare(folder / name)
        verdict = "     -" if worst is None else f"{worst:6.2f}"
        bad += (worst or 0) > 2 or note.startswith("COUNT")
        print(f"{verdict}  {name}: {note}", flush=True)
    print(f"{bad} files differ")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
