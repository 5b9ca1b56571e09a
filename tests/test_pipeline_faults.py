"""Servers that reset, stall, answer 500, cut bodies and lose answers at random.

A command succeeds or says one clear line, in time; run again, with a healthy server, it leaves the set that an
undisturbed one leaves.
"""

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import fsspec
import pytest
from conftest import build, set_bytes, write_video
from far import FarServer, serving
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.errors import UserError
from pipeline.shards.builders import Crew
from pipeline.shards.index import read_set
from pipeline.verify import verify_set

PREP = """
from pipeline.cli import main
main()
"""
# The servers here stall for a minute each time: whoever waits without a time-out of its own is found by `LONGEST`.
IMPATIENT = """
from pipeline import places
from pipeline.shards import fetch
places.SILENCE, fetch.PAUSE = 2.0, 0.01
"""
LONGEST = 300  # seconds for a command, however much goes wrong
BUILD = ("--size", "32", "--videos-per-shard", "2", "--workers", "0")


@dataclass
class World:
    """Videos and their set, here, in a bucket and on a web server; both servers go wrong when told to."""

    videos: Path
    whole: Path
    bucket: str
    s3: FarServer
    web: FarServer
    outcomes: Counter[str] = field(default_factory=Counter)

    def run(self, program: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", program, *map(str, arguments)]
        environment = {**os.environ, "AWS_ENDPOINT_URL": self.s3.url}
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=LONGEST, check=False
        )
        errors = [line for line in ended.stderr.splitlines() if line.startswith("Error:")]
        assert "Traceback" not in ended.stderr, ended.stderr
        assert len(errors) == (ended.returncode != 0), ended.stderr
        assert ended.returncode in (0, 1, 2)
        return ended

    def disturbed(self, seed: int, share: float, *arguments: object) -> None:
        """Run the command while this share of all requests goes wrong, and then again while none does."""
        for server in (self.s3, self.web):
            server.go_wrong(seed, share)
        first = self.run(IMPATIENT + PREP, *arguments)
        for server in (self.s3, self.web):
            server.go_wrong(0, 0.0)
        self.outcomes["failed" if first.returncode else "succeeded"] += 1
        again = self.run(PREP, *arguments)
        assert again.returncode == 0, (first.stderr, again.stderr)

    @property
    def faults(self) -> Counter[str]:
        return self.s3.done_wrong + self.web.done_wrong


@pytest.fixture(scope="module")
def world(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("faults")
    for number in range(8):
        path = root / "videos" / ("cats", "dogs")[number % 2] / f"{number}.mp4"
        write_video(path, frames=20 + number, salt=number)
    rows = [f"cats/{number}.mp4,cats" if number % 2 == 0 else f"dogs/{number}.mp4,dogs" for number in range(8)]
    (root / "videos" / "list.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    build(root / "videos", root / "set")
    bucket_files = fsspec.filesystem("s3")
    bucket_files.put(f"{root}/videos/", f"{bucket}/videos/", recursive=True)
    bucket_files.put(f"{root}/set/", f"{bucket}/set/", recursive=True)
    with serving(os.environ["AWS_ENDPOINT_URL"]) as s3, serving(root) as web:
        yield World(root / "videos", root / "set", bucket, s3, web)


def objects(url: str) -> dict[str, bytes]:
    """All that stands below the URL in the bucket, by its name there."""
    system, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return {name[len(root) + 1 :]: system.cat_file(name) for name in system.find(root)}


class Command(Protocol):
    """Something that is disturbed, and then compared with what nobody disturbed."""

    __name__: str

    def __call__(self, world: World, scratch: Path, seed: int, share: float) -> None: ...


def push(world: World, scratch: Path, seed: int, share: float) -> None:
    out = f"{world.bucket}/pushed-{scratch.name}"
    world.disturbed(seed, share, "push", world.whole, out, "--jobs", 2)
    assert objects(out) == set_bytes(world.whole) and not verify_set(out).damage


def pull(world: World, scratch: Path, seed: int, share: float) -> None:
    world.disturbed(seed, share, "pull", f"{world.bucket}/set", scratch / "set", "--jobs", 2)
    assert set_bytes(scratch / "set") == set_bytes(world.whole) and not verify_set(scratch / "set").damage


def build_in_the_bucket(world: World, scratch: Path, seed: int, share: float) -> None:
    out = f"{world.bucket}/built-{scratch.name}"
    world.disturbed(seed, share, "build-shards", f"{world.bucket}/videos", "--out", out, *BUILD)
    assert objects(out) == set_bytes(world.whole) and not verify_set(out).damage


def pull_from_the_web(world: World, scratch: Path, seed: int, share: float) -> None:
    world.disturbed(seed, share, "pull", f"{world.web.url}/set", scratch / "set", "--jobs", 2)
    assert set_bytes(scratch / "set") == set_bytes(world.whole) and not verify_set(scratch / "set").damage


def build_from_the_web(world: World, scratch: Path, seed: int, share: float) -> None:
    command = ("build-shards", f"{world.web.url}/videos/list.csv", "--out", scratch / "set", *BUILD)
    world.disturbed(seed, share, *command)
    assert set_bytes(scratch / "set") == set_bytes(world.whole) and not verify_set(scratch / "set").damage


# With the share of requests that go wrong in a short run; 0: it is left out there.
COMMANDS = {push: 0.1, pull: 0.0, build_in_the_bucket: 0.7, pull_from_the_web: 0.3, build_from_the_web: 0.0}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_after_a_rerun_nothing_is_lost_or_doubled(
    world: World, tmp_path: Path, command: Command, exhaustive: bool
) -> None:
    if not exhaustive and not COMMANDS[command]:
        pytest.skip("as the others; --exhaustive runs it")
    dice, before = random.Random(command.__name__), world.faults
    world.outcomes.clear()
    for number in range(10 if exhaustive else 1):
        (scratch := tmp_path / f"{command.__name__}-{number}").mkdir()
        share = (0.1, 0.3, 0.7)[number % 3] if exhaustive else COMMANDS[command]
        command(world, scratch, dice.randrange(1000), share)
        shutil.rmtree(scratch)
    done = world.faults - before
    sys.stdout.write(f"{command.__name__}: {dict(world.outcomes)}, {sum(done.values())} faults: {dict(done)}\n")
    assert sum(done.values()) > 0


class Stumbling(SimpleHTTPRequestHandler):
    """Serves what it has, but for one file, of which it cannot even say whether it is there."""

    unknown = ".building"

    def send_head(self) -> Any:
        if not self.path.endswith(self.unknown):
            return super().send_head()
        self.send_error(503)
        return None

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("unknown", [".building", "train-000001.json", "recipe.json"])
def test_what_a_server_cannot_say_is_neither_a_whole_set_nor_a_damaged_one(
    many: Path, unknown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.places.PAUSES", (0.01, None))
    handler = partial(type("Handler", (Stumbling,), {"unknown": unknown}), directory=str(many))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        for look in (read_set, verify_set):
            with pytest.raises(UserError, match="503"):
                look(url)
        server.shutdown()


def test_a_builder_whose_signs_of_life_fail_goes_on_giving_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.shards.builders.RENEW", 0.01)
    crew = Crew("memory://crew", "goal")
    tries: list[int] = []

    def fail(*_: object, **__: object) -> None:
        tries.append(1)
        raise RuntimeError("a kind of error that only this file system has")

    with crew.joined():
        monkeypatch.setattr(MemoryFileSystem, "modified", fail)
        for _ in range(500):
            if len(tries) > 2:
                break
            time.sleep(0.01)
        monkeypatch.undo()
    assert len(tries) > 2
