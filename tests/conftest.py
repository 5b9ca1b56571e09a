"""Tiny videos and sets, made on the fly; the shared real clips, where they are."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import cv2
import fsspec
import numpy as np
import pytest
from av.video.stream import VideoStream
from click.testing import Result
from far import FarServer, s3_at, s3_server, serving
from numpy.typing import NDArray

from pipeline.driver import BuildReport, Wanted, build_set
from pipeline.recipe import Recipe
from pipeline.shards import get_format
from pipeline.shards.index import read_set
from pipeline.shards.sidecar import sealed

SMALL = Recipe(width=32, height=32)
SMALL_RUN = ["--frames", "4", "--batch-size", "8", "--precision", "fp32"]
QUICK = ["--model", "early_fusion", "--option", "backbone=resnet18_quarter", *SMALL_RUN]
SHARED = Path(__file__).parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--exhaustive`: all real clips, many kills; minutes instead of seconds."""
    parser.addoption("--exhaustive", action="store_true", help="all real clips, every kill")
    parser.addoption("--kills", type=int, default=20, help="with --exhaustive: of builds and transfers, each")


@pytest.fixture(scope="session")
def exhaustive(request: pytest.FixtureRequest) -> bool:
    """Whether to test everything rather than a sample."""
    return bool(request.config.getoption("--exhaustive"))


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept in the user's cache is kept in a folder of the tests."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def kills(request: pytest.FixtureRequest, exhaustive: bool) -> int:
    """How many builds or transfers to kill."""
    return int(request.config.getoption("--kills")) if exhaustive else 2


def shared_folder(name: str) -> Path:
    """A folder of shared data; skips the test where a stranger's clone has none."""
    folder = SHARED / name
    if not folder.exists():
        pytest.skip(f"needs the shared data, which is not at {folder}")
    return folder


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """The folder of real surveillance clips with its `videos.csv`."""
    return shared_folder("surveillance-fights")


@pytest.fixture(scope="session")
def awkward_videos() -> Path:
    """The folder of real files that break video tools, with its `MANIFEST.tsv`."""
    return shared_folder("awkward-videos")


def picture_number(number: int, width: int = 64, height: int = 48) -> NDArray[np.uint8]:
    """A picture that shows its number: as grey in the whole, with a bright bar that moves."""
    picture = np.full((height, width, 3), 40 + 5 * (number % 40), np.uint8)
    cv2.rectangle(picture, (number % width, 0), (number % width + 6, height), (255, 255, 255), -1)
    return picture


