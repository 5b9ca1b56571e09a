"""From a probability over time to events: two thresholds and two durations; one event is told once. Pure."""

from dataclasses import dataclass

# That times may be off by: they are sums of 1/fps.
EPSILON = 1e-6


@dataclass(frozen=True)
class Hysteresis:
    """An event begins where the probability reaches `on` and is told once it has stayed at `off` or above for
    `min_seconds`; it is over once it has stayed below `off` for `gap_seconds`.

    Raises `ValueError` for values that make no sense.
    """

    on: float = 0.6
    off: float = 0.4
    min_seconds: float = 1.0
    gap_seconds: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.off <= self.on <= 1:
            raise ValueError(f"on {self.on:g} and off {self.off:g}: must be 0 ≤ off ≤ on ≤ 1")
        if self.min_seconds < 0 or self.gap_seconds < 0:
            raise ValueError("durations must not be negative")


@dataclass
class Occurrence:
    """An event from `began` until `ended`, in seconds of the stream; `last`: when the probability was last at
    `off` or above; `peak`: its highest."""

    began: float
    last: float
    peak: float
    told: bool = False
    ended: float | None = None


class EventDetector:
    """Feed it probabilities in order of time; see `Hysteresis`."""

    def __init__(self, rule: Hysteresis) -> None:
        self.rule = rule
        self.current: Occurrence | None = None

    def update(self, seconds: float, probability: float) -> list[Occurrence]:
        """Events that are to be told now: one that has begun (`ended` is None) or one that is over."""
        rule, event = self.rule, self.current
        if event is None:
            if probability < rule.on:
                return []
            event = self.current = Occurrence(seconds, seconds, probability)
        event.peak = max(event.peak, probability)
        if probability >= rule.off:
            event.last = seconds
            if not event.told and seconds - event.began >= rule.min_seconds - EPSILON:
                event.told = True
                return [event]
        elif not event.told or seconds - event.last >= rule.gap_seconds - EPSILON:
            return self.finish()
        return []

    def finish(self) -> list[Occurrence]:
        """The stream ends or breaks off: what is under way is over. What was not told never will be."""
        event, self.current = self.current, None
        if event is None or not event.told:
            return []
        event.ended = event.last
        return [event]
