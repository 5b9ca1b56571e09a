"""A video decoded in a process of its own: a decoder that crashes or hangs harms nobody but its video.

Used where a worker has died: its shard is done again this way. The child gets its order as JSON on stdin and
answers on stdout, record by record: a kind byte, then for a frame its time and its pixels.
"""

import json
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from typing import IO, Any

import numpy as np

from pipeline.decode import Frame, get_decoder
from pipeline.errors import DecodeError
from pipeline.recipe import Recipe

FRAME, END, REASON = b"F", b".", b"!"
TIME = struct.Struct("<qqq")  # pts, and time_base as numerator and denominator
CHUNK = 1 << 20


def frames_apart(path: str, recipe: Recipe, time_limit: float) -> Iterator[Frame]:
    """As `Decoder.frames`. Raises `DecodeError` also for a process that died, or was silent for `time_limit`
    seconds and was ended."""
    order = json.dumps({"path": path, "recipe": recipe.as_dict()}).encode()
    command = [sys.executable, "-m", "pipeline.decode.apart"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(order)
            child.stdin.close()
            yield from _received(child, child.stdout, recipe, time_limit)
        finally:
            child.kill()


def _received(
    child: "subprocess.Popen[bytes]", answers: IO[bytes], recipe: Recipe, time_limit: float
) -> Iterator[Frame]:
    shape = recipe.height, recipe.width, 3
    while True:
        kind = _read(child, answers, 1, time_limit)
        if kind == END:
            return
        if kind == REASON:
            (length,) = struct.unpack("<q", _read(child, answers, 8, time_limit))
            raise DecodeError(_read(child, answers, length, time_limit).decode())
        pts, numerator, denominator = TIME.unpack(_read(child, answers, TIME.size, time_limit))
        pixels = _read(child, answers, shape[0] * shape[1] * 3, time_limit)
        yield Frame(pts, Fraction(numerator, denominator), np.frombuffer(pixels, np.uint8).reshape(shape))


def _read(child: "subprocess.Popen[bytes]", answers: IO[bytes], count: int, time_limit: float) -> bytes:
    """`count` bytes from the child, each part of which comes in time."""
    got = bytearray()
    while len(got) < count:
        if not select.select([answers], [], [], time_limit)[0]:
            raise DecodeError(f"the decoder gave no frame for {time_limit:.3g} seconds and was ended")
        part = answers.raw.read(min(count - len(got), CHUNK))  # type: ignore[attr-defined]
        if not part:
            raise DecodeError(f"the decoder crashed ({_ending(child.wait())})")
        got += part
    return bytes(got)


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _serve(order: dict[str, Any], answers: IO[bytes]) -> None:
    """The child's side: decode and answer."""
    recipe = Recipe.from_dict(order["recipe"])
    try:
        for frame in get_decoder(recipe.decoder).frames(order["path"], recipe):
            base = frame.time_base
            answers.write(FRAME + TIME.pack(frame.pts, base.numerator, base.denominator))
            answers.write(frame.pixels.tobytes())
            answers.flush()
    except Exception as error:
        reason = str(error) if isinstance(error, DecodeError) else f"{type(error).__name__}: {error}"
        text = reason.encode("utf-8", "backslashreplace")
        answers.write(REASON + struct.pack("<q", len(text)) + text)
    else:
        answers.write(END)
    answers.flush()


if __name__ == "__main__":
    _serve(json.load(sys.stdin), sys.stdout.buffer)
