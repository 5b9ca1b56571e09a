"""Sets that lie elsewhere: shards arrive once, whole and right, or the reason is told."""

import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import build, edit_sidecar
from far import (
    FAULTS,
    FarServer,
    cached,
    contents,
    fetch_all,
    largest,
    leftovers,
    local_frames,
    nginx,
    serving,
)

from pipeline import places
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.shards.cache import ShardCache, default_cache, parse_bytes
from pipeline.shards.fetch import TRIES
from pipeline.shards.index import read_set
from pipeline.shards.plain import member_frames, shard_urls


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.shards.fetch.PAUSE", 0.01)


def test_the_folder_of_a_cache_may_be_given_as_text(many: Path, tmp_path: Path) -> None:
    found = read_set(many)
    with ShardCache(found, found.sidecars, str(tmp_path / "cache")):
        assert (tmp_path / "cache").is_dir()


def test_a_set_behind_http_has_the_frames_of_the_local_one(server: FarServer, many: Path, tmp_path: Path) -> None:
    assert fetch_all(server.url, tmp_path) == local_frames(many)
    assert set(server.shards().values()) == {1}
    assert fetch_all(server.url, tmp_path) == local_frames(many)
    assert set(server.shards().values()) == {1}, "what is there is not fetched again"
    assert leftovers(tmp_path) == []


def test_nginx_serves_a_set(many: Path, tmp_path: Path) -> None:
    (tmp_path / "nginx").mkdir()
    with nginx(many.parent, tmp_path / "nginx") as url:
        if url is None:
            pytest.skip("there is no nginx")
        assert fetch_all(f"{url}/many", tmp_path / "cache") == local_frames(many)


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_zarr_arrays_arrive_as_folders(small_set: Path, tmp_path: Path, codec: str) -> None:
    recipe = Recipe(width=48, height=48, format="zarr", codec=codec)
    build(small_set.parent / "videos", tmp_path / "set", recipe=recipe, per_shard=4)
    with serving(tmp_path / "set") as server:
        assert fetch_all(server.url, tmp_path / "cache") == local_frames(tmp_path / "set")
        assert server.counts["c.0.0.0.0"] == len(read_set(tmp_path / "set").sidecars)


def test_a_mounted_share_is_cached_too(many: Path, tmp_path: Path) -> None:
    assert fetch_all(str(many), tmp_path) == local_frames(many)
    found = read_set(many)
    assert contents(tmp_path) == sum({sidecar.sha256: sidecar.bytes for sidecar in found.sidecars}.values())


def test_an_unfinished_set_is_refused_over_http_too(set_copy: Path) -> None:
    with serving(set_copy) as server:
        (set_copy / ".building").touch()
        with pytest.raises(UserError, match="a build is running"):
            read_set(server.url)
        (set_copy / ".building").unlink()
        largest_shard = set_copy / largest(set_copy)
        largest_shard.write_bytes(largest_shard.read_bytes()[:-512])
        with pytest.raises(UserError, match=f"{largest_shard.name} is missing or cut short"):
            read_set(server.url)


def test_sidecars_are_read_side_by_side(server: FarServer) -> None:
    server.delay = 0.05
    read_set(server.url)
    assert server.peak > 4


def test_a_sidecar_that_fails_once_is_read_again(server: FarServer, many: Path) -> None:
    server.faults = {"train-000000.json": ["500", "cut"], "train-000001.json": ["cut"]}
    assert read_set(server.url).sidecars == read_set(many).sidecars
    server.faults = {"train-000000.json": ["500"] * 3}
    with pytest.raises(UserError, match=f"{server.url}/train-000000.json: cannot be read: .*500"):
        read_set(server.url)


def test_the_first_shard_is_there_before_a_tenth_of_the_set(server: FarServer, many: Path, tmp_path: Path) -> None:
    with cached(server.url, tmp_path, threads=2) as (found, cache):
        first = found.sidecars[0]
        server.held = {sidecar.shard for sidecar in found.sidecars} - {first.shard}
        cache.fetch(range(len(found.sidecars)))
        assert cache.path(0).read_bytes() == (many / first.shard).read_bytes()
        assert contents(tmp_path) < sum(sidecar.bytes for sidecar in found.sidecars) / 10
        server.release.set()
        cache.wait(len(found.sidecars))


def test_what_is_waited_for_comes_next(server: FarServer, tmp_path: Path) -> None:
    with cached(server.url, tmp_path, threads=1) as (found, cache):
        names = list({sidecar.sha256: number for number, sidecar in enumerate(found.sidecars)}.values())
        server.held = {found.sidecars[names[0]].shard}
        cache.fetch(names)
        threading.Timer(0.2, server.release.set).start()
        cache.path(names[-1])
        assert cache.arrived()[-1] == names[-1] and len(cache.arrived()) < len(names)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_on_the_way_is_healed(server: FarServer, many: Path, tmp_path: Path, fault: str) -> None:
    server.faults = {largest(many): [fault] * (TRIES - 1)}
    assert fetch_all(server.url, tmp_path) == local_frames(many)
    assert server.counts[largest(many)] == TRIES


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("cut", "Payload"), ("500", "500"), ("short", "ended after"), ("flip", "SHA-256"), ("long", "more than")],
)
def test_a_fault_that_stays_names_shard_and_reason(
    server: FarServer, many: Path, tmp_path: Path, fault: str, reason: str
) -> None:
    name = largest(many)
    server.faults = {name: [fault] * 99}
    with pytest.raises(UserError, match=f"{server.url}/{name}: .*{reason}.*try {TRIES} of {TRIES}"):
        fetch_all(server.url, tmp_path)
    sidecar = next(sidecar for sidecar in read_set(many).sidecars if sidecar.shard == name)
    assert not (tmp_path / f"{sidecar.sha256}.tar").exists() and leftovers(tmp_path) == []
    server.faults = {}
    assert fetch_all(server.url, tmp_path) == local_frames(many), "and the next job gets it"


