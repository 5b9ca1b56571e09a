"""A stream watched by a trained model: frames to clips, clips to probabilities, probabilities to events.

Nothing here waits for the past: where the model is slower than the stream, the newest clip is judged and what lies
between is dropped and counted.
"""

import threading
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from pipeline.decode import DecodeError
from pipeline.decode.live import Gap, LiveFrame, Source, follow, read_stream
from train.clips import Sampling
from train.compute import Compute
from train.events import EventDetector, Occurrence
from train.newest import Newest
from train.predict import Pixels, clip_of, stored_as
from train.stopping import StopSignals
from train.trained import Trained

REMEMBERED = 100_000  # decisions that percentiles are taken of
PATIENCE = 0.2  # seconds between looks at the signals
DRIFT = 1e-4  # seconds a second, by which a camera's clock may be off ours

Judge = Callable[[Pixels], float]  # a clip [T, H, W, 3] to the probability of the label that is watched for
Tell = Callable[[dict[str, Any]], None]


class Recorder(Protocol):
    """Who keeps the pictures of events: `train.event_clips`. `failed`: clips that could not be written."""

    failed: int

    def see(self, frame: LiveFrame) -> None:
        """The next frame."""
        ...

    def gap(self) -> None:
        """Frames are missing before the next one."""
        ...

    def begin(self, number: int, moment: datetime) -> Path | None:
        """An event begins: where its clip will stand, if it can be written."""
        ...

    def end(self) -> None:
        """The event is over."""
        ...


@dataclass(frozen=True)
class State:
    """How things stand after a decision: seconds of the stream, probability, and whether an event is told."""

    seconds: float
    probability: float
    alarm: bool


def _recent() -> deque[float]:
    return deque(maxlen=REMEMBERED)


@dataclass
class Tally:
    """What is measured: counts, and seconds for each of the last decisions or alarms."""

    frames: int = 0
    clips: int = 0
    clips_skipped: int = 0
    events: int = 0
    latency: deque[float] = field(default_factory=_recent)
    inference: deque[float] = field(default_factory=_recent)
    behind: deque[float] = field(default_factory=_recent)
    alarm: deque[float] = field(default_factory=_recent)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; percentiles in milliseconds, None where nothing was measured."""
        return {
            "frames": self.frames,
            "clips": self.clips,
            "clips_skipped": self.clips_skipped,
            "events": self.events,
            "latency_ms": percentiles(self.latency, 1000),
            "inference_ms": percentiles(self.inference, 1000),
            "behind_ms": percentiles(self.behind, 1000),
            "time_to_alarm_seconds": percentiles(self.alarm, 1),
        }


def percentiles(seconds: Sequence[float], scale: float) -> dict[str, float] | None:
    """p50, p95 and the most, times `scale`."""
    if not seconds:
        return None
    values = np.percentile(array("d", seconds), [50, 95, 100]) * scale
    return {name: round(float(value), 3) for name, value in zip(("p50", "p95", "max"), values, strict=True)}


class Watcher:
    """One decision for every `every` frames that came, on the newest clip of `window` frames; events to `tell`.

    `clock`: the one that frames have arrived by. No thread and no file: see `watch`.
    """

    def __init__(
        self,
        judge: Judge,
        sampling: Sampling,
        window: int,
        every: int,
        detector: EventDetector,
        clock: Callable[[], float],
        tell: Tell,
        recorder: Recorder | None = None,
    ) -> None:
        self.tally = Tally()
        self._judge, self._sampling, self._every, self._clock = judge, sampling, every, clock
        self._detector, self._tell, self.recorder = detector, tell, recorder
        self._held: deque[LiveFrame] = deque(maxlen=window)
        self._window = window
        self._fresh = every - window  # frames since the last decision; a full window makes the first one due
        self._judged = True  # whether a decision has seen the newest frame
        self._ahead: float | None = None  # the least of arrival less stream time: a frame that came without delay
        self._crossed = 0.0  # arrival of the frame with which the probability reached `on`

    def see(self, items: Sequence[LiveFrame | Gap], dropped: int = 0) -> State | None:
        """The frames that came meanwhile, after `dropped` others that did not last; a decision if one is due."""
        self._fresh += dropped
        for item in items:
            if isinstance(item, Gap):
                self._begin_anew(item)
                continue
            if not self._held:
                self._tell({"kind": "watching", **_now(), "stream_seconds": round(item.seconds, 3)})
            self.tally.frames += 1
            self._fresh += 1
            self._anchor(item)
            self._held.append(item)
            self._judged = False
            if self.recorder:
                self.recorder.see(item)
        if len(self._held) < self._window or self._fresh < self._every:
            return None
        self.tally.clips_skipped += self._fresh // self._every - 1
        return self._decide()

    def _anchor(self, frame: LiveFrame) -> None:
        offset = frame.arrived - frame.seconds
        if self._ahead is not None and self._held:
            offset = min(offset, self._ahead + DRIFT * (frame.seconds - self._held[-1].seconds))
        self._ahead = offset

    def finish(self) -> State | None:
        """The stream has ended: its last clip is judged if no decision has seen its last frame, and an event that
        goes on is over."""
        state = self._decide() if not self._judged else None
        self._report(self._detector.finish(), 0.0)
        return state

    def _begin_anew(self, gap: Gap) -> None:
        self._report(self._detector.finish(), 0.0)
        if self._held:  # else it is known already
            self._tell(
                {
                    "kind": "gap",
                    **_now(),
                    "stream_seconds": round(self._held[-1].seconds, 3),
                    "reason": gap.reason,
                }
            )
        if self.recorder:
            self.recorder.gap()
        self._held.clear()
        self._fresh, self._judged = self._every - self._window, True

    def _decide(self) -> State:
        newest = self._held[-1]
        self._fresh, self._judged = 0, True
        began = self._clock()
        probability = self._judge(clip_of([frame.pixels for frame in self._held], self._sampling))
        now = self._clock()
        self.tally.clips += 1
        self.tally.inference.append(now - began)
        self.tally.latency.append(now - newest.arrived)
        self.tally.behind.append(now - newest.seconds - (self._ahead or 0.0))
        was_quiet = self._detector.current is None
        told = self._detector.update(newest.seconds, probability)
        if was_quiet and self._detector.current is not None:
            self._crossed = newest.arrived
        self._report(told, probability)
        current = self._detector.current
        return State(newest.seconds, probability, current is not None and current.told)

    def _report(self, occurrences: "Sequence[Occurrence]", probability: float) -> None:
        for occurrence in occurrences:
            if occurrence.ended is None:
                self._start(occurrence, probability)
            else:
                self._end(occurrence)

    def _start(self, occurrence: Occurrence, probability: float) -> None:
        moment = datetime.now(UTC)
        self.tally.events += 1
        self.tally.alarm.append(self._clock() - self._crossed)
        line = {
            "kind": "start",
            "event": self.tally.events,
            **_now(moment),
            "stream_seconds": round(self._held[-1].seconds, 3),
            "began_seconds": round(occurrence.began, 3),
            "probability": round(probability, 4),
        }
        if self.recorder and (clip := self.recorder.begin(self.tally.events, moment)):
            line["clip"] = str(clip)
        self._tell(line)

    def _end(self, occurrence: Occurrence) -> None:
        assert occurrence.ended is not None
        if self.recorder:
            self.recorder.end()
        self._tell(
            {
                "kind": "end",
                "event": self.tally.events,
                **_now(),
                "began_seconds": round(occurrence.began, 3),
                "ended_seconds": round(occurrence.ended, 3),
                "peak_probability": round(occurrence.peak, 4),
            }
        )


def _now(moment: datetime | None = None) -> dict[str, str]:
    return {"time": (moment or datetime.now(UTC)).isoformat(timespec="milliseconds")}


def judge_with(trained: Trained, compute: Compute, label: int) -> Judge:
    """The model's probability of one label. The first pass of a model is slow, so one is made here."""

    def judge(clip: Pixels) -> float:
        return float(trained.probabilities(torch.from_numpy(clip)[None], compute)[0, label])

    recipe = trained.recipe
    judge(np.zeros((trained.sampling.frames, recipe.height, recipe.width, 3), np.uint8))
    return judge


