"""`train watch`: decisions that stay current, events as lines, and a summary. Stub models and a made-up clock."""

import json
import os
import signal
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import QUICK, assert_one_clear_line, write_video
from near import send, streaming

from pipeline.decode.live import Gap, LiveFrame
from train.cli import main
from train.clips import Sampling
from train.events import EventDetector, Hysteresis
from train.newest import Newest
from train.predict import Pixels
from train.watch import Watcher, box_of

WINDOW = 4
RULE = Hysteresis(min_seconds=0.4, gap_seconds=0.4)


def frame(number: int, arrived: float | None = None) -> LiveFrame:
    """Frame [1, 1, 3] at 5 fps that shows its number."""
    pixels = np.full((1, 1, 3), number % 256, np.uint8)
    return LiveFrame(pixels, number / 5, number / 5 if arrived is None else arrived)


class Bench:
    """A watcher with a clock that only a slow model moves; `alarming`: numbers of newest frames that alarm."""

    def __init__(self, every: int = 1, alarming: range = range(0)) -> None:
        self.now, self.lines, self.seen = 0.0, list[dict[str, Any]](), list[list[int]]()
        self.alarming, self.slowness = alarming, 0.0
        self.watcher = Watcher(
            self.judge, Sampling(WINDOW), WINDOW, every, EventDetector(RULE), lambda: self.now, self.lines.append
        )

    def judge(self, clip: Pixels) -> float:
        self.seen.append(clip[:, 0, 0, 0].tolist())
        self.now += self.slowness
        return 0.9 if self.seen[-1][-1] in self.alarming else 0.1

    def play(self, numbers: range) -> None:
        for number in numbers:
            self.now = number / 5
            self.watcher.see([frame(number)])

    def kinds(self) -> list[str]:
        return [line["kind"] for line in self.lines]


def test_clips_slide_by_every_so_many_frames() -> None:
    bench = Bench(every=2)
    bench.play(range(9))
    assert bench.seen == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]
    bench.watcher.finish()
    assert bench.seen[-1] == [5, 6, 7, 8]


def test_an_event_is_told_at_its_start_and_its_end() -> None:
    bench = Bench(alarming=range(10, 16))
    bench.play(range(25))
    assert bench.kinds() == ["watching", "start", "end"]
    _, start, end = bench.lines
    assert (start["stream_seconds"], start["began_seconds"], start["probability"]) == (2.4, 2.0, 0.9)
    assert (end["event"], end["began_seconds"], end["ended_seconds"]) == (1, 2.0, 3.0)
    assert bench.watcher.tally.alarm[0] == pytest.approx(0.4)


def test_an_event_that_goes_on_ends_with_the_stream() -> None:
    bench = Bench(alarming=range(5, 99))
    bench.play(range(12))
    bench.watcher.finish()
    assert bench.kinds() == ["watching", "start", "end"]


def test_no_clip_and_no_event_reaches_over_a_gap() -> None:
    bench = Bench(alarming=range(99))
    bench.play(range(8))
    bench.watcher.see([Gap("cut"), Gap("refused")])
    bench.play(range(50, 55))
    assert bench.kinds() == ["watching", "start", "end", "gap", "watching"]
    assert bench.seen[-2:] == [[50, 51, 52, 53], [51, 52, 53, 54]]
    assert bench.watcher.tally.clips_skipped == 0


def test_a_model_three_times_too_slow_stays_current_and_counts_what_it_misses() -> None:
    bench, box = Bench(every=WINDOW), Newest[LiveFrame](WINDOW)
    bench.slowness = 3 * WINDOW / 5
    came = dropped = 0
    for _ in range(20):
        while came <= bench.now * 5 + 1e-9 or not came:  # what came while the model was busy
            box.put(frame(came))
            came += 1
        items = box.take(0) or []
        lost, dropped = box.dropped - dropped, box.dropped
        newest = came - 1
        if bench.watcher.see(items, lost):
            assert bench.seen[-1][-1] == newest
        else:
            bench.now += 0.2
    tally = bench.watcher.tally
    assert tally.clips > 10 and dropped == came - tally.frames and dropped > came / 2
    assert tally.clips_skipped == pytest.approx(2 * (tally.clips - 1), abs=1)
    assert max(tally.behind) == pytest.approx(bench.slowness)


def test_latency_is_counted_from_the_arrival_of_the_newest_frame() -> None:
    bench = Bench()
    bench.slowness = 0.25
    for number in range(8):
        bench.now = number / 5 + 0.5  # half a second between arrival and decision
        bench.watcher.see([frame(number)])
    tally = bench.watcher.tally
    assert tally.as_dict()["latency_ms"] == {"p50": 750, "p95": 750, "max": 750}
    assert tally.as_dict()["inference_ms"] == {"p50": 250, "p95": 250, "max": 250}
    assert tally.as_dict()["behind_ms"] == {"p50": 750, "p95": 750, "max": 750}


def test_a_frame_that_came_late_is_behind_by_its_delay() -> None:
    bench = Bench()
    bench.play(range(5))
    bench.now = 3.0
    bench.watcher.see([frame(5, arrived=3.0)])  # was to come at 1.0
    assert bench.watcher.tally.latency[-1] == 0 and bench.watcher.tally.behind[-1] == pytest.approx(2, abs=1e-3)