def test_a_shard_that_is_gone_is_told_at_once(set_copy: Path, tmp_path: Path) -> None:
    with serving(set_copy) as far, cached(far.url, tmp_path) as (found, cache):
        (set_copy / found.sidecars[0].shard).unlink()
        with pytest.raises(UserError, match=rf"{found.sidecars[0].shard}: .*FileNotFound.*try 1 of"):
            cache.path(0)
        cache.fetch([0])
        with pytest.raises(UserError, match=found.sidecars[0].shard):
            cache.wait(1)


def test_a_server_that_stalls_is_asked_again(
    server: FarServer, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "SILENCE", 0.3)
    name = largest(many)
    server.faults = {name: ["stall"]}
    assert fetch_all(server.url, tmp_path) == local_frames(many)
    assert server.counts[name] == 2


def test_closing_does_not_wait_for_a_server_that_stalls(server: FarServer, many: Path, tmp_path: Path) -> None:
    server.faults = {largest(many): ["stall"]}
    with cached(server.url, tmp_path) as (found, cache):
        cache.fetch(range(len(found.sidecars)))
        cache.wait(len(found.sidecars) - 1)
    with pytest.raises(RuntimeError, match="closed"):
        cache.fetch([next(i for i, sidecar in enumerate(found.sidecars) if sidecar.shard == largest(many))])
    assert not server.release.is_set() and leftovers(tmp_path) == []


def test_a_damaged_file_of_the_cache_is_fetched_again(server: FarServer, many: Path, tmp_path: Path) -> None:
    fetch_all(server.url, tmp_path)
    shard = max(tmp_path.glob("*.tar"), key=lambda path: path.stat().st_size)
    shard.write_bytes(shard.read_bytes()[:-1])
    assert fetch_all(server.url, tmp_path) == local_frames(many)


# Buckets


def test_a_bucket_has_the_frames_of_the_local_set(far_bucket: FarServer, many: Path, tmp_path: Path) -> None:
    far_bucket.counts.clear()
    assert fetch_all("s3://far/many", tmp_path) == local_frames(many)
    assert set(far_bucket.shards().values()) == {1}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_bucket_is_healed(far_bucket: FarServer, many: Path, tmp_path: Path, fault: str) -> None:
    far_bucket.faults = {largest(many): [fault]}
    assert fetch_all("s3://far/many", tmp_path) == local_frames(many)
    assert far_bucket.faults[largest(many)] == []


@pytest.mark.parametrize("fault", ["short", "flip"])
def test_a_shard_that_is_wrong_in_the_bucket_is_named(
    far_bucket: FarServer, many: Path, tmp_path: Path, fault: str
) -> None:
    far_bucket.faults = {largest(many): [fault] * 99}
    with pytest.raises(UserError, match=f"s3://far/many/{largest(many)}: cannot be fetched"):
        fetch_all("s3://far/many", tmp_path)
    far_bucket.faults = {}


# Flags


def test_sizes_and_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert [parse_bytes(text) for text in ("50GB", "500 MB", "1.5tb", "7")] == [
        50 * 10**9,
        5 * 10**8,
        15 * 10**11,
        7,
    ]
    for text in ("much", "-1GB", "0", "1PB"):
        with pytest.raises(UserError, match="write 50GB"):
            parse_bytes(text)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "reelcache"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "reelcache"


def test_a_sidecar_cannot_name_a_file_elsewhere(set_copy: Path, tmp_path: Path) -> None:
    edit_sidecar(set_copy / "train-000000.json", sha256="../../x")
    with pytest.raises(UserError, match="sha256"):
        ShardCache(found := read_set(set_copy), found.sidecars, tmp_path / "cache")


# Without a cache


@pytest.mark.parametrize("codec", ["raw", "zstd", "jpeg"])
def test_the_documented_loop_streams_the_frames_that_we_read(
    small_set: Path, tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    webdataset: Any = pytest.importorskip("webdataset")
    for scheme, opener in webdataset.gopen_schemes.items():
        monkeypatch.setitem(webdataset.gopen_schemes, scheme, opener)  # as they were, afterwards
    recipe = Recipe(width=48, height=48, codec=codec)
    build(small_set.parent / "videos", tmp_path / "set", recipe=recipe, per_shard=4)
    text = (Path(__file__).parents[1] / "docs" / "elsewhere.md").read_text()
    loop = text.split("```python\n")[2].partition("```")[0]
    seen: dict[str, bytes] = {}
    with serving(tmp_path / "set") as server:
        code = loop.replace("s3://team/rwf-5fps-112", server.url)
        code = code.replace("print(sample.label, frames.shape)", "seen[sample.key] = frames.tobytes()")
        exec(code, {"seen": seen})
    keys = {sample.key for sample in read_set(tmp_path / "set").split("train").samples}
    assert seen == {key: body for key, body in local_frames(tmp_path / "set").items() if key in keys}


def test_only_tars_are_streamed(small_set: Path, tmp_path: Path) -> None:
    build(small_set.parent / "videos", tmp_path / "set", recipe=Recipe(width=48, height=48, format="zarr"))
    with pytest.raises(UserError, match="only tars are streamed"):
        shard_urls(read_set(tmp_path / "set"), "train")


def test_a_damaged_member_is_an_error(small_set: Path) -> None:
    found = read_set(small_set)
    sample = found.split("train").samples[0]
    with pytest.raises(UserError, match=f"{sample.key}: is damaged"):
        member_frames(found.recipe, sample, bytes(1000))
