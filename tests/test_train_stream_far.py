"""The loader of a set that lies elsewhere: batches while shards arrive, and none of them wrong."""

import threading
from itertools import chain
from pathlib import Path

import msgspec
import pytest
import torch
from far import FarServer, nginx, serving
from streams import LateShards, contents

from pipeline.errors import UserError
from pipeline.shards.cache import ShardCache
from pipeline.shards.index import read_set
from train.stream import ClipStream


def test_training_starts_before_all_shards_are_there(small_set: Path) -> None:
    index, said = read_set(small_set).split("train"), list[str]()
    source = LateShards(index)
    with ClipStream(index, frames_per_clip=4, batch_size=1, shards=source, say=said.append) as stream:
        batches = stream.epoch(0)
        seen = next(batches).samples.tolist()
        assert len(source.here) < len(index.shards) > 2
        seen += [sample for batch in batches for sample in batch.samples.tolist()]
        assert (
            sorted(seen)
            == list(range(len(index)))
            == sorted(s for b in stream.epoch(1) for s in b.samples.tolist())
        )
    assert len(said) == 1 and "0 of 4 shards are here" in said[0]
    assert source.closed


def test_closing_wakes_a_loader_that_waits_for_a_shard(small_set: Path) -> None:
    index = read_set(small_set).split("train")
    source, before = LateShards(index), threading.active_count()
    stream = ClipStream(index, frames_per_clip=4, batch_size=1, shards=source)
    source.coming = 1
    batches = stream.epoch(0)
    seen = next(batches).samples.tolist()
    while len(seen) < (index.shard == source.order[0]).sum():
        seen += next(batches).samples.tolist()
    stream.close()
    assert threading.active_count() == before
    assert list(batches) == []
    assert stream.state_dict()["clips"] == len(seen)


def test_leaving_an_epoch_waits_for_no_shard_and_the_next_one_has_all(many: Path, tmp_path: Path) -> None:
    with (
        serving(many) as server,
        ClipStream.open(server.url, frames_per_clip=4, batch_size=1, cache=tmp_path) as stream,
    ):
        names = [path.name for path in stream.index.shards]
        first = names[stream.index.shard[stream.clips(0).sample[0]]]
        server.held = set(names) - {first}
        batches = stream.epoch(0)
        next(batches)
        batches.close()  # type: ignore[attr-defined]
        assert not server.release.is_set() and len(list(tmp_path.glob("*.tar"))) == 1
        server.release.set()
        assert sorted(s for batch in stream.epoch(0) for s in batch.samples.tolist()) == list(range(16))


@pytest.mark.parametrize("format_name", ["webdataset", "zarr"])
@pytest.mark.parametrize("wrong", ["flip", "cut", "gone"])
def test_a_shard_that_went_bad_in_the_cache_is_fetched_once_more(
    coded_sets: dict[tuple[str, str], Path], tmp_path: Path, format_name: str, wrong: str
) -> None:
    root = coded_sets[format_name, "raw"]
    with (
        serving(root) as server,
        ClipStream.open(server.url, frames_per_clip=4, batch_size=4, cache=tmp_path, threads=2) as stream,
    ):
        whole = contents(stream, 1)
    with (
        serving(root) as server,
        ClipStream.open(server.url, frames_per_clip=4, batch_size=4, cache=tmp_path, threads=2) as stream,
    ):
        files = [path for path in tmp_path.rglob("*") if path.name.endswith(".tar") or path.name == "c.0.0.0.0"]
        spoil(max(files, key=lambda path: path.stat().st_size), wrong)
        again = contents(stream, 1)
        assert sum("c.0.0" in name or ".tar" in name for name in server.counts) == 1
    for (samples, frames), (others, same) in zip(whole, again, strict=True):
        assert samples == others and torch.equal(frames, same)


def spoil(path: Path, wrong: str) -> None:
    data = bytearray(path.read_bytes())
    for place in range(2000, len(data), 3000):  # in every frame
        data[place] ^= 1
    path.unlink()
    if wrong != "gone":
        path.write_bytes(data if wrong == "flip" else data[:2000])


def test_damage_that_a_shard_came_with_is_told_with_its_url(many: Path, tmp_path: Path) -> None:
    with serving(many) as server:
        index = read_set(server.url).split("train")
        index.samples[0] = msgspec.structs.replace(index.samples[0], crc32c="00000000")
        source = ShardCache(index, index.sidecars, tmp_path)
        with (
            ClipStream(index, frames_per_clip=4, batch_size=4, shards=source) as stream,
            pytest.raises(
                UserError, match=rf"^{server.url}/{index.sidecars[index.shard[0]].shard}: the frames of"
            ),
        ):
            list(stream.epoch(0))


@pytest.mark.parametrize("far_first", [True, False])
def test_a_stop_in_the_first_epoch_goes_on_in_its_order_wherever_shards_lie_now(
    many: Path, far_first: bool
) -> None:
    index = read_set(many).split("train")

    def stream_from(far: bool) -> ClipStream:
        shards = LateShards(index) if far else None
        return ClipStream(index, frames_per_clip=4, batch_size=3, seed=5, shards=shards)

    with stream_from(far_first) as stream:
        assert stream.clips(0).sample.tolist() != stream_from(not far_first).clips(0).sample.tolist()
        batches = stream.epoch(0)
        seen = [next(batches).samples.tolist() for _ in range(2)]
        state = stream.state_dict()
    with stream_from(not far_first) as stream:
        stream.load_state_dict(state)
        seen += [samples for samples, _ in contents(stream, 0)]
        assert sorted(chain.from_iterable(seen)) == list(range(len(index)))


def check_that_the_first_batch_comes_early(url: str, server: FarServer, cache: Path) -> None:
    """It is there before a tenth of the shards, when no others are given; then the rest of the epoch comes."""
    with ClipStream.open(url, frames_per_clip=4, batch_size=1, cache=cache) as stream:
        names = [Path(sidecar.shard).name for sidecar in stream.index.sidecars]
        first = names[stream.index.shard[stream.clips(0).sample[0]]]
        server.held = set(names) - {first}
        try:
            batches = stream.epoch(0)
            seen = next(batches).samples.tolist()
            assert 10 * len(list(cache.glob("*.tar"))) < len(names) and not server.release.is_set()
            server.release.set()
            seen += [sample for batch in batches for sample in batch.samples.tolist()]
        finally:
            server.release.set()
        assert sorted(seen) == list(range(len(stream.index)))


def test_the_first_batch_from_a_bucket_comes_before_a_tenth_of_the_set(
    far_bucket: FarServer, tmp_path: Path
) -> None:
    check_that_the_first_batch_comes_early("s3://far/many", far_bucket, tmp_path)


def test_the_first_batch_from_nginx_comes_before_a_tenth_of_the_set(many: Path, tmp_path: Path) -> None:
    (tmp_path / "nginx").mkdir()
    with nginx(many.parent, tmp_path / "nginx") as url:
        if url is None:
            pytest.skip("there is no nginx")
        with serving(url) as server:
            check_that_the_first_batch_comes_early(f"{server.url}/many", server, tmp_path / "cache")
