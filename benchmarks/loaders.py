"""The loaders that `benchmarks/stream.py` compares: peers by their own means, and ours.

    python benchmarks/loaders.py write NAME FOLDER           # convert FOLDER/clips.npy as NAME wants it
    python benchmarks/loaders.py read NAME FOLDER WORKERS    # answers every line on stdin with one epoch

Runs in two virtual environments, so each loader imports its own library. All give the same clips, uint8
[B, 16, H, W, 3] (litdata's JPEGs [B, 16, 3, H, W]) in shuffled batches of 32. Compressed peers get the same frames
as ours and decode them as their documentation shows: litdata by torchvision, and for zstd by pyarrow, a batch of
samples at once, which is its default and far faster than a sample at a time; WebDataset by `decode("rgb8")`, which
is Pillow, and for zstd, which it does not know, by the package zstandard; MDS by Pillow. zstd in MDS is for the
way to the machine: shards are unpacked once and then read raw, so that row is `mosaic`.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path[0] = str(Path(__file__).parents[1])  # or `models` would be benchmarks/models.py

BATCH, FRAMES = 32, 16
QUALITY = 90  # of JPEG, as in our recipe

Epoch = Callable[[], Iterable[Any]]  # gives the batches of frames of one epoch, each time it is called
Item = dict[str, Any]


def clips_of(folder: Path) -> Any:
    """The mapped clips [N, 16, H, W, 3]."""
    return np.load(folder / "clips.npy", mmap_mode="r")


def to_jpeg(clip: Any) -> list[bytes]:
    """A JPEG a frame, colour at full resolution, as ours."""
    import cv2

    settings = [cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR]
    settings.append(cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    return [cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), settings)[1].tobytes() for frame in clip]


def torch_loader(dataset: Any, workers: int, **options: Any) -> Epoch:
    """A plain `DataLoader`, with workers that live on."""
    from torch.utils.data import DataLoader

    loader = DataLoader(dataset, BATCH, num_workers=workers, persistent_workers=workers > 0, **options)
    return lambda: (batch["frames"] if isinstance(batch, dict) else batch[0] for batch in loader)


class MapStyle:
    """What everybody writes first: one array, `__getitem__`."""

    def __init__(self, folder: Path) -> None:
        self.clips = clips_of(folder)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, place: int) -> Any:
        return np.array(self.clips[place]), 0


def read_map(folder: Path, workers: int) -> Epoch:
    """A `DataLoader` over one mapped array."""
    return torch_loader(MapStyle(folder), workers, shuffle=True)


def read_limit(folder: Path, workers: int) -> Epoch:  # noqa: ARG001
    """A bare NumPy gather from a mapped array into a reused buffer."""
    clips, chance = clips_of(folder), np.random.default_rng(0)
    buffer = np.empty((BATCH, *clips.shape[1:]), np.uint8)

    def epoch() -> Iterator[Any]:
        order = chance.permutation(len(clips)).tolist()
        for begin in range(0, len(order), BATCH):
            part = order[begin : begin + BATCH]
            for row, place in enumerate(part):
                buffer[row] = clips[place]
            yield buffer[: len(part)]

    return epoch


def read_ours(folder: Path, workers: int) -> Epoch:
    """`ClipStream`; `workers` threads copy or decode."""
    from train.stream import ClipStream

    stream = ClipStream.open(folder, frames_per_clip=FRAMES, batch_size=BATCH, threads=max(1, workers))
    numbers = iter(range(10**9))
    return lambda: (batch.frames for batch in stream.epoch(next(numbers)))


def read_codec(folder: Path, workers: int) -> Epoch:
    """Our shards decoded in order by the bare codec on `workers` threads, into rows that are used again: no order,
    no batches, and nothing of Python between the chunks of a clip but the call."""
    from concurrent.futures import ThreadPoolExecutor

    from pipeline.shards.codec import get_codec
    from pipeline.shards.index import read_set
    from pipeline.shards.webdataset import map_file

    index = read_set(folder).split("train")
    codec, height, width = get_codec(index.recipe), index.recipe.height, index.recipe.width
    rows = np.empty((2 * BATCH, FRAMES // codec.chunk, codec.chunk, height, width, 3), np.uint8)
    maps = [memoryview(map_file(path)) for path in index.shards]
    pool = ThreadPoolExecutor(max(1, workers))

    def decode(place: int, row: Any) -> None:
        sample, data = index.samples[place], maps[index.shard[place]]
        start = sample.offset
        for size, part in zip(sample.sizes, row, strict=True):
            codec.decode(data[start : start + size], part)
            start += size

    def epoch() -> Iterator[Any]:
        half = 0
        for begin in range(0, len(index), BATCH):
            part = rows[half : half + min(BATCH, len(index) - begin)]
            half = BATCH - half
            for _ in pool.map(decode, range(begin, begin + len(part)), part):
                pass
            yield part.reshape(len(part), FRAMES, height, width, 3)

    return epoch


class LitItem:
    """What litdata calls for each clip; a class, as it goes to other processes."""

    def __init__(self, folder: Path, jpeg: bool) -> None:
        self.folder, self.jpeg = folder, jpeg

    def __call__(self, place: int) -> Item:
        from litdata.types import JpegArray

        clip = np.array(clips_of(self.folder)[place])
        return {"frames": JpegArray(images=to_jpeg(clip)) if self.jpeg else clip, "label": 0}


def write_litdata(folder: Path, out: Path, *, zstd: bool = False, jpeg: bool = False) -> None:
    """Chunks of 64 MB."""
    import litdata

    options = {"compression": "zstd:1"} if zstd else {}
    places = list(range(len(clips_of(folder))))
    litdata.optimize(LitItem(folder, jpeg), places, str(out), chunk_bytes="64MB", num_workers=1, **options)


def read_litdata(folder: Path, workers: int, *, jpeg: bool = False) -> Epoch:
    """`StreamingDataset` and `StreamingDataLoader`."""
    import litdata
    import torch

    class Stacked(litdata.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, place: Any) -> Any:
            item = super().__getitem__(place)
            return {**item, "frames": torch.stack(item["frames"])} if jpeg else item

    data = Stacked(str(folder), shuffle=True)
    loader = litdata.StreamingDataLoader(
        data, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: (batch["frames"] for batch in loader)


def write_webdataset(folder: Path, out: Path, *, jpeg: bool) -> None:
    """A member a frame, as is usual for JPEG, or a compressed array a clip; 128 clips a shard."""
    import webdataset
    import zstandard

    out.mkdir()
    encoder = zstandard.ZstdCompressor(level=1)
    with webdataset.ShardWriter(str(out / "train-%06d.tar"), maxcount=128, verbose=0) as writer:
        for number, clip in enumerate(clips_of(folder)):
            members: Item = {"__key__": f"{number:08d}", "cls": 0}
            if jpeg:
                members |= {f"{i:02d}.jpg": picture for i, picture in enumerate(to_jpeg(clip))}
            else:
                members["zst"] = encoder.compress(np.ascontiguousarray(clip).data)
            writer.write(members)


def read_webdataset(folder: Path, workers: int, *, kind: str) -> Epoch:
    """`WebDataset` with a shuffle buffer of 1000, decoded after it, batched in its workers, and `WebLoader`."""
    import webdataset

    def unpack(sample: Item) -> Any:
        import zstandard

        data = zstandard.ZstdDecompressor().decompress(sample["zst"])
        return np.frombuffer(data, np.uint8).reshape(FRAMES, 112, 112, 3)

    urls = sorted(map(str, folder.glob("train-*.tar")))
    data = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0, empty_check=False).shuffle(1000)
    if kind == "zstd":
        data = data.map(unpack)
    elif kind == "jpeg":
        names = [f"{i:02d}.jpg" for i in range(FRAMES)]
        data = data.decode("rgb8").map(lambda sample: np.stack([sample[name] for name in names]))
    else:
        data = data.decode().map(lambda sample: sample["frames.npy"])
    data = data.batched(BATCH, collation_fn=np.stack)
    loader = webdataset.WebLoader(data, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    return lambda: loader


def write_mosaic(folder: Path, out: Path, *, jpeg: bool = False) -> None:
    """MDS shards of 67 MB."""
    from streaming import MDSWriter

    clips = clips_of(folder)
    shape = ",".join(map(str, clips.shape[1:]))
    columns = {"frames": "jpeg_array" if jpeg else f"ndarray:uint8:{shape}", "label": "int"}
    with MDSWriter(out=str(out), columns=columns) as writer:
        for clip in clips:
            writer.write({"frames": to_jpeg(clip) if jpeg else np.array(clip), "label": 0})


def read_mosaic(folder: Path, workers: int, *, jpeg: bool = False) -> Epoch:
    """`StreamingDataset` in a `DataLoader`."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    class Stacked(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, place: Any) -> Any:
            item = super().__getitem__(place)
            return {**item, "frames": np.stack([np.asarray(p) for p in item["frames"]])} if jpeg else item

    clean_stale_shared_memory()
    return torch_loader(Stacked(local=str(folder), shuffle=True, batch_size=BATCH), workers)