def box_of(window: int, lossless: bool = False) -> Newest[LiveFrame | Gap]:
    """What lies between reader and judge: the newest frames, as many as a clip has, and every gap."""
    return Newest(window, lossless, kept=lambda item: isinstance(item, Gap))


def watch(
    watcher: Watcher,
    trained: Trained,
    source: Source,
    patience: float,
    say: Callable[[str], None],
    show: Callable[[State, Tally, int], None],
) -> dict[str, Any]:
    """Watch until the stream ends or a signal asks to stop; returns what was measured, with the `error` of a
    stream that could not be opened, broke or was given up.

    A thread reads, this one judges. `patience`: seconds without a picture, after which a stream is given up;
    `show` hears of every decision and of the frames dropped so far.
    """
    store = stored_as(trained.recipe)
    box = box_of(trained.window, lossless=not source.in_time)
    stream = follow(lambda: read_stream(source, trained.recipe), source, patience, say)
    # A daemon: a read that hangs must not hold up the end.
    reader = threading.Thread(target=box.fill, args=(stream,), daemon=True)
    began = source.clock()
    dropped, error = 0, ""
    try:
        with StopSignals() as signals:
            reader.start()
            while not signals.number and (items := box.take(PATIENCE)) is not None:
                lost, dropped = box.dropped - dropped, box.dropped
                stored = [item if isinstance(item, Gap) else _through(store, item) for item in items]
                if state := watcher.see(stored, lost):
                    show(state, watcher.tally, dropped)
        watcher.finish()
    except DecodeError as broken:
        error = str(broken)
        watcher.finish()
    finally:
        source.stopped.set()
        box.close()
        reader.join(1.0)
    return {
        **({"error": error} if error else {}),
        "seconds": round(source.clock() - began, 3),
        "frames_dropped": box.dropped,
        "packets_damaged": source.damaged,
        "reconnects": max(0, source.connections - 1),
        "event_clips_failed": watcher.recorder.failed if watcher.recorder else 0,
        **watcher.tally.as_dict(),
    }


def _through(store: Callable[[Pixels], Pixels], frame: LiveFrame) -> LiveFrame:
    return LiveFrame(store(frame.pixels), frame.seconds, frame.arrived)
