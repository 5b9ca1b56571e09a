"""Videos and sets behind URLs: a bucket of moto's server on loopback, and fsspec's memory."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import SMALL, build, set_bytes, write_video
from fsspec.implementations.memory import MemoryFileSystem

from pipeline import places
from pipeline.driver import estimate_set
from pipeline.errors import UserError
from pipeline.places import local_file
from pipeline.recipe import Recipe
from pipeline.shards.folder import LocalFolder, get_folder, measure
from pipeline.shards.index import read_set
from pipeline.sources import list_videos


def upload(folder: Path, url: str) -> str:
    fsspec.filesystem(url.partition(":")[0]).put(f"{folder}/", f"{url}/", recursive=True)
    return url


def download(url: str, folder: Path) -> dict[str, bytes]:
    fsspec.filesystem(url.partition(":")[0]).get(f"{url}/", f"{folder}/", recursive=True)
    return set_bytes(folder)


@pytest.mark.parametrize("recipe", [SMALL, Recipe(width=32, height=32, format="zarr", codec="zstd")])
def test_a_build_from_and_to_a_bucket_gives_the_bytes_of_a_local_one(
    bucket: str, labelled_videos: Path, tmp_path: Path, recipe: Recipe
) -> None:
    source, out = upload(labelled_videos, f"{bucket}/{recipe.format}/raw"), f"{bucket}/{recipe.format}/set"
    build(labelled_videos, tmp_path / "local", recipe=recipe)
    assert build(source, out, recipe=recipe, workers=2).decoded == 8
    assert download(out, tmp_path / "copy") == set_bytes(tmp_path / "local")
    assert build(source, out, recipe=recipe).shards_written == 0


def test_a_set_in_a_bucket_grows_and_is_relabelled_without_decoding(
    bucket: str, labelled_videos: Path, tmp_path: Path
) -> None:
    out = f"{bucket}/grown"
    build(labelled_videos, out)
    (labelled_videos / "cats").rename(labelled_videos / "lions")
    assert build(labelled_videos, out, per_shard=1).decoded == 0
    build(labelled_videos, tmp_path / "fresh", per_shard=1)
    assert download(out, tmp_path / "copy") == set_bytes(tmp_path / "fresh")
    assert build(labelled_videos, out, overwrite=True).decoded == 8


def test_a_csv_in_a_bucket_lists_videos_beside_it_and_elsewhere(bucket: str, labelled_videos: Path) -> None:
    upload(labelled_videos, f"{bucket}/csv")
    rows = "path,label\ncats/0.mp4,cats\ns3://team/csv/dogs/1.mp4,dogs\ncats/none.mp4,cats\n"
    fsspec.filesystem("s3").pipe_file("team/csv/videos.csv", rows.encode())
    videos = list_videos(f"{bucket}/csv/videos.csv")
    assert [video.path for video in videos] == [
        "s3://team/csv/cats/0.mp4", "s3://team/csv/cats/none.mp4", "s3://team/csv/dogs/1.mp4",
    ]  # fmt: skip
    report = build(f"{bucket}/csv/videos.csv", f"{bucket}/from-csv")
    assert (report.decoded, report.rejected) == (2, 1)
    (rejected,) = [entry for sidecar in read_set(f"{bucket}/from-csv").sidecars for entry in sidecar.rejected]
    assert rejected.video == "cats/none.mp4" and rejected.reason.startswith("cannot be read")


def test_a_dry_run_reads_a_bucket_and_writes_nothing(bucket: str, labelled_videos: Path) -> None:
    from pipeline.driver import Wanted

    source = upload(labelled_videos, f"{bucket}/dry")
    found = estimate_set(Wanted(source, SMALL), f"{bucket}/nothing")
    assert found.videos == 8 and found.unreadable == 0
    assert get_folder(f"{bucket}/nothing").names() == []


def test_a_place_that_cannot_be_reached_is_named(bucket: str) -> None:
    with pytest.raises(UserError, match="s3://no-such-bucket/set"):
        build(f"{bucket}/dry", "s3://no-such-bucket/set")
    with pytest.raises(UserError, match=r"surprise://x.*[Pp]rotocol not known"):
        list_videos("surprise://x")


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gs://team/set: .*pip install 'reelcache\[gs\]'"):
        get_folder("gs://team/set")


def test_a_folder_that_is_no_set_is_refused_in_a_bucket_too(bucket: str, labelled_videos: Path) -> None:
    fsspec.filesystem("s3").pipe_file("team/other/thesis.txt", b"x")
    with pytest.raises(UserError, match="holds other files"):
        build(labelled_videos, f"{bucket}/other")


def test_the_two_kinds_of_folder_agree(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "c.0.0.0.0").write_text("one")
    (tmp_path / "a" / "zarr.json").write_text("two")
    for folder in (LocalFolder(tmp_path / "local"), get_folder("memory://agree")):
        folder.put(Path(str(tmp_path / "a")) if str(folder) != "memory://agree" else tmp_path / "local" / "b", "b")
        assert folder.create("x/text", "hello") and not folder.create("x/text", "other")
        assert folder.modified("x/text") and folder.modified("x/none") is None
        folder.keep("b", "c")
        assert (
            folder.names() == ["b", "c", "x"]
            and folder.names("b") == ["c.0.0.0.0", "zarr.json"]
            and folder.names("no") == []
        )
        assert folder.size("c") == 6 and folder.size("nothing") is None and folder.read("x/text") == "hello"
        with folder.local("b") as path, folder.local("c") as copy:
            assert measure(path) == measure(copy)
        with folder.local("c") as path:
            assert (path / "zarr.json").read_text() == "two"
        folder.remove("c")
        folder.remove("c")
        assert folder.names() == ["b", "x"]


@contextmanager
def dripping(content: bytes, pieces: int, pause: float) -> Iterator[str]:
    """The URL of a video that comes piece by piece."""

    class Drip(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            size = -(-len(content) // pieces)
            for start in range(0, len(content), size):
                self.wfile.write(content[start : start + size])
                time.sleep(pause)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Drip) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/a.mp4"
        server.shutdown()


def test_a_download_that_takes_longer_than_the_time_limit_is_built(tmp_path: Path) -> None:
    content = write_video(tmp_path / "a.mp4", frames=30).read_bytes()
    with dripping(content, pieces=8, pause=0.3) as url:
        (tmp_path / "videos.csv").write_text(f"path,label\n{url},cats\n")
        report = build(tmp_path / "videos.csv", tmp_path / "set", workers=1, time_limit=1.0)
    assert report.decoded == 1


def test_copies_from_and_to_afar_tell_that_they_go_on(tmp_path: Path) -> None:
    told: list[float] = []

    def report(done: int, silence: float = 0.0) -> None:
        assert done == 0
        told.append(silence)

    with dripping(bytes(1000), pieces=5, pause=0.02) as url, local_file(url, report) as path:
        assert Path(path).read_bytes() == bytes(1000)
    assert len(told) > 3 and min(told) > 0
    told.clear()
    get_folder("memory://told").put(Path(write_video(tmp_path / "a.mp4")), "a.mp4", report)
    assert told
    told.clear()
    with get_folder("memory://told").local("a.mp4", report):
        assert told


def test_listings_and_downloads_do_not_grow_with_shards_or_videos(
    labelled_videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[str] = []
    opened: list[str] = []
    find, open_ = MemoryFileSystem.find, MemoryFileSystem._open

    def counted_find(self: MemoryFileSystem, path: str, **options: Any) -> Any:
        listed.append(path)
        return find(self, path, **options)

    def counted_open(self: MemoryFileSystem, path: str, mode: str = "rb", **options: Any) -> Any:
        opened.extend([path] if mode == "rb" and path.endswith(".tar") else [])
        return open_(self, path, mode, **options)

    monkeypatch.setattr(MemoryFileSystem, "find", counted_find)
    monkeypatch.setattr(MemoryFileSystem, "_open", counted_open)
    assert build(labelled_videos, "memory://few", per_shard=8, val=0.0).shards_written == 1
    assert build(labelled_videos, "memory://lots", per_shard=1, val=0.0).shards_written > 4
    assert listed.count("/few") == listed.count("/lots") and not opened
    write_video(labelled_videos / "cats" / "new.mp4", salt=50)
    assert build(labelled_videos, "memory://few", per_shard=16, val=0.0).copied == 8
    assert len(opened) == 1


def test_a_long_download_that_breaks_is_tried_again_and_a_silent_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(places, "SILENCE", 0.05)
    monkeypatch.setattr(places, "PAUSES", (0.0, 0.0, None))
    tries: list[float] = []

    def breaks() -> None:
        tries.append(time.monotonic())
        time.sleep(0.1)
        raise ConnectionResetError

    with pytest.raises(OSError, match="ConnectionResetError"):
        places.insist(breaks, heard=time.monotonic)
    assert len(tries) == 3
    with pytest.raises(OSError, match="ConnectionResetError"):
        places.insist(breaks)
    assert len(tries) == 4


def test_a_host_that_does_not_answer_is_told_in_plain_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "PAUSES", (None,))
    with pytest.raises(UserError) as told:
        read_set("http://127.0.0.1:1/set")
    why = "nothing answers there (Connection refused); check the address and the network"
    assert str(told.value) == f"http://127.0.0.1:1/set: cannot be reached: {why}"