class Decord:
    """Each item decodes a video, scaled in the decoder, and keeps 16 frames at 5 a second."""

    def __init__(self, folder: Path) -> None:
        self.paths: list[str] = json.loads((folder / "videos.json").read_text())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> Any:
        import decord

        reader = decord.VideoReader(self.paths[place], width=112, height=112, num_threads=1)
        kept = np.arange(0, len(reader), reader.get_avg_fps() / 5).astype(int)
        start = np.random.default_rng().integers(max(1, len(kept) - FRAMES + 1))
        chosen = np.resize(kept[start : start + FRAMES], FRAMES)
        return reader.get_batch(chosen).asnumpy(), 0


READ: dict[str, Callable[[Path, int], Epoch]] = {
    "limit": read_limit,
    "ours": read_ours,
    "ours zarr": read_ours,
    "ours zstd": read_ours,
    "ours jpeg": read_ours,
    "limit zstd": read_codec,
    "limit jpeg": read_codec,
    "map-style": read_map,
    "map-style, 2 workers": read_map,
    "litdata": read_litdata,
    "litdata zstd": read_litdata,
    "litdata jpeg": lambda folder, workers: read_litdata(folder, workers, jpeg=True),
    "webdataset": lambda folder, workers: read_webdataset(folder, workers, kind="raw"),
    "webdataset zstd": lambda folder, workers: read_webdataset(folder, workers, kind="zstd"),
    "webdataset jpeg": lambda folder, workers: read_webdataset(folder, workers, kind="jpeg"),
    "mosaic": read_mosaic,
    "mosaic jpeg": lambda folder, workers: read_mosaic(folder, workers, jpeg=True),
    "decord2": lambda folder, workers: torch_loader(Decord(folder), workers, shuffle=True),
}
WRITE: dict[str, Callable[[Path, Path], None]] = {
    "litdata": write_litdata,
    "litdata zstd": lambda folder, out: write_litdata(folder, out, zstd=True),
    "litdata jpeg": lambda folder, out: write_litdata(folder, out, jpeg=True),
    "webdataset zstd": lambda folder, out: write_webdataset(folder, out, jpeg=False),
    "webdataset jpeg": lambda folder, out: write_webdataset(folder, out, jpeg=True),
    "mosaic": write_mosaic,
    "mosaic jpeg": lambda folder, out: write_mosaic(folder, out, jpeg=True),
}


def serve(name: str, folder: Path, workers: int) -> None:
    """Say that the loader is there, or why not; then answer each line with an epoch: clips, seconds, checksum."""
    try:
        epoch = READ[name](folder, workers)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(json.dumps({"missing": f"{type(error).__name__}: {str(error).splitlines()[0]}"}), flush=True)
        return
    print(json.dumps({}), flush=True)
    for _ in sys.stdin:
        clips = checksum = 0
        began = time.perf_counter()
        for frames in epoch():
            clips += len(frames)
            checksum += int(frames[:, :, 0, 0, 0].sum())
        print(
            json.dumps({"clips": clips, "seconds": time.perf_counter() - began, "checksum": checksum}), flush=True
        )


if __name__ == "__main__":
    if sys.argv[1] == "write":
        WRITE[sys.argv[2]](Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        serve(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
