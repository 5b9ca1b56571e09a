"""Streams as the decoder reads them: the frames of the offline stage, gaps, and connections that are lost."""

import os
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import SMALL, build, frames_by_video, picture_number, write_video
from near import send, streaming

from pipeline.decode import DecodeError, get_decoder
from pipeline.decode.live import Gap, LiveFrame, Source, follow, read_stream


class FakeTime(Source):
    """A source whose clock goes on when somebody waits, and no other way."""

    def __init__(self, place: str = "camera") -> None:
        self.now, self.waits = 100.0, list[float]()
        super().__init__(place, clock=lambda: self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.waits.append(seconds)


def frames_of(items: Iterator[LiveFrame | Gap]) -> list[LiveFrame]:
    return [item for item in items if isinstance(item, LiveFrame)]


def through_pipe(tmp_path: Path, content: bytes, source: Source | None = None) -> list[LiveFrame | Gap]:
    """What comes of a stream that is no file, until it ends."""
    pipe = tmp_path / "camera"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(content,))
    writer.start()
    found = collected(source or Source(str(pipe)))
    writer.join()
    return found


def collected(source: Source) -> list[LiveFrame | Gap]:
    """What comes of a live stream until it ends or breaks."""
    found: list[LiveFrame | Gap] = []
    with pytest.raises(DecodeError, match=r"ended|Input"):
        found.extend(iter_into(found, read_stream(source, SMALL)))
    return found


def iter_into(found: list[LiveFrame | Gap], items: Iterator[LiveFrame | Gap]) -> list[LiveFrame | Gap]:
    for item in items:
        found.append(item)
    return []


