"""`train predict`: raw videos to the very numbers that `train eval` has from shards."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import fsspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import QUICK, assert_one_clear_line, build, write_video
from numpy.typing import NDArray

from pipeline.recipe import Recipe
from pipeline.report import Step
from pipeline.shards.index import read_set
from train.cli import main
from train.clips import Sampling
from train.compute import Compute
from train.evaluate import predict_split
from train.predict import (
    Moment,
    Prediction,
    cut_by,
    predict_videos,
    sliding_clips,
    spaced_clips,
    timeline_csv,
)
from train.stream import ClipStream
from train.timeline import clock
from train.trained import Trained, load_trained

CPU = Compute(torch.device("cpu"), bf16=False)
FRAMES = 4


def train(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def no_stage(_what: str, _total: int) -> Step:
    return lambda _count: None


def numbers(count: int) -> Iterator[NDArray[np.uint8]]:
    """Frames [1, 1, 3] that show their number."""
    return (np.full((1, 1, 3), number, np.uint8) for number in range(count))


@pytest.fixture(scope="module")
def run_folder(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    run = ["run", *QUICK, "--frames", FRAMES, "--epochs", 1, "--shards", small_set, "--out", out]
    result = train(*run)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def trained(run_folder: Path) -> Trained:
    return load_trained(run_folder, "best", CPU)


@pytest.fixture
def video(small_set: Path) -> Path:
    return small_set.parent / "videos" / "val" / "dogs" / "21.mp4"


def evaluated(trained: Trained, shards: Path, split: str, batch_size: int) -> dict[str, list[float]]:
    """What `train eval` computes, by video."""
    index = read_set(shards).split(split)
    with ClipStream(index, frames_per_clip=FRAMES, batch_size=batch_size) as stream:
        norm = {"mean": trained.mean, "std": trained.std}
        found = predict_split(trained.model, stream, CPU, clips=5, kind=trained.kind, **norm)
    return dict(zip(found.videos, found.probabilities.tolist(), strict=True))


def test_a_raw_video_gives_exactly_what_eval_gives_from_shards(trained: Trained, small_set: Path) -> None:
    expected = evaluated(trained, small_set, "val", batch_size=1)
    paths = [str(small_set.parent / "videos" / name) for name in expected]
    found = predict_videos(trained, CPU, paths, cut_by(trained, 5, None), 1, no_stage)
    assert len(expected) == 8
    assert [prediction.probabilities.tolist() for prediction in found] == list(expected.values())
    together = predict_videos(trained, CPU, paths, cut_by(trained, 5, None), 7, no_stage)
    for prediction, values in zip(together, expected.values(), strict=True):
        assert prediction.probabilities == pytest.approx(values, abs=1e-6)


def test_so_it_does_for_a_model_of_frame_differences(trained: Trained, small_set: Path) -> None:
    differences = replace(trained, kind="diff")
    expected = evaluated(differences, small_set, "val", batch_size=1)
    paths = [str(small_set.parent / "videos" / name) for name in expected]
    found = predict_videos(differences, CPU, paths, cut_by(differences, 5, None), 1, no_stage)
    assert [prediction.probabilities.tolist() for prediction in found] == list(expected.values())


def test_so_it_does_for_jpeg_shards_and_videos_of_several_samples(trained: Trained, tmp_path: Path) -> None:
    for label in ("cats", "dogs"):
        write_video(tmp_path / "videos" / "train" / label / "a.mp4", frames=150)
    recipe = Recipe(width=48, height=48, codec="jpeg", quality=30, max_frames=9)
    build(tmp_path / "videos", tmp_path / "shards", recipe=recipe)
    expected = evaluated(trained, tmp_path / "shards", "train", batch_size=1)
    like_the_set = replace(trained, recipe=recipe)
    paths = [str(tmp_path / "videos" / name) for name in expected]
    found = predict_videos(like_the_set, CPU, paths, cut_by(like_the_set, 5, None), 1, no_stage)
    assert [prediction.probabilities.tolist() for prediction in found] == list(expected.values())
    assert found[0].timeline[-1].end == 150 / 30 and len(found[0].timeline) > 5


def test_spaced_clips_cover_each_part_of_a_video() -> None:
    clips = [
        (first, stop, pixels[:, 0, 0, 0].tolist())
        for first, stop, pixels in spaced_clips(numbers(11), Sampling(4), 2, 8)
    ]
    assert clips == [(0, 4, [0, 1, 2, 3]), (4, 8, [4, 5, 6, 7]), (8, 11, [8, 9, 9, 10])]


@pytest.mark.parametrize(
    ("count", "starts"), [(4, [0]), (5, [0, 1]), (7, [0, 3]), (8, [0, 3, 4]), (10, [0, 3, 6]), (0, [])]
)
def test_sliding_clips_reach_the_end(count: int, starts: list[int]) -> None:
    clips = list(sliding_clips(numbers(count), Sampling(4), 4, 3))
    assert [first for first, _, _ in clips] == starts
    for first, stop, pixels in clips:
        assert pixels[:, 0, 0, 0].tolist() == list(range(first, stop))


def test_a_video_shorter_than_a_clip_is_spread_over_it() -> None:
    [(first, stop, pixels)] = sliding_clips(numbers(2), Sampling(4), 4, 3)
    assert (first, stop, pixels[:, 0, 0, 0].tolist()) == (0, 2, [0, 0, 1, 1])


def test_sliding_clips_come_while_the_video_is_still_read() -> None:
    frames = iter(numbers(200))
    next(sliding_clips(frames, Sampling(4), 4, 1))
    assert int(next(frames)[0, 0, 0]) == 4  # no frame more was taken than the clip needs


def test_a_bad_video_gets_its_reason_and_the_others_their_verdict(
    run_folder: Path, video: Path, tmp_path: Path
) -> None:
    text = tmp_path / "notes & <plans>.mp4"
    text.write_text("no video at all")
    out = ["--csv", tmp_path / "t.csv", "--plot", tmp_path / "t.svg"]
    result = train("predict", run_folder, text, video, "nowhere.mp4", "--every", 0.4, *out, "--json")
    assert_one_clear_line(result, 1, "2 of 3 videos have no verdict")
    bad, good, missing = json.loads(result.stdout)["videos"]
    assert "cannot be opened as a video" in bad["error"] and "No such file" in missing["error"]
    assert good["label"] in ("cats", "dogs") and sum(good["probabilities"].values()) == pytest.approx(1)
    assert [moment["start"] for moment in good["timeline"]][:3] == [0.0, 0.4, 0.8]
    assert good["peaks"]["cats"]["probability"] >= good["probabilities"]["cats"]
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert len(rows) == len(good["timeline"]) + 2 and rows[0]["error"] == bad["error"]
    assert float(rows[1]["p_cats"]) == pytest.approx(good["timeline"][0]["probabilities"]["cats"], abs=1e-6)
    drawing = ElementTree.parse(tmp_path / "t.svg")
    texts = ["".join(element.itertext()) for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert str(text)[-40:] in "".join(texts) and "dogs" in texts and "no verdict" in texts


def test_a_table_says_what_and_when(run_folder: Path, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(video.parent)  # a long path would leave no room for the rest of a line
    result = train("predict", run_folder, video.name)
    assert result.exit_code == 0, result.output
    assert "21.mp4" in result.stdout and " at 0:0" in result.stdout


def test_a_url_is_fetched_and_gives_what_the_file_gives(trained: Trained, video: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/clips/21.mp4", video.read_bytes())
    places = [str(video), "memory://clips/21.mp4", "memory://clips/none.mp4"]
    file, url, missing = predict_videos(trained, CPU, places, cut_by(trained, 5, None), 1, no_stage)
    assert file.probabilities.tolist() == url.probabilities.tolist()
    assert missing.reason == "cannot be read: there is no such file" and not missing.timeline


def test_a_file_url_may_have_its_letters_escaped(run_folder: Path, video: Path, tmp_path: Path) -> None:
    place = tmp_path / "at 9 o'clock, ü.mp4"
    place.write_bytes(video.read_bytes())
    result = train("predict", run_folder, place.as_uri(), "--json")
    assert "%20" in place.as_uri() and result.exit_code == 0, result.output
    assert json.loads(result.stdout)["videos"][0]["video"] == str(place)


@pytest.mark.parametrize(("on_corrupt", "moments"), [("reject", 0), ("keep", 2)])
def test_a_video_that_breaks_is_treated_as_the_set_treats_it(
    trained: Trained, video: Path, monkeypatch: pytest.MonkeyPatch, on_corrupt: str, moments: int
) -> None:
    class Breaks:
        def frames(self, path: str, recipe: Recipe) -> Iterator[object]:
            yield from list(get_decoder("pyav").frames(path, recipe))[:5]
            raise RuntimeError("a worn tape")

    from pipeline.decode import get_decoder

    monkeypatch.setattr("train.predict.get_decoder", lambda _name: Breaks())
    like = replace(trained, recipe=replace(trained.recipe, on_corrupt=on_corrupt))
    places = [str(video)] * 2
    found = predict_videos(like, CPU, places, cut_by(like, 5, None), 8, no_stage)
    assert [len(prediction.timeline) for prediction in found] == [moments] * 2
    about = found[0].as_dict()
    assert about["damaged" if moments else "error"] == "RuntimeError: a worn tape"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--clips", "3", "--every", "1"], "--clips spreads clips over a video, --every slides over it"),
        (["--every", "inf"], "--every"),
        (["--plot", "a.svg", "--csv", "a.svg"], "--plot a.svg: is the file of --csv, too; give each its own"),
        (["--plot", "a.png"], "--plot a.png: is written as SVG; call it a.svg"),
        (["--csv", __file__], "exists; give another name, or --overwrite"),
        ([str(Path(__file__).parent)], "tests: is a folder; give its videos, such as "),
        (["--device", "abacus"], "--device abacus"),
    ],
)
def test_mistakes_get_one_clear_line(run_folder: Path, video: Path, flags: list[str], message: str) -> None:
    assert_one_clear_line(train("predict", run_folder, video, *flags), 2, message)


def test_a_run_without_its_frames_recipe_is_refused(run_folder: Path, video: Path, tmp_path: Path) -> None:
    about = json.loads((run_folder / "run.json").read_text())
    del about["frames_recipe"]
    (tmp_path / "run.json").write_text(json.dumps(about))
    assert_one_clear_line(train("predict", tmp_path, video), 2, "lacks frames_recipe")


@pytest.mark.parametrize(("seconds", "shown"), [(7.2, "0:07.2"), (59.96, "1:00"), (3725.0, "1:02:05")])
def test_times_read_as_on_a_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def test_no_cell_of_the_table_is_a_formula() -> None:
    made = Prediction("=HYPERLINK(1).mp4", ["@calm", "fight"], [Moment(0.0, 1.0, np.array([0.75, 0.25]))])
    row = timeline_csv([made]).splitlines()[1]
    assert row == "'=HYPERLINK(1).mp4,0.000,1.000,'@calm,0.750000,0.250000,"
