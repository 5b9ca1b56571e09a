"""Fuzz a target with atheris; the package's docstring shows how. What is found is kept, and the fuzzer goes on.

A finding: an exception that a target does not allow, more than 5 s, more than 1 GB above the start. Seconds are
the processor's: what a machine is busy with otherwise, or asleep, is not fuzzing.
"""

import argparse
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fuzz.targets import Target

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]
SECONDS_EACH, HANGS, MEGABYTES = 5, 20, 1024
MOST_SHOWN = 4000  # bytes of a finding that are printed


class Hung(BaseException):
    """A target has computed for `HANGS` seconds."""


class Watch:
    """Runs a target on one input after another and keeps what it finds in `corpus`; `<name>.json` has the sums."""

    def __init__(self, name: str, target: "Target", corpus: Path, seconds: int, clear: Callable[[], None]) -> None:
        self._name, self._target, self._corpus, self._clear = name, target, corpus, clear
        self._stop = time.process_time() + seconds
        self._tally = corpus / f"{name}.json"
        past: dict[str, Any] = {"executions": 0, "seconds": 0.0, "findings": {}}
        if self._tally.exists():
            past |= json.loads(self._tally.read_text())
        self._past, self._found = past, dict[str, int](past["findings"])
        self._count, self._told, self._began = 0, 0.0, time.process_time()
        self._start = _peak()

    def one(self, data: bytes) -> None:
        """Run the target on these bytes; ends the process when its time is up."""
        before = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, HANGS)
        try:
            self._target.run(data)
        except self._target.allowed:
            pass
        except Hung:
            self._keep("hangs", data)
        except Exception as error:
            self._keep(_place(error), data)
        if (now := time.process_time()) > before + SECONDS_EACH:
            self._keep("slow", data)
        if _peak() > self._start + MEGABYTES:
            self._keep("memory", data)
        self._count += 1
        self._tell(now)
        if now > self._stop:
            with suppress(OSError):
                self._clear()  # 45 MB, of memory where /dev/shm is
            os._exit(0)

    def _keep(self, kind: str, data: bytes) -> None:
        if kind not in self._found:
            digest = hashlib.sha256(kind.encode()).hexdigest()[:8]
            (self._corpus / f"finding-{self._name}-{digest}").write_bytes(data)
        self._found[kind] = self._found.get(kind, 0) + 1

    def _tell(self, now: float) -> None:
        """Write the sums, at most once a second: atheris may end the process without a word."""
        if self._count == 1 or now > min(self._told + 1, self._stop):
            self._told, past = now, self._past
            sums = {"executions": past["executions"] + self._count, "seconds": past["seconds"] + now - self._began}
            self._tally.write_text(json.dumps({**sums, "findings": self._found}))


def _peak() -> int:
    """The most memory that this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _hung(*_: object) -> None:
    raise Hung


def _place(error: Exception) -> str:
    """The kind of an error, and the line of ours that it came through last."""
    trace = list(traceback.extract_tb(error.__traceback__))
    last = ([frame for frame in trace if str(TESTS.parent) in frame.filename] or trace)[-1]
    return f"{type(error).__name__} at {last.filename}:{last.lineno}"


def fuzz(name: str, corpus: Path, seconds: int) -> None:
    """Fuzz one target in this process, and end it; executions and findings stand in `<name>.json`."""
    import atheris

    with atheris.instrument_imports(include=["pipeline", "models", "train"]):
        from fuzz.targets import clear, targets

    target, own = targets()[name], corpus / name
    own.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds:
        with suppress(*target.allowed):
            target.run(seed)  # what is imported on first use is no finding
        (own / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    resource.setrlimit(resource.RLIMIT_DATA, (2 * MEGABYTES << 20, 2 * MEGABYTES << 20))
    signal.signal(signal.SIGPROF, _hung)
    # The limit on time is of the clock, and for what waits without computing.
    limits = ["-timeout=1200", f"-rss_limit_mb={2 * MEGABYTES}", "-max_len=32768", "-verbosity=0"]
    atheris.Setup([sys.argv[0], str(own), *limits], Watch(name, target, corpus, seconds, clear).one)
    atheris.Fuzz()


def main() -> None:
    """One target in this process, or several, each in one of its own; ends with 1 where anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="its name, several with commas between, or all")
    parser.add_argument("--seconds", type=int, default=60, help="of the processor, for each")
    parser.add_argument("--corpus", type=Path, default=Path("fuzz-corpus"))
    parser.add_argument("--jobs", type=int, default=1, help="of several targets so many at a time")
    options = parser.parse_args()
    if options.target != "all" and "," not in options.target:
        fuzz(options.target, options.corpus, options.seconds)
        return
    from fuzz.targets import names

    chosen = names() if options.target == "all" else options.target.strip(",").split(",")
    with ThreadPoolExecutor(options.jobs) as pool:
        clean = list(pool.map(lambda name: _apart(name, options.corpus, options.seconds), chosen))
    sys.exit(0 if all(clean) else 1)


def _apart(name: str, corpus: Path, seconds: int) -> bool:
    """Fuzz a target in a process of its own, and print what came of it; returns whether nothing was found."""
    arguments = [name, "--seconds", str(seconds), "--corpus", str(corpus)]
    ended = subprocess.run([sys.executable, __file__, *arguments], check=False, stderr=subprocess.PIPE)
    tally = corpus / f"{name}.json"
    done: dict[str, Any] = json.loads(tally.read_text()) if tally.exists() else {"executions": 0, "findings": {}}
    print(name, ended.returncode, json.dumps(done), flush=True)
    if ended.returncode:
        print(ended.stderr.decode(errors="replace")[-2000:], flush=True)
    for finding in sorted(corpus.glob(f"finding-{name}-" + "[0-9a-f]" * 8)):
        print(finding.name, finding.read_bytes()[:MOST_SHOWN], flush=True)
    return not ended.returncode and not done["findings"] and bool(done["executions"])


if __name__ == "__main__":
    main()
