"""Decoders against a plain full decode: same frames, bit for bit."""

import csv
import random
import tracemalloc
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import replace_packet, write_video

from pipeline.decode import DecodeError, Frame, get_decoder, pyav
from pipeline.decode.pyav import _decode_all, _decode_chosen
from pipeline.recipe import Recipe

SMALL = Recipe(width=32, height=32)


def full_decode(path: Path) -> list[tuple[Fraction, Fraction]]:
    """(start, end) in seconds of every frame, by decoding all of them."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base
        found = [(f.pts, f.duration) for f in container.decode(stream) if f.pts is not None]
        return [(pts * stream.time_base, (pts + duration) * stream.time_base) for pts, duration in found]


def expected_times(path: Path, fps: Fraction) -> list[Fraction]:
    """The time of the frame displayed at t0 + k/fps, found naively."""
    shown = full_decode(path)
    origin, end, chosen = shown[0][0], shown[-1][1], list[Fraction]()
    while (time := origin + len(chosen) / fps) < end:
        chosen.append(max(start for start, _ in shown if start <= time))
    return chosen


def times(frames: list[Frame]) -> list[Fraction]:
    return [frame.pts * frame.time_base for frame in frames]


def same(first: Iterator[Frame], second: Iterator[Frame]) -> bool:
    pairs = list(zip(first, second, strict=True))
    return all(a.pts == b.pts and np.array_equal(a.pixels, b.pixels) for a, b in pairs)


@pytest.mark.parametrize("options", [{}, {"bf": "0"}, {"g": "5"}, {"x264-params": "open-gop=1:keyint=12"}])
@pytest.mark.parametrize("fps", [Fraction(5), Fraction(1, 2), Fraction(40)])
def test_skipping_changes_no_kept_frame(tmp_path: Path, options: dict[str, str], fps: Fraction) -> None:
    path = write_video(tmp_path / "a.mp4", frames=150, options=options)
    recipe = Recipe(fps=fps, width=32, height=32)
    assert same(_decode_chosen(str(path), recipe), _decode_all(str(path), recipe))


@pytest.mark.parametrize("decoder", ["pyav", "opencv"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("rate", [8, 12, 18, 24, 25, 30])
def test_any_rate_keeps_what_a_player_shows(tmp_path: Path, decoder: str, suffix: str, rate: int) -> None:
    path = write_video(tmp_path / f"a.{suffix}", frames=3 * rate, rate=rate)
    got = times(list(get_decoder(decoder).frames(str(path), SMALL)))
    assert got == pytest.approx(expected_times(path, Fraction(5)), abs=1e-5)


def test_a_variable_rate_and_a_late_start_are_taken_from_the_timestamps(tmp_path: Path) -> None:
    late = [100 + t for t in (0, 1, 2, 30, 31, 60, 90, 93)]
    path = write_video(tmp_path / "a.mkv", pts=late)
    got = times(list(get_decoder("pyav").frames(str(path), SMALL)))
    assert got == expected_times(path, Fraction(5))
    assert got[0] > 3


@pytest.mark.parametrize("codec", ["mpeg4", "mpeg2video", "libvpx-vp9", "libx265"])
def test_other_codecs_obey_the_same_contract(tmp_path: Path, codec: str) -> None:
    path = write_video(tmp_path / "a.mkv", frames=60, codec=codec)
    recipe = Recipe(fps=Fraction(1), width=32, height=32)
    assert same(_decode_chosen(str(path), recipe), _decode_all(str(path), recipe))


def test_what_needs_no_decoding_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", frames=300, options={"g": "10"})
    decoded: list[int | None] = []
    skipping = pyav._decode_skipping

    def counting(*arguments: Any) -> Iterator[Any]:
        for frame in skipping(*arguments):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(pyav, "_decode_skipping", counting)
    assert len(list(_decode_chosen(str(path), Recipe(fps=Fraction(1, 4))))) == 3
    assert len(decoded) <= 30  # a group or so for each


def test_a_clock_that_jumps_by_a_month_fills_no_disk(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", pts=[0, 1, 2, 30 * 86_400 * 30])
    with pytest.raises(DecodeError, match=r"timestamps jump: one frame would be shown for 2,5\d\d,\d\d\d seconds"):
        list(get_decoder("pyav").frames(str(path), SMALL))


@pytest.mark.parametrize("suffix", ["ts", "mpg"])
def test_recordings_joined_end_to_end_give_the_frames_of_all(tmp_path: Path, suffix: str) -> None:
    codec = "libx264" if suffix == "ts" else "mpeg2video"
    parts = [write_video(tmp_path / f"{n}.{suffix}", frames=30 * n, codec=codec, salt=n) for n in (2, 1, 3)]
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    decoder = get_decoder("pyav")
    got = list(decoder.frames(str(joined), SMALL))
    separate = [frame for part in parts for frame in decoder.frames(str(part), SMALL)]
    assert len(got) == decoder.count(str(joined), SMALL) == 30
    assert times(got) == sorted(set(times(got)))
    assert same(_decode_chosen(str(joined), SMALL), _decode_all(str(joined), SMALL))
    assert sum(np.array_equal(a.pixels, b.pixels) for a, b in zip(got, separate, strict=True)) >= 28


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_frames_of_an_avi_with_b_frames_come_at_a_steady_rate(tmp_path: Path, codec: str) -> None:
    path = write_video(tmp_path / "a.avi", frames=60, codec=codec, options={"bf": "2"})
    every = list(get_decoder("pyav").frames(str(path), Recipe(fps=Fraction(30), width=32, height=32)))
    kept = list(get_decoder("pyav").frames(str(path), SMALL))
    assert len(every) == 60 and len(kept) == 10
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(kept, every[::6], strict=True))
    with av.open(str(path)) as container:
        decoded = [frame.to_ndarray(format="gray").mean() for frame in container.decode(video=0)]
    shown = [frame.pixels.mean() for frame in every]
    assert np.corrcoef(decoded, shown)[0, 1] > 0.999


def test_files_too_large_to_hold_are_read_twice_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", frames=90)
    held = list(_decode_chosen(str(path), SMALL))
    monkeypatch.setattr("pipeline.decode.pyav.HELD_BYTES", 100)
    assert same(iter(held), _decode_chosen(str(path), SMALL))


def test_the_two_decoders_agree(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=90, size=(320, 240))
    first, second = (list(get_decoder(name).frames(str(path), Recipe())) for name in ("pyav", "opencv"))
    assert times(first) == pytest.approx(times(second), abs=1e-5)
    for a, b in zip(first, second, strict=True):
        assert np.abs(a.pixels.astype(int) - b.pixels).mean() < 3


@pytest.mark.parametrize("decoder", ["pyav", "opencv"])
@pytest.mark.parametrize("content", [b"", b"not a video\n" * 50])
def test_what_is_no_video_gives_a_reason(tmp_path: Path, decoder: str, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(DecodeError, match="video"):
        list(get_decoder(decoder).frames(str(tmp_path / "a.mp4"), SMALL))


def test_the_fields_of_an_interlaced_frame_are_scaled_as_one_picture(tmp_path: Path) -> None:
    comb = np.zeros((48, 64, 3), np.uint8)
    comb[::2] = 255
    path = write_video(tmp_path / "a.mp4", picture=comb, options={"x264-params": "interlaced=1", "crf": "1"})
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    pixels = next(get_decoder("pyav").frames(str(path), Recipe(width=32, height=24))).pixels
    assert np.abs(pixels.astype(int) - 128).max() < 20


def test_damage_in_the_middle_gives_a_reason_and_what_came_before(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mkv", frames=120, codec="libvpx-vp9")
    path = replace_packet(whole, tmp_path / "damaged.mkv", 60, b"\xff")
    frames = get_decoder("pyav").frames(str(path), SMALL)
    assert np.array_equal(next(frames).pixels, next(get_decoder("pyav").frames(str(whole), SMALL)).pixels)
    with pytest.raises(DecodeError, match=r"breaks while decoding .*; \d+ frames came out"):
        list(frames)


def test_names_that_look_like_options_or_protocols_are_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-i.mp4", "http:x.mp4", "concat:a|b.mp4", "ä 'q\" \n.mp4"):
        write_video(tmp_path / "plain.mp4").rename(tmp_path / name)
        assert len(list(get_decoder("pyav").frames(name, SMALL))) == 5


def test_a_pixel_shape_that_only_the_codec_tells_is_applied(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", options={"x264-params": "sar=2/1"})
    recipe = Recipe(width=32, height=32, fit="pad")
    assert same(_decode_chosen(str(path), recipe), _decode_all(str(path), recipe))
    rows = next(_decode_chosen(str(path), recipe)).pixels.any(axis=(1, 2))
    assert rows.sum() == 12  # 64 × 48 pixels, twice as wide as high


def test_real_clips_are_bit_for_bit_those_of_a_full_decode(real_clips: Path, exhaustive: bool) -> None:
    with (real_clips / "videos.csv").open() as file:
        names = [row["path"] for row in csv.DictReader(file)]
    sample = names if exhaustive else random.Random(0).sample(names, 12)
    for name in sample:
        path = real_clips / name
        frames = list(_decode_chosen(str(path), Recipe()))
        assert same(iter(frames), _decode_all(str(path), Recipe())), name
        assert times(frames) == expected_times(path, Fraction(5)), name


def test_hours_of_packets_take_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packets of ten seconds, over and over: what is kept of each is its time, not itself."""
    path, turns = write_video(tmp_path / "a.mp4", frames=300, size=(32, 32)), 360

    def again_and_again(container: Any, stream: Any) -> Iterator[Any]:
        period = stream.duration
        for turn in range(turns):
            container.seek(0)
            for packet in container.demux(stream):
                if packet.size:
                    packet.pts += turn * period
                    yield packet

    monkeypatch.setattr(pyav, "demux", again_and_again)
    tracemalloc.start()
    count = get_decoder("pyav").count(str(path), SMALL)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == turns * 50
    assert peak < 60 * 300 * turns  # bytes a packet
