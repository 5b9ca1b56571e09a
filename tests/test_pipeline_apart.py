"""Decoders that crash or never return: their videos are rejected by name, all others are built."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import build, write_video

from pipeline import cluster
from pipeline.decode import DecodeError, get_decoder
from pipeline.decode.apart import frames_apart
from pipeline.errors import WorkFailed
from pipeline.plan import ShardTask
from pipeline.recipe import Recipe

SMALL = Recipe(width=32, height=32)
# Every Python process with this folder on its path knows the decoder `stub`.
SITE = "from pipeline.decode import DECODERS\nDECODERS['stub'] = 'stub_decoder:Stub'\n"
STUB = """
import os, time
from pipeline.decode.pyav import PyAV

class Stub(PyAV):
    def frames(self, path, recipe):
        if path.endswith("crash.mp4"):
            os.abort()
        while path.endswith("hang.mp4"):
            pass
        yield from super().frames(path, recipe)
"""


def test_frames_from_another_process_are_the_same(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4", frames=60))
    here, there = get_decoder("pyav").frames(path, SMALL), frames_apart(path, SMALL, 30)
    for ours, theirs in zip(here, there, strict=True):
        assert (ours.pts, ours.time_base) == (theirs.pts, theirs.time_base)
        assert np.array_equal(ours.pixels, theirs.pixels)


def test_reasons_come_from_another_process_too(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("not a video")
    with pytest.raises(DecodeError, match="cannot be opened as a video"):
        list(frames_apart(str(tmp_path / "a.mp4"), SMALL, 30))


def test_crashing_and_hanging_videos_are_rejected_by_name_all_others_built(
    labelled_videos: Path, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    (tmp_path / "site" / "stub_decoder.py").write_text(STUB)
    write_video(labelled_videos / "cats" / "crash.mp4", salt=30)
    write_video(labelled_videos / "dogs" / "hang.mp4", salt=31)
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "build-shards", str(labelled_videos)]
    options = ["--decoder", "stub", "--workers", "2", "--videos-per-shard", "4", "--time-limit", "2", "--json"]
    done = subprocess.run(
        [*command, *options, "--out", str(tmp_path / "set")],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    reasons = {entry["video"]: entry["reason"] for entry in summary["rejections"]}
    assert reasons == {
        "cats/crash.mp4": "the decoder crashed (SIGABRT)",
        "dogs/hang.mp4": "the decoder gave no frame for 2 seconds and was ended",
    }
    assert summary["videos"] == 8
    assert "Traceback" not in done.stderr


def test_a_shard_whose_worker_ends_twice_is_named_with_its_videos(
    labelled_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(
        work: object, tasks: list[ShardTask], *_: object, **__: object
    ) -> Iterator[tuple[ShardTask, Exception]]:
        assert work
        yield from ((task, cluster.WorkerDied("gone")) for task in tasks)

    monkeypatch.setattr(cluster, "run", run)
    with pytest.raises(WorkFailed, match=r"train-000000: .*ended twice.*--time-limit.*It holds .*cats/0\.mp4"):
        build(labelled_videos, tmp_path / "set", per_shard=8, val=0.0)
