"""A decoded frame to a stored one: turned, cut and scaled from YUV straight to the recipe's size in RGB."""

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

import av
import numpy as np
from av.filter import Graph
from av.video.stream import VideoStream

from pipeline.decode import Frame
from pipeline.decode.container import time_base_of
from pipeline.decode.geometry import Orientation, Placement, finish, orientation, place
from pipeline.recipe import Recipe


def converter(stream: VideoStream, recipe: Recipe) -> Callable[[av.VideoFrame, int], Frame]:
    """A function from a decoded frame to a stored one: one swscale context as long as pictures stay alike."""
    time_base = time_base_of(stream)

    @lru_cache(maxsize=8)  # a stream may change its size on the way
    def placed(width: int, height: int, matrix: bytes | None) -> Placement:
        # The container's word, else the codec's, which is known once a frame is decoded.
        aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
        turn = orientation(np.frombuffer(matrix, "<i4").tolist()) if matrix else Orientation()
        return place(width, height, aspect, turn, recipe)

    graphs: dict[tuple[object, ...], Graph] = {}

    def convert(frame: av.VideoFrame, pts: int) -> Frame:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
        placement = placed(frame.width, frame.height, bytes(matrix) if matrix else None)
        kind = frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range, placement
        if kind not in graphs:
            graphs.clear()
            graphs[kind] = _scaler(frame, stream, placement)
        graphs[kind].vpush(frame)
        return Frame(pts, time_base, finish(graphs[kind].vpull().to_ndarray(), placement))

    return convert


def _scaler(frame: av.VideoFrame, stream: VideoStream, placement: Placement) -> Graph:
    """Pictures like this one, cut and scaled, in RGB.

    A filter graph, not `VideoReformatter`: it alone tells swscale where between the pixels the colours were
    measured. And it calls an interlaced frame progressive: swscale would scale its two fields apart, and a small
    picture would show both moments in turns, line by line; scaled as one, the moments are blended.
    """
    graph = Graph()
    graph.threads = 1
    about = {
        "video_size": f"{frame.width}x{frame.height}", "pix_fmt": frame.format.name, "pixel_aspect": "1/1",
        "time_base": str(time_base_of(stream)), "colorspace": str(int(frame.colorspace)),
        "range": str(int(frame.color_range)),
    }  # fmt: skip
    (width, height), (left, top) = placement.scaled, placement.edges
    flags = "area" if width <= frame.width and height <= frame.height else "bicubic"
    # Only where something is to be cut: the filter does not take every pixel format.
    cut = [graph.add("crop", f"iw-{2 * left}:ih-{2 * top}:{left}:{top}:exact=1")] if left or top else []
    graph.link_nodes(
        graph.add("buffer", **about),
        graph.add("setfield", "prog"),
        *cut,
        graph.add("scale", f"{width}:{height}:flags={flags}"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    )
    graph.configure()
    return graph
