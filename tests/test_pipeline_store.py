"""The folder of the cache: many processes, two users, one bound."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from far import FarServer, contents, fetch_all, largest, leftovers, local_frames

from pipeline.errors import UserError
from pipeline.shards.cache import ShardCache
from pipeline.shards.index import read_set
from pipeline.shards.store import Store

FETCH_ALL = """
import os, sys
from pathlib import Path
from pipeline.shards.cache import ShardCache
from pipeline.shards.index import read_set
found = read_set(sys.argv[1])
if user := int(sys.argv[3]):  # now that all is imported, which another user may not be able to
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
with ShardCache(found, found.sidecars, Path(sys.argv[2])) as cache:
    print("ready", flush=True)
    cache.fetch(range(len(found.sidecars)))
    cache.wait(len(found.sidecars))
"""


def start(url: str, root: Path, user: int = 0, umask: int = 0o022) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", FETCH_ALL, url, str(root), str(user)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(
        command, env=environment, umask=umask, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: "subprocess.Popen[str]") -> None:
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


def test_two_processes_fetch_each_shard_once(server: FarServer, many: Path, tmp_path: Path) -> None:
    server.delay = 0.02
    for process in [start(server.url, tmp_path) for _ in range(2)]:
        finish(process)
    assert set(server.shards().values()) == {1}
    assert fetch_all(server.url, tmp_path) == local_frames(many) and set(server.shards().values()) == {1}


def test_a_process_that_is_killed_while_fetching_harms_nobody(
    server: FarServer, many: Path, tmp_path: Path
) -> None:
    server.faults = {largest(many): ["stall"]}
    killed = start(server.url, tmp_path)
    while not any(path.stat().st_size for path in tmp_path.glob("*.part")) or server.faults[largest(many)]:
        assert killed.poll() is None
        time.sleep(0.01)
    waiting = start(server.url, tmp_path)
    assert waiting.stdout is not None and waiting.stdout.readline() == "ready\n"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    finish(waiting)
    assert server.counts[largest(many)] == 2
    assert fetch_all(server.url, tmp_path) == local_frames(many)
    assert leftovers(tmp_path) == []


def test_two_users_share_a_cache(server: FarServer, many: Path) -> None:
    """The first creates files that only they could read, went it by their umask, and is killed half way."""
    nobody = 65534 if os.getuid() == 0 else 0  # without root: one user
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        (root := Path(folder) / "cache").mkdir()
        root.chmod(0o777)
        server.faults = {largest(many): ["stall"]}
        stalled = next(one.sha256 for one in read_set(many).sidecars if one.shard == largest(many))
        first = start(server.url, root, umask=0o077)
        while server.faults[largest(many)] or len(list(root.glob("*.tar"))) < 4:
            assert first.poll() is None
            time.sleep(0.01)
        first.kill()
        first.communicate()
        whole = {path.stem for path in root.glob("*.tar")}
        for name in ("1-00000000.claim", f"{stalled}.tar.lock"):  # killed before they had their permissions
            (root / name).unlink(missing_ok=True)
            (root / name).touch(0o600)
        finish(start(server.url, root, user=nobody, umask=0o077))
        once = {sidecar.shard for sidecar in read_set(many).sidecars if sidecar.sha256 in whole}
        assert len(once) >= 4 and {server.counts[name] for name in once} <= {0, 1}
        asked = server.shards()
        finish(start(server.url, root, umask=0o077))
        assert server.shards() == asked and leftovers(root) == []


# The bound


def test_the_bound_holds_during_and_after(server: FarServer, many: Path, small_set: Path, tmp_path: Path) -> None:
    sizes = {sidecar.sha256: sidecar.bytes for sidecar in read_set(many).sidecars}
    limit, seen, done = sum(sizes.values()) + 1000, [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(contents(tmp_path))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(2):
            assert fetch_all(server.url, tmp_path, limit) == local_frames(many)
            assert fetch_all(str(small_set), tmp_path, limit) == local_frames(small_set)
    finally:
        done.set()
        watcher.join()
    assert 0 < max(seen) <= limit and 0 < contents(tmp_path) <= limit


def test_the_least_recently_used_goes_first(many: Path, tmp_path: Path) -> None:
    found = read_set(many)
    old, middle, new = sorted(
        {item.sha256: item for item in found.sidecars}.values(), key=lambda item: item.bytes
    )[-3:]
    for sidecar in (middle, old, new, old):
        with ShardCache(found, [sidecar], tmp_path) as cache:
            cache.path(0)
    limit = old.bytes + new.bytes + 10_240
    with ShardCache(found, [new], tmp_path, limit) as cache:
        assert {path.stem for path in tmp_path.glob("*.tar")} == {old.sha256, new.sha256}


def test_idle_shards_go_where_the_disk_is_short_and_stay_where_that_would_not_do(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read_set(many)
    old, middle, new = sorted(
        {item.sha256: item for item in found.sidecars}.values(), key=lambda item: item.bytes
    )[-3:]
    for sidecar in (old, middle):
        with ShardCache(found, [sidecar], tmp_path) as cache:
            cache.path(0)
    disk = old.bytes + middle.bytes + 10_240
    monkeypatch.setattr(Store, "_free", lambda store: disk - contents(store.root))
    wanted = [item for item in found.sidecars if item.bytes]
    with pytest.raises(UserError, match="have to be fetched, and its disk has"):
        ShardCache(found, wanted, tmp_path)
    assert {path.stem for path in tmp_path.glob("*.tar")} == {old.sha256, middle.sha256}
    disk = max(new.bytes + middle.bytes, disk)
    with ShardCache(found, [new], tmp_path):
        assert {path.stem for path in tmp_path.glob("*.tar")} == {middle.sha256}


def test_a_limit_below_the_set_is_refused(many: Path, tmp_path: Path) -> None:
    found = read_set(many)
    with pytest.raises(UserError, match="give a larger --cache-size, or stream without a cache"):
        ShardCache(found, found.sidecars, tmp_path, 10_000)
    assert leftovers(tmp_path) == []


def test_what_a_running_job_wants_stays(many: Path, small_set: Path, tmp_path: Path) -> None:
    found, other = read_set(many), read_set(small_set)
    limit = sum({sidecar.sha256: sidecar.bytes for sidecar in found.sidecars}.values()) + 1000
    with ShardCache(found, found.sidecars, tmp_path, limit) as cache:
        path = cache.path(0)
        with pytest.raises(UserError, match="other running jobs leave"):
            ShardCache(other, other.sidecars, tmp_path, limit)
        assert path.exists()
    with ShardCache(other, other.sidecars, tmp_path, sum(sidecar.bytes for sidecar in other.sidecars)):
        assert not path.exists()


def test_other_peoples_files_in_the_folder_stay(many: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    found = read_set(many)
    with ShardCache(found, found.sidecars[:1], tmp_path, found.sidecars[0].bytes):
        assert (tmp_path / "thesis.txt").read_text() == "x"
