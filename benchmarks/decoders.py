"""The methods that `benchmarks/build.py` compares: the same frames of a video by other libraries and by ours.

    python benchmarks/decoders.py METHOD        # a process that decodes what it is told to on stdin

Runs in two virtual environments, so each method imports its own library. All decode on one thread. A method takes
a path and the numbers (in order of display) of the frames to keep, and gives uint8 [N, 112, 112, 3] RGB.
torchcodec and ffmpeg choose the frames themselves, by time, and so do we; the others are told, at no cost.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

FPS, SIZE = 5, 112

Decode = Callable[[str, Sequence[int]], Any]  # how many frames came out is the length of what it gives
Method = Callable[[], tuple[Decode, str]]  # imports its library; gives how to decode, and the version


def opencv(interpolation: str) -> tuple[Decode, str]:
    """The loop that everybody writes: `read` every frame, `resize` the kept ones."""
    import cv2

    cv2.setNumThreads(1)

    def decode(path: str, numbers: Sequence[int]) -> Any:
        capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        wanted, kept, number = set(numbers), [], 0
        while True:
            read, image = capture.read()
            if not read:
                break
            if number in wanted:
                small = cv2.resize(image, (SIZE, SIZE), interpolation=getattr(cv2, interpolation))
                kept.append(cv2.cvtColor(small, cv2.COLOR_BGR2RGB))
            number += 1
        capture.release()
        return np.stack(kept)

    return decode, cv2.__version__


def opencv_grab() -> tuple[Decode, str]:
    """As a careful user writes it: `grab` every frame, `retrieve` only the kept ones; OpenCV's own scaling."""
    import cv2

    cv2.setNumThreads(1)

    def decode(path: str, numbers: Sequence[int]) -> Any:
        capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        wanted, kept, number = set(numbers), [], 0
        while number <= numbers[-1] and capture.grab():
            if number in wanted:
                small = cv2.resize(capture.retrieve()[1], (SIZE, SIZE))
                kept.append(cv2.cvtColor(small, cv2.COLOR_BGR2RGB))
            number += 1
        capture.release()
        return np.stack(kept)

    return decode, cv2.__version__


def plain_pyav() -> tuple[Decode, str]:
    """Decode every frame; swscale from YUV straight to small RGB, one context a video."""
    import av
    from av.video.reformatter import Interpolation, VideoReformatter

    def decode(path: str, numbers: Sequence[int]) -> Any:
        wanted, kept, scale = set(numbers), [], VideoReformatter()
        with av.open(path) as container:
            container.streams.video[0].thread_count = 1
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    small = scale.reformat(frame, SIZE, SIZE, "rgb24", interpolation=Interpolation.AREA, threads=1)
                    kept.append(small.to_ndarray())
        return np.stack(kept)

    return decode, av.__version__


def decord2() -> tuple[Decode, str]:
    """`get_batch` of the kept frames, scaled in the decoder."""
    from importlib.metadata import version

    import decord

    def decode(path: str, numbers: Sequence[int]) -> Any:
        reader = decord.VideoReader(path, width=SIZE, height=SIZE, num_threads=1)
        return reader.get_batch(numbers).asnumpy()

    return decode, version("decord2")


def torchcodec() -> tuple[Decode, str]:
    """`get_all_frames(fps=5)`, scaled in the decoder, without the scan of the file that exact seeking needs."""
    import torch
    import torchcodec
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    torch.set_num_threads(1)

    def decode(path: str, numbers: Sequence[int]) -> Any:  # noqa: ARG001
        decoder = VideoDecoder(
            path,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            seek_mode="approximate",
            transforms=[Resize((SIZE, SIZE))],
        )
        return decoder.get_all_frames(fps=FPS).data.numpy()

    return decode, torchcodec.__version__


def ffmpeg() -> tuple[Decode, str]:
    """The command line, one process a file, raw video through a pipe."""
    options = ["-v", "error", "-nostdin", "-threads", "1"]
    scale = ["-an", "-vf", f"fps={FPS},scale={SIZE}:{SIZE}:flags=area", "-filter_threads", "1"]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]

    def decode(path: str, numbers: Sequence[int]) -> Any:  # noqa: ARG001
        done = subprocess.run(["ffmpeg", *options, "-i", path, *scale, *raw], capture_output=True, check=True)
        return np.frombuffer(done.stdout, np.uint8).reshape(-1, SIZE, SIZE, 3)

    said = subprocess.run(["ffmpeg", "-version"], capture_output=True, check=True, text=True).stdout
    return decode, said.split()[2]


def ours(name: str) -> tuple[Decode, str]:
    """A decoder of ours, as `prep build-shards` uses it; it chooses the frames itself, by time."""
    from pipeline.decode import get_decoder
    from pipeline.recipe import Recipe

    decoder, recipe = get_decoder(name), Recipe(fps=Fraction(FPS), width=SIZE, height=SIZE)

    def decode(path: str, numbers: Sequence[int]) -> Any:  # noqa: ARG001
        return np.stack([frame.pixels for frame in decoder.frames(path, recipe)])

    return decode, decoder.version()


def limit() -> tuple[Decode, str]:
    """Only the needed frames decoded, by our plan; none converted."""
    from pipeline.decode import pyav
    from pipeline.decode.container import demux, open_video
    from pipeline.recipe import Recipe

    recipe = Recipe(fps=Fraction(FPS), width=SIZE, height=SIZE)

    def decode(path: str, numbers: Sequence[int]) -> Any:  # noqa: ARG001
        with open_video(path) as (container, stream):
            packets = list(demux(container, stream))
            times = pyav._Times()
            for packet in packets:
                times.add(packet)
            slots = pyav._choose(times, stream, recipe)
            left = len(slots)
            for frame in pyav._decode_skipping(packets, times, slots, stream):
                left -= frame.pts in slots
                if not left:
                    break
            return [pts for pts, count in slots.items() for _ in range(count)]

    return decode, pyav.PyAV().version()


OURS: dict[str, Method] = {
    "pyav decoder": lambda: ours("pyav"),
    "opencv decoder": lambda: ours("opencv"),
    "limit": limit,
}
PEERS: dict[str, Method] = {
    "OpenCV": lambda: opencv("INTER_AREA"),
    "OpenCV, INTER_LINEAR": lambda: opencv("INTER_LINEAR"),
    "OpenCV, grab": opencv_grab,
    "plain PyAV": plain_pyav,
    "decord2": decord2,
    "torchcodec": torchcodec,
    "ffmpeg": ffmpeg,
}


def cpu_seconds() -> float:
    """Of this process and of its children that have ended, user and system."""
    spent = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in spent)


def serve(name: str) -> None:
    """Answer a line with the version, or why there is none; then decode each line of clips and answer the cost."""
    try:
        decode, version = {**PEERS, **OURS}[name]()
    except (ImportError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        print(json.dumps({"missing": f"{type(error).__name__}: {str(error).splitlines()[0]}"}), flush=True)
        return
    print(json.dumps({"version": version}), flush=True)
    for line in sys.stdin:
        began = cpu_seconds()
        frames = sum(len(decode(path, numbers)) for path, numbers in json.loads(line))
        print(json.dumps({"frames": frames, "cpu_seconds": cpu_seconds() - began}), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
