"""How frames become bytes, and frames again. Adding a codec: a class here, a line in CODECS, its name in a format.

A compressed sample is a row of chunks, each decodable alone, so that a clip costs the chunks that it touches.
All decoders release the GIL: threads suffice.
"""

import io
from collections.abc import Callable
from typing import Protocol

import cv2
import numcodecs.zstd
import numpy as np
import simplejpeg

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.shards import Frames

ZSTD_LEVEL = 1  # higher levels gain a few percent here and cost several times the time
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
BASELINE = 0xC0  # JPEG markers: frame header of a baseline picture …
TABLES = frozenset([0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)])  # … what may stand before it and after …
SCAN = 0xDA  # … and header of a scan


class Codec(Protocol):
    """Encodes up to `chunk` frames at a time. `suffix` names a sample's file in a tar."""

    suffix: str
    chunk: int

    def head(self, shape: tuple[int, int, int, int]) -> bytes:
        """What stands before the first chunk of a sample of `shape` [N, H, W, 3]: as long for every sample."""
        ...

    def encode(self, frames: Frames) -> bytes:
        """One chunk: uint8 [n, H, W, 3], n ≤ `chunk`."""
        ...

    def decode(self, data: memoryview, out: Frames) -> None:
        """Fill contiguous uint8 `out` [n, H, W, 3]. Raises `ValueError` where the bytes do not give just that."""
        ...


class Raw:
    """Frames as they are: mapped, never decoded."""

    suffix = ".frames.npy"
    chunk = 16

    def head(self, shape: tuple[int, int, int, int]) -> bytes:
        """See `Codec.head`: the header of a `.npy`, 128 bytes for every array that fits the contract."""
        header = io.BytesIO()
        about = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, about)
        return header.getvalue()

    def encode(self, frames: Frames) -> bytes:
        """See `Codec.encode`."""
        return frames.tobytes()

    def decode(self, data: memoryview, out: Frames) -> None:
        """See `Codec.decode`."""
        if len(data) != out.nbytes:
            raise ValueError(f"{len(data)} bytes for {out.nbytes} bytes of frames")
        out[...] = np.frombuffer(data, np.uint8).reshape(out.shape)


class Zstd:
    """Lossless: a `.npy` cut into pieces of 16 frames, each a zstd frame; `zstd -d` gives the whole."""

    suffix = ".frames.npy.zst"
    chunk = 16

    def head(self, shape: tuple[int, int, int, int]) -> bytes:
        """See `Codec.head`: the `.npy` header in a zstd frame that stores it as it is, so that its length is fixed
        (RFC 8878: single segment, content size in one byte, one last raw block)."""
        npy = Raw().head(shape)
        block = (len(npy) << 3 | 1).to_bytes(3, "little")
        return ZSTD_MAGIC + b"\x20" + len(npy).to_bytes(1, "little") + block + npy

    def encode(self, frames: Frames) -> bytes:
        """See `Codec.encode`."""
        return bytes(numcodecs.zstd.compress(np.ascontiguousarray(frames), ZSTD_LEVEL))

    def decode(self, data: memoryview, out: Frames) -> None:
        """See `Codec.decode`."""
        try:
            numcodecs.zstd.decompress(data, out)
        except RuntimeError as error:
            raise ValueError(str(error)) from error


class Jpeg:
    """One JPEG a frame, one after the other (Motion JPEG), colour at full resolution: at 112 pixels a face is
    a few of them."""

    suffix = ".frames.mjpeg"
    chunk = 1

    def __init__(self, quality: int) -> None:
        colour = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
        self._settings = [cv2.IMWRITE_JPEG_QUALITY, quality, *colour]
        # A size, and all that stood before the pixels: the same in all frames of a build.
        self._known = (0, 0), b""

    def head(self, shape: tuple[int, int, int, int]) -> bytes:  # noqa: ARG002
        """See `Codec.head`: none."""
        return b""

    def encode(self, frames: Frames) -> bytes:
        """See `Codec.encode`."""
        done, data = cv2.imencode(".jpg", cv2.cvtColor(frames[0], cv2.COLOR_RGB2BGR), self._settings)
        if not done:
            raise ValueError("OpenCV could not write a JPEG")
        return data.tobytes()

    def decode(self, data: memoryview, out: Frames) -> None:
        """See `Codec.decode`. The size that the file claims is read before anything is allocated for it."""
        size, head = self._known
        if size != out.shape[1:3] or data[: len(head)] != head:
            size, stop = jpeg_size(data)
            if size != out.shape[1:3]:
                raise ValueError(f"no JPEG of {out.shape[2]}×{out.shape[1]}")
            self._known = size, bytes(data[:stop])
        try:
            picture = simplejpeg.decode_jpeg(data, "RGB", buffer=out[0])
        except ValueError as error:
            raise ValueError(f"a JPEG that cannot be decoded: {error}") from error
        if picture.shape != out.shape[1:]:  # it was read in another way than by `jpeg_size`
            raise ValueError("a JPEG that cannot be decoded")


def jpeg_size(data: memoryview) -> tuple[tuple[int, int], int]:
    """(height, width) from the header of a baseline frame (ITU T.81, B.2.2), and where the pixels begin; zeros
    where there is none.

    Only what a decoder cannot read in another way is passed over: a marker without a length would let it see
    another header than this. The first scan has all components, so that there is no second one: each costs a pass
    over the picture, however short it is.
    """
    size, components, place = (0, 0), 0, 2
    if bytes(data[:2]) != b"\xff\xd8":
        return size, 0
    while place + 10 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == SCAN and components == data[place + 4]:
            return size, place + 2 + length
        if marker == BASELINE and not components:
            height, width = (int.from_bytes(data[place + at : place + at + 2], "big") for at in (5, 7))
            size, components = (height, width), data[place + 9]
        elif marker not in TABLES or length < 2:
            break
        place += 2 + length
    return (0, 0), 0


CODECS: dict[str, Callable[[Recipe], Codec]] = {
    "raw": lambda _: Raw(),
    "zstd": lambda _: Zstd(),
    "jpeg": lambda recipe: Jpeg(recipe.quality),
}


def get_codec(recipe: Recipe) -> Codec:
    """The recipe's codec. Raises `UserError` for an unknown one."""
    if recipe.codec not in CODECS:
        raise UserError(f"no codec is called {recipe.codec!r}; there are {', '.join(CODECS)}")
    return CODECS[recipe.codec](recipe)


def decode_part(codec: Codec, chunk: Callable[[int], memoryview], length: int, first: int, out: Frames) -> None:
    """Fill `out` [n, H, W, 3] with the frames from `first` on of a row of `length` frames.

    `chunk` gives chunk number i; only those touched are asked for. Raises `ValueError` where one is damaged.
    """
    place, stop = first, first + len(out)
    while place < stop:
        number, skip = divmod(place, codec.chunk)
        whole = min(codec.chunk, length - number * codec.chunk)
        count = min(whole - skip, stop - place)
        wanted = out[place - first : place - first + count]
        if count == whole:
            codec.decode(chunk(number), wanted)
        else:
            decoded = np.empty((whole, *out.shape[1:]), np.uint8)
            codec.decode(chunk(number), decoded)
            wanted[...] = decoded[skip : skip + count]
        place += count