def test_what_has_a_length_ends_wherever_it_lies(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4")
    source = FakeTime(f"file:{video}")  # a protocol of FFmpeg's like others
    watched = list(follow(lambda: read_stream(source, SMALL), source, 60, lambda _line: None))
    assert len(watched) == 5 and source.connections == 1


@pytest.mark.parametrize("rate", [30, 12, 3])
def test_a_watched_file_gives_the_frames_of_its_shard(tmp_path: Path, rate: int) -> None:
    video = write_video(tmp_path / "videos" / "train" / "cats" / "a.mp4", frames=2 * rate, rate=rate)
    build(tmp_path / "videos", tmp_path / "shards")
    (stored,) = frames_by_video(tmp_path / "shards").values()
    watched = frames_of(read_stream(Source(str(video), in_time=False), SMALL))
    assert b"".join(frame.pixels.tobytes() for frame in watched) == stored
    assert [frame.seconds for frame in watched] == [k / 5 for k in range(10)]


def test_a_file_is_played_in_real_time(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", frames=60, options={"bf": "0"})
    source = FakeTime(str(video))
    watched = frames_of(read_stream(source, SMALL))
    assert [frame.arrived - 100 for frame in watched] == pytest.approx([frame.seconds for frame in watched])


def test_a_live_stream_is_sampled_alike(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.ts", frames=60)
    offline = [frame.pixels for frame in get_decoder("pyav").frames(str(video), SMALL)]
    live = frames_of(iter(through_pipe(tmp_path, video.read_bytes())))
    assert np.array_equal([frame.pixels for frame in live], offline)


def test_a_live_stream_whose_clock_is_set_anew_goes_on(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.ts", frames=60)
    live = through_pipe(tmp_path, video.read_bytes() * 2)
    assert len(live) == 20 and not any(isinstance(item, Gap) for item in live)


def test_a_hole_in_a_live_stream_is_a_gap_and_no_still_picture(tmp_path: Path) -> None:
    pts = [*range(30), *range(150, 180)]
    live = through_pipe(tmp_path, write_video(tmp_path / "a.ts", pts=pts).read_bytes())
    kinds = "".join("-" if isinstance(item, Gap) else "f" for item in live)
    assert kinds == "ffffff-fffff"  # the last one before the hole is still displayed at 1.0 s
    after = [frame.seconds for frame in frames_of(iter(live))][6:]
    assert after == pytest.approx([5, 5.2, 5.4, 5.6, 5.8])


def test_a_lost_stream_is_opened_again_with_growing_pauses() -> None:
    source, said = FakeTime(), list[str]()
    outcomes = iter([2, 0, 0, 1, None])  # frames before it breaks; None: nothing more, and nothing wrong

    def connect() -> Iterator[LiveFrame | Gap]:
        count = next(outcomes)
        yield from [LiveFrame(np.zeros((1, 1, 3), np.uint8), 0.0, source.now)] * (count or 0)
        if count is not None:
            raise DecodeError("cut")

    kinds = ["gap" if isinstance(item, Gap) else "frame" for item in follow(connect, source, 60, said.append)]
    assert kinds == ["frame", "frame", "gap", "gap", "gap", "frame", "gap"]
    assert source.waits == [0.5, 1, 2, 0.5]
    assert sum("trying again" in line for line in said) == 4 and any("is back" in line for line in said)


def test_a_stream_is_given_up_when_patience_ends() -> None:
    source = FakeTime()
    first = iter([True])

    def connect() -> Iterator[LiveFrame | Gap]:
        if next(first, False):
            yield LiveFrame(np.zeros((1, 1, 3), np.uint8), 0.0, source.now)
        raise DecodeError("refused")

    with pytest.raises(DecodeError, match="refused"):
        list(follow(connect, source, 10, lambda _line: None))
    assert sum(source.waits) == 10


def test_a_stream_that_never_was_is_not_tried_again() -> None:
    source = FakeTime("nowhere.mp4")
    with pytest.raises(DecodeError, match="no such file or device"):
        list(follow(lambda: read_stream(source, SMALL), source, 60, lambda _line: None))
    assert not source.waits


def test_what_is_said_of_a_camera_has_no_password() -> None:
    source, said = FakeTime("rtsp://admin:pa@ss@camera/live@1?a=b@c"), list[str]()
    outcomes = iter([True, False])

    def connect() -> Iterator[LiveFrame | Gap]:
        if next(outcomes):
            yield LiveFrame(np.zeros((1, 1, 3), np.uint8), 0.0, source.now)
            raise DecodeError("cut")

    list(follow(connect, source, 60, said.append))
    assert len(said) == 2 and all("rtsp://***@camera/live@1?a=b@c" in line for line in said)
    assert Source("/dev/video0").name == "/dev/video0"


def test_a_stopped_stream_ends_quietly() -> None:
    source = FakeTime()

    def connect() -> Iterator[LiveFrame | Gap]:
        yield LiveFrame(np.zeros((1, 1, 3), np.uint8), 0.0, source.now)
        source.stopped.set()
        raise DecodeError("the stream ended")

    assert len(list(follow(connect, source, 60, lambda _line: None))) == 1


def test_a_slow_camera_repeats_its_frames_at_the_times_they_are_due(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", frames=4, rate=1, options={"bf": "0"})
    watched = frames_of(read_stream(FakeTime(str(video)), SMALL))
    assert [frame.arrived - 100 for frame in watched[:15]] == pytest.approx([k / 5 for k in range(15)])
    assert Fraction(len(watched), 5) == 4


def mjpeg(request: BaseHTTPRequestHandler) -> None:
    """A camera that sends ten pictures a second for one second, and no times."""
    send(request, "multipart/x-mixed-replace; boundary=frame")
    for number in range(10):
        picture = cv2.imencode(".jpg", picture_number(number))[1].tobytes()
        request.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n")
        request.wfile.write(b"Content-Length: %d\r\n\r\n%s\r\n" % (len(picture), picture))
        time.sleep(0.1)


def test_pictures_without_times_have_those_of_their_arrival() -> None:
    with streaming(mjpeg) as url:
        found = frames_of(iter(collected(Source(url))))
    assert found[-1].seconds >= 0.6  # at the 25 a second that FFmpeg invents it would be 0.2
    assert np.allclose([later.seconds - found[0].seconds for later in found], [k / 5 for k in range(len(found))])


class Playlist:
    """HLS in segments of 3 s; each look at the playlist finds the next of `looks`, which the last one closes.

    To open HLS takes two looks. The playlist calls segments shorter than they are: who looks again waits so long.
    """

    def __init__(self, folder: Path, looks: list[range]) -> None:
        self._folder, self._looks = folder, list(looks)
        for number in range(max(look.stop for look in looks)):
            times = range(30 * number, 30 * number + 30)
            write_video(folder / f"{number}.ts", rate=10, pts=times, options={"bf": "0"})

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        if request.path.endswith(".ts"):
            send(request, "video/mp2t", (self._folder / request.path[1:]).read_bytes())
            return
        last = len(self._looks) == 1
        look = self._looks[0] if last else self._looks.pop(0)
        lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:1", f"#EXT-X-MEDIA-SEQUENCE:{look.start}"]
        lines += [f"#EXTINF:0.1,\n{number}.ts" for number in look]
        end = ["#EXT-X-ENDLIST"] if last else []
        send(request, "application/vnd.apple.mpegurl", "\n".join([*lines, *end, ""]).encode())


def test_segments_are_played_when_they_are_due(tmp_path: Path) -> None:
    looks = [range(3), range(3), range(4), range(6)]
    with streaming(Playlist(tmp_path, looks)) as url:
        found = frames_of(iter(collected(FakeTime(f"{url}/live.m3u8"))))
    assert len(found) == 90
    late = [frame.arrived - frame.seconds for frame in found]
    assert max(late) - min(late) < 0.01


def test_a_new_connection_to_segments_goes_on_after_the_last_one(tmp_path: Path) -> None:
    looks = [range(3), range(3), range(4)]
    source = FakeTime()
    with streaming(Playlist(tmp_path, looks)) as url:
        source.place = f"{url}/live.m3u8"
        before = frames_of(iter(collected(source)))
    with streaming(Playlist(tmp_path, [range(2, 5), range(2, 5), range(2, 7)])) as url:
        source.place = f"{url}/live.m3u8"
        after = frames_of(iter(collected(source)))
        assert len(before) == 60 and len(after) == 45
        assert after[0].seconds >= before[-1].seconds + 0.2
        assert not list(read_stream(source, SMALL))  # it has ended since


def test_the_streams_time_never_runs_back_where_it_came_faster_than_it_plays(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.ts", frames=60)
    source, pipe = FakeTime(str(tmp_path / "camera")), tmp_path / "camera"
    found = frames_of(iter(through_pipe(tmp_path, video.read_bytes(), source)))
    pipe.unlink()
    found += frames_of(iter(through_pipe(tmp_path, video.read_bytes(), source)))
    assert [frame.seconds for frame in found] == pytest.approx([k / 5 for k in range(20)])