def write_video(
    path: Path,
    frames: int = 30,
    rate: int = 30,
    *,
    pts: Sequence[int] | None = None,
    codec: str = "libx264",
    size: tuple[int, int] = (64, 48),
    options: dict[str, str] | None = None,
    salt: int = 0,
    picture: NDArray[np.uint8] | None = None,
) -> Path:
    """A video of numbered pictures (or one `picture` all along); `pts` in units of 1/rate seconds, where they
    are not 0, 1, 2, …"""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate), options=options or {})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        stream.codec_context.thread_count = 1
        for number, time in enumerate(pts if pts is not None else range(frames)):
            shown = picture_number(number + salt, *size) if picture is None else picture
            frame = av.VideoFrame.from_ndarray(shown, "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def replace_packet(source: Path, copy: Path, number: int, content: bytes) -> Path:
    """A copy of the video in which one packet holds one byte over and over."""
    with av.open(str(source)) as container, av.open(str(copy), "w") as output:
        stream = container.streams.video[0]
        output_stream = output.add_stream_from_template(stream)
        for index, packet in enumerate(packet for packet in container.demux(stream) if packet.size):
            if index == number:
                packet.update(content * packet.size)
            packet.stream = output_stream
            output.mux(packet)
    return copy


@pytest.fixture
def labelled_videos(tmp_path: Path) -> Path:
    """`videos/<label>/<n>.mp4`: 8 short ones, 2 labels, each with bytes of its own."""
    root = tmp_path / "videos"
    for number in range(8):
        write_video(root / ("cats", "dogs")[number % 2] / f"{number}.mp4", frames=20 + number, salt=number)
    return root


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished set of 24 videos in 2 splits and several shards; read it, don't write it."""
    root = tmp_path_factory.mktemp("small")
    for number in range(24):
        split, label = ("train", "val")[number % 3 == 0], ("cats", "dogs")[number % 2]
        write_video(root / "videos" / split / label / f"{number}.mp4", frames=20 + 6 * number, salt=number)
    build_set(Wanted(root / "videos", Recipe(width=48, height=48), per_shard=4), root / "shards")
    return root / "shards"


@pytest.fixture(scope="session")
def many(small_set: Path) -> Path:
    """The videos of `small_set` in many shards; read it, don't write it."""
    root = small_set.parent / "many"
    build(small_set.parent / "videos", root, recipe=Recipe(width=48, height=48), per_shard=1)
    return root


@pytest.fixture(scope="session")
def coded_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """The same 8 videos, of 7 to 28 frames, by format and codec."""
    root = tmp_path_factory.mktemp("coded")
    for number in range(8):
        label = ("cats", "dogs")[number % 2]
        write_video(root / "videos" / "train" / label / f"{number}.mp4", 42 + 18 * number, salt=number)
    kinds = [
        ("webdataset", "raw"),
        ("webdataset", "zstd"),
        ("webdataset", "jpeg"),
        ("zarr", "raw"),
        ("zarr", "zstd"),
    ]
    for name, codec in kinds:
        build(root / "videos", root / name / codec, recipe=Recipe(width=32, height=32, format=name, codec=codec))
    return {(name, codec): root / name / codec for name, codec in kinds}


@pytest.fixture
def server(many: Path) -> Iterator[FarServer]:
    """`many` behind HTTP."""
    with serving(many) as far:
        yield far


@pytest.fixture
def set_copy(small_set: Path, tmp_path: Path) -> Path:
    """`small_set`, to be changed."""
    return Path(shutil.copytree(small_set, tmp_path / "set"))


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`s3://team`, on this machine; its address and keys are in the environment, as a user has them."""
    with s3_server() as url, s3_at(url, tmp_path_factory.mktemp("aws")):
        fsspec.filesystem("s3").mkdir("team")
        yield "s3://team"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 1 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.fixture(scope="module")
def far_bucket(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarServer]:
    """`s3://far/many`, behind a server that can go wrong."""
    with s3_server() as url, serving(url) as server, s3_at(server.url, tmp_path_factory.mktemp("aws")):
        system = fsspec.filesystem("s3", endpoint_url=url)
        system.mkdir("far")
        system.put(f"{many}/", "far/many/", recursive=True)
        yield server


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the watched processes have: sums of other parts have other last digits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def few_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--model few`, as in the watched processes."""
    import watched_train

    import models
    from train.recipes import RECIPES

    monkeypatch.setitem(models.MODELS, "few", "")
    monkeypatch.setitem(RECIPES, "few", RECIPES["s3d"])
    watched_train.register()


def set_bytes(root: Path) -> dict[str, bytes]:
    """Every file of a set, hidden ones too."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@contextmanager
def dask_cluster(folder: Path, workers: int) -> Iterator[tuple[str, list["subprocess.Popen[bytes]"]]]:
    """A scheduler and workers as processes of their own, in another folder; yields the address and the processes,
    the scheduler's first."""
    address_file = folder / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    quiet = {"cwd": "/", "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    local = ["--host", "127.0.0.1", "--scheduler-file", str(address_file), "--no-dashboard"]
    processes = [subprocess.Popen([*dask, "scheduler", *local, "--port", "0"], **quiet)]  # type: ignore[call-overload]
    scratch = ["--nthreads", "1", "--no-nanny", "--local-directory", str(folder)]
    join = ["--scheduler-file", str(address_file), "--no-dashboard", "--host", "127.0.0.1", *scratch]
    try:
        while not address_file.exists() or not address_file.read_text().endswith("}"):
            assert processes[0].poll() is None, "the scheduler did not start"
            time.sleep(0.05)
        processes += [subprocess.Popen([*dask, "worker", *join], **quiet) for _ in range(workers)]  # type: ignore[call-overload]
        yield json.loads(address_file.read_text())["address"], processes
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait()


def assert_one_clear_line(result: Result, code: int, message: str) -> None:
    """The command ended with `code` and one line that says `message`; no traceback."""
    assert result.exit_code == code, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1 and message in errors[0], result.stderr
    assert "Traceback" not in result.output


def edit_sidecar(path: Path, **fields: object) -> None:
    """Change fields of a sidecar, and give it a checksum that fits."""
    values = {name: value for name, value in json.loads(path.read_text()).items() if name != "crc32c"}
    path.write_text(sealed(json.dumps({**values, **fields})[:-1]))


def build(source: Path | str, root: Path | str, **options: object) -> BuildReport:
    recipe = options.pop("recipe", SMALL)
    assert isinstance(recipe, Recipe)
    wanted = {"per_shard": 2, **{k: options.pop(k) for k in list(options) if k in Wanted.__dataclass_fields__}}
    return build_set(Wanted(source, recipe, **wanted), root, **options)  # type: ignore[arg-type]


def frames_by_video(root: Path) -> dict[str, bytes]:
    shard_set = read_set(root)
    found: dict[str, bytes] = {}
    for sidecar in shard_set.sidecars:
        with get_format(shard_set.recipe.format).open(root / sidecar.shard, shard_set.recipe) as reader:
            for sample in sidecar.samples:
                found[sample.video] = found.get(sample.video, b"") + reader.frames(sample).tobytes()
    return found
