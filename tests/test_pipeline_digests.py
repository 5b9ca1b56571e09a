"""Sources that were not touched since the last build are not read again; all others are."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import build

from pipeline import digests
from pipeline.digests import read_digests
from pipeline.shards.folder import file_sha256
from pipeline.sources import Video


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read; here files settle at once."""
    found: list[str] = []

    def reading(path: str) -> str:
        found.append(Path(path).name)
        return file_sha256(path)

    monkeypatch.setattr(digests, "file_sha256", reading)
    monkeypatch.setattr(digests, "SETTLED", -(10**18))
    return found


@pytest.fixture
def videos(tmp_path: Path) -> list[Video]:
    for name in "abc":
        (tmp_path / name).write_text(f"this is {name}")
    return [Video(name, str(tmp_path / name), "cats", name) for name in "abc"]


def true_digests(videos: list[Video]) -> dict[str, str]:
    return {video.id: hashlib.sha256(Path(video.path).read_bytes()).hexdigest() for video in videos}


def put_back(path: Path) -> None:
    """Other bytes, as many, and the old time of change."""
    about = path.stat()
    path.write_text("other b!!"[: about.st_size])
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def renamed(path: Path) -> None:
    put_back(Path(path.rename(path.with_name("new"))))
    path.with_name("new").rename(path)


def test_untouched_files_are_read_once(videos: list[Video], tmp_path: Path, reads: list[str]) -> None:
    first, second = read_digests(tmp_path, videos), read_digests(tmp_path, videos)
    assert first == second == true_digests(videos) and sorted(reads) == ["a", "b", "c"]


@pytest.mark.parametrize("touch", [put_back, renamed, Path.touch])
def test_a_touched_file_is_read_again(
    touch: Callable[[Path], None], videos: list[Video], tmp_path: Path, reads: list[str]
) -> None:
    read_digests(tmp_path, videos)
    reads.clear()
    time.sleep(0.05)  # ticks of the file system's clock
    touch(tmp_path / "b")
    assert read_digests(tmp_path, videos) == true_digests(videos) and reads == ["b"]


def test_a_file_that_is_still_new_is_read_each_time(
    videos: list[Video], tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "SETTLED", 60 * 10**9)
    read_digests(tmp_path, videos)
    read_digests(tmp_path, videos)
    assert len(reads) == 6


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    videos: list[Video], tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing(path: str) -> str:
        found = file_sha256(path)
        with Path(path).open("a") as file:
            file.write("!")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(digests, "file_sha256", changing)
        read_digests(tmp_path, videos)
    assert read_digests(tmp_path, videos) == true_digests(videos) and len(reads) == 3


@pytest.mark.parametrize("text", ["nonsense", '["a", 1]\n', '[[], 1, 2, 3, 4, "5"]\n', '{"a": 1}\n'])
def test_a_damaged_memory_is_no_memory(text: str, videos: list[Video], tmp_path: Path, reads: list[str]) -> None:
    read_digests(tmp_path, videos)
    memo = digests._memo_of(tmp_path)
    assert memo
    memo.write_text(text)
    assert read_digests(tmp_path, videos) == true_digests(videos) and len(reads) == 6


def test_without_a_place_to_remember_all_is_read(
    videos: list[Video], tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert read_digests(tmp_path, videos) == read_digests(tmp_path, videos) == true_digests(videos)
    assert len(reads) == 6


def test_without_a_home_all_is_read(
    videos: list[Video], tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(digests, "default_cache", homeless)
    assert read_digests(tmp_path, videos) == true_digests(videos) and len(reads) == 3


def test_a_build_reads_what_is_new(labelled_videos: Path, tmp_path: Path, reads: list[str]) -> None:
    for _ in range(2):
        build(labelled_videos, tmp_path / "set")
    assert len(reads) == 8
    reads.clear()
    time.sleep(0.05)
    (labelled_videos / "cats" / "0.mp4").write_bytes((labelled_videos / "dogs" / "1.mp4").read_bytes())
    report = build(labelled_videos, tmp_path / "set")
    assert reads == ["0.mp4"] and report.shards_written and not report.decoded
