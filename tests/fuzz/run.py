"""Fuzz a target with atheris; the package's docstring shows how. What is found is kept, and the fuzzer goes on.

A finding: an exception that a target does not allow, more than 5 s, more than 1 GB above the start.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]
SECONDS_EACH, MEGABYTES = 5, 1024


def fuzz(name: str, corpus: Path, seconds: int) -> None:
    """Fuzz one target in this process, which atheris ends; executions and findings stand in `<name>.json`."""
    import atheris

    with atheris.instrument_imports(include=["pipeline", "models", "train"]):
        from fuzz.targets import targets
    import resource

    target = targets()[name]
    for seed in target.seeds:  # what is imported on first use is no finding
        with suppress(*target.allowed):
            target.run(seed)
    own = corpus / name
    own.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds:
        (own / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    found: dict[str, int] = {}
    tally = corpus / f"{name}.json"
    past: dict[str, Any] = {"executions": 0, "seconds": 0.0, "findings": {}}
    if tally.exists():
        past = json.loads(tally.read_text())
    found |= past["findings"]
    count, told, began = 0, 0.0, time.monotonic()
    resource.setrlimit(resource.RLIMIT_DATA, (2 * MEGABYTES << 20, 2 * MEGABYTES << 20))
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    def keep(kind: str, data: bytes) -> None:
        if kind not in found:
            digest = hashlib.sha256(kind.encode()).hexdigest()[:8]
            (corpus / f"finding-{name}-{digest}").write_bytes(data)
        found[kind] = found.get(kind, 0) + 1

    def one(data: bytes) -> None:
        before = time.process_time()
        try:
            target.run(data)
        except target.allowed:
            pass
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in place if str(TESTS.parent) in frame.filename] or list(place)
            keep(f"{type(error).__name__} at {ours[-1].filename}:{ours[-1].lineno}", data)
        now, took = time.monotonic(), time.process_time() - before
        if took > SECONDS_EACH:
            keep(f"slow: {took:.0f} s", data)
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 > start + MEGABYTES:
            keep("memory", data)
        nonlocal count, told
        count += 1
        if count == 1 or now > told + 1:
            told = now
            sums = {"executions": past["executions"] + count, "seconds": past["seconds"] + now - began}
            tally.write_text(json.dumps({**sums, "findings": found}))

    limits = [
        f"-max_total_time={seconds}",
        "-timeout=20",
        f"-rss_limit_mb={2 * MEGABYTES}",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], str(own), *limits, "-max_len=32768", "-verbosity=0"], one)
    atheris.Fuzz()


def main() -> None:
    """One target in this process, or all of them, each in one of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="its name, several with commas between, or all")
    parser.add_argument("--seconds", type=int, default=60, help="for each")
    parser.add_argument("--corpus", type=Path, default=Path("fuzz-corpus"))
    options = parser.parse_args()
    if options.target != "all" and "," not in options.target:
        fuzz(options.target, options.corpus, options.seconds)
        return
    from fuzz.targets import targets

    for name in targets() if options.target == "all" else options.target.strip(",").split(","):
        arguments = [name, "--seconds", str(options.seconds), "--corpus", str(options.corpus)]
        ended = subprocess.run([sys.executable, __file__, *arguments], check=False, stderr=subprocess.PIPE)
        print(name, ended.returncode, (options.corpus / f"{name}.json").read_text(), flush=True)
        if ended.returncode:
            print(ended.stderr.decode(errors="replace")[-2000:], flush=True)


if __name__ == "__main__":
    main()