def test_a_box_keeps_the_newest_and_a_lossless_one_all() -> None:
    box = Newest[int](2)
    box.fill(range(5))
    assert box.take(0) == [3, 4] and box.dropped == 3 and box.take(0) is None
    lossless = Newest[int](2, lossless=True)
    lossless.put(1)
    lossless.put(2)
    assert lossless.take(0) == [1] and lossless.take(0) == [2] and lossless.take(0) == []


def test_a_gap_is_seen_however_many_frames_are_dropped() -> None:
    bench, box = Bench(alarming=range(9999)), box_of(WINDOW)
    bench.play(range(8))
    box.fill([frame(8), Gap("cut"), *(frame(number) for number in range(3000, 3006))])
    bench.watcher.see(box.take(0) or [], box.dropped)
    assert box.dropped == 3 and bench.kinds() == ["watching", "start", "end", "gap", "watching"]
    assert bench.seen[-1] == [number % 256 for number in range(3002, 3006)]


def test_what_the_reader_meets_is_raised_after_the_last_item() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    box = Newest[int](2)
    box.fill(broken())
    assert box.take(0) == [1]
    with pytest.raises(OSError, match="gone"):
        box.take(0)


@pytest.fixture(scope="module")
def run_folder(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    run = ["run", *QUICK, "--frames", WINDOW, "--epochs", 1, "--shards", small_set, "--out", out]
    result = train(*run)
    assert result.exit_code == 0, result.output
    return out


def train(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def lines_of(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


CATS = ["--label", "cats"]
ALWAYS = [*CATS, "--on", 0, "--off", 0, "--min-seconds", 0.4, "--precision", "fp32", "--json"]


def test_a_file_is_watched_as_predict_sees_it(run_folder: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", frames=90)
    result = train("watch", run_folder, video.as_uri(), "--full-speed", "--save", tmp_path / "e", *ALWAYS)
    assert result.exit_code == 0, result.output
    watching, start, end, summary = lines_of(result)
    exactly = ["--every", 0.2, "--precision", "fp32", "--json"]
    predicted = json.loads(train("predict", run_folder, video, *exactly).stdout)["videos"][0]
    chances = [moment["probabilities"]["cats"] for moment in predicted["timeline"]]
    assert watching["kind"] == "watching" and start["probability"] == pytest.approx(chances[2], abs=1e-3)
    assert end["peak_probability"] == pytest.approx(max(chances), abs=1e-3)
    assert (summary["frames"], summary["clips"], summary["frames_dropped"]) == (15, len(chances), 0)
    assert summary["latency_ms"]["p50"] >= summary["inference_ms"]["p50"] > 0
    with av.open(start["clip"]) as clip:
        stream = clip.streams.video[0]
        assert (stream.width, stream.height) == (48, 48)
        assert sum(1 for _ in clip.decode(stream)) == 15  # those before the alarm, too


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.mp4"], "--label is missing: what to watch for; the run has cats, dogs"),
        (["nowhere.mp4", *CATS], "nowhere.mp4: there is no such file or device"),
        (["tcp://127.0.0.1:1", *CATS], "tcp://127.0.0.1:1: cannot be opened as a video: Connection refused"),
        (["tcp://me:secret@127.0.0.1:1", *CATS], "tcp://***@127.0.0.1:1: cannot be opened"),
        (["nowhere.mp4", "--label", "birds"], "--label birds: the run has no such label; it has cats, dogs"),
        (["nowhere.mp4", *CATS, "--on", "0.3"], "must be 0 ≤ off ≤ on ≤ 1"),
        (["udp://127.0.0.1:1", *CATS, "--full-speed"], "comes at its own speed"),
    ],
)
def test_wrong_use_ends_in_one_line(run_folder: Path, arguments: list[str], message: str) -> None:
    assert_one_clear_line(train("watch", run_folder, *arguments), 2, message)


def test_no_traceback_names_the_password(run_folder: Path) -> None:
    result = train("watch", run_folder, "tcp://me:secret@127.0.0.1:1", *CATS, "-vv")
    assert "Traceback" in result.stderr and "secret" not in result.output


def test_a_stream_that_is_cut_is_watched_on_until_a_signal(run_folder: Path, tmp_path: Path) -> None:
    content = write_video(tmp_path / "a.ts", frames=60, options={"bf": "0"}).read_bytes()
    cuts = iter([False, False, True])

    def camera(request: BaseHTTPRequestHandler) -> None:
        if next(cuts, True):
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            send(request, "video/mp2t", content)

    with streaming(camera) as url:
        result = train("watch", run_folder, url, *ALWAYS)
    *lines, summary = lines_of(result)
    kinds = [line["kind"] for line in lines if line["kind"] in ("watching", "gap")]
    assert kinds[:3] == ["watching", "gap", "watching"]
    times = [line["stream_seconds"] for line in lines if "stream_seconds" in line]
    assert times == sorted(times)
    assert summary["reconnects"] == 1 and 10 < summary["frames"] + summary["frames_dropped"] <= 20
