"""`train eval`: thresholds, intervals by group, leaks refused, and what it writes to look at."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import conftest
import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import assert_one_clear_line, build, edit_sidecar, write_video
from far import FarServer
from msgspec import structs
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score

from models.origin import UNKNOWN, Lesson, read_origin
from pipeline.recipe import Recipe
from pipeline.shards.index import read_set
from pipeline.summary import digest
from train.bootstrap import group_intervals, weighted_auc
from train.cli import main
from train.folds import train_and_val
from train.leakage import crossing
from train.lessons import learnt_videos
from train.manifest import MANIFEST
from train.metrics import decide, fit_threshold, score
from train.verdicts import _caption

LARGER = Recipe(width=48, height=48)
QUICK = [*conftest.QUICK, "--epochs", "1"]


def train(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run_folder(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "fold"
    result = train("run", *QUICK, "--shards", small_set, "--fold", "1/4", "--out", out)
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.parametrize("classes", [2, 3])
def test_weighted_auc_is_scikit_learns(classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, 60)
    chances = np.round(rng.dirichlet(np.ones(classes), 60), 1)  # with ties
    weights = rng.integers(0, 4, (5, 60)).astype(float)
    kept = [1] if classes == 2 else range(classes)
    expected = [
        np.mean([roc_auc_score(labels == k, chances[:, k], sample_weight=row) for k in kept]) for row in weights
    ]
    assert weighted_auc(chances, labels, weights) == pytest.approx(expected)


def test_ten_copies_of_each_video_in_its_group_make_no_interval_narrower() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 40)
    chance = np.clip(0.5 + 0.2 * (labels - 0.5) + rng.normal(0, 0.3, 40), 0, 1)
    chances = np.stack([1 - chance, chance], 1)[None]
    right = (chances.argmax(2) == labels).astype(float)
    groups = [str(number) for number in range(40)]
    once = group_intervals(chances, right, labels, groups)
    often = group_intervals(
        np.repeat(chances, 10, 1), np.repeat(right, 10, 1), np.repeat(labels, 10), np.repeat(groups, 10).tolist()
    )
    for name in ("accuracy", "roc_auc"):
        few, many = once[name], often[name]
        assert few and many and few[0] < few[1] and many == pytest.approx(few)


def test_one_group_has_no_interval() -> None:
    chances = np.array([[[0.2, 0.8], [0.9, 0.1]]])
    assert group_intervals(chances, np.ones((1, 2)), np.array([1, 0]), ["a", "a"]) == {
        "accuracy": None, "roc_auc": None,
    }  # fmt: skip


def test_a_threshold_divides_where_balanced_accuracy_is_highest() -> None:
    chance = np.array([0.55, 0.6, 0.65, 0.8, 0.9])
    chances, labels = np.stack([1 - chance, chance], 1), np.array([0, 0, 0, 1, 1])
    threshold = fit_threshold(chances, labels)
    assert threshold == pytest.approx(0.725)
    assert decide(chances, threshold).tolist() == labels.tolist()
    assert score(chances, labels, ["a", "b"])["accuracy"] == 0.4
    assert score(chances, labels, ["a", "b"], threshold=threshold)["balanced_accuracy"] == 1


def test_a_threshold_needs_both_of_two_classes() -> None:
    with pytest.raises(ValueError, match="two classes"):
        fit_threshold(np.array([[0.2, 0.8]]), np.array([1]))


@pytest.mark.parametrize(("classes", "k", "reached"), [(2, 2, 1.0), (8, 5, 0.5)])
def test_top_k_is_no_more_than_there_are_classes(classes: int, k: int, reached: float) -> None:
    chances = np.tile(np.linspace(1, 0, classes), (2, 1))
    assert score(chances, np.array([0, classes - 1]), list("abcdefgh")[:classes])["top_k"] == {
        "k": k, "accuracy": reached,
    }  # fmt: skip


def test_a_fold_is_what_the_run_did_not_see(run_folder: Path, small_set: Path, tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    result = train("eval", run_folder, "--allow-leaks", "--csv", table, "--json")
    metrics = json.loads(result.stdout)
    seen, held_out = train_and_val(read_set(small_set), "1/4")
    assert held_out is not None and not set(seen.videos) & set(held_out.videos)
    rows = list(csv.DictReader(table.open()))
    assert [row["video"] for row in rows] == held_out.videos and metrics["fold"] == "1/4"
    assert sum(int(row["correct"]) for row in rows) == round(metrics["accuracy"] * metrics["videos"])
    assert all(float(row["p_cats"]) + float(row["p_dogs"]) == pytest.approx(1) for row in rows)
    assert metrics["leaks"]["checked"] and not metrics["leaks"]["groups"]


def test_curves_and_mistakes_are_pictures(run_folder: Path, tmp_path: Path) -> None:
    curves, mistakes = tmp_path / "a.svg", tmp_path / "a.png"
    files = ["--curves", curves, "--mistakes", mistakes]
    result = train("eval", run_folder, "--allow-leaks", "--threshold-from", "train", *files)
    assert result.exit_code == 0 and "fitted on train" in result.stdout
    assert curves.read_text().startswith("<svg") and curves.read_text().count('class="curve"') == 2 * 3
    sheet = cv2.imread(str(mistakes))
    assert sheet is not None and sheet.shape[1] == 8 * 48 and sheet.shape[0] % (24 + 48) in (0, 24)
    again = train("eval", run_folder, "--curves", curves)
    assert_one_clear_line(again, 2, "exists; give another name, or --overwrite")


def test_mistakes_on_a_set_behind_a_url_are_drawn(still_run: Path, server: FarServer, tmp_path: Path) -> None:
    flags = ["--shards", server.url, "--cache", tmp_path / "cache", "--mistakes", tmp_path / "a.png"]
    result = train("eval", still_run, *flags, "--allow-leaks")
    assert result.exit_code == 0, result.output
    assert cv2.imread(str(tmp_path / "a.png")) is not None and list((tmp_path / "cache").iterdir())


def test_a_long_path_loses_its_start_and_not_what_is_told_of_it() -> None:
    told = ": is cats, judged dogs"
    place = f"/{'streets/' * 20}9.mp4"
    one, longer = (_caption(f"{start}{place}", f"{told} (0.91)", 400) for start in ("a", "much longer"))
    assert np.array_equal(one, longer) and one[:, 200:].min() < 255
    assert not np.array_equal(one, _caption(f"a{place}", f"{told} (0.62)", 400))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--threshold-from", "val"], "--threshold-from val: is what is judged; fit it on another split, of "),
        (["--mistakes", "a.png", "--csv", "./a.png"], "--mistakes a.png: is the file of --csv, too; give each"),
        (["--threshold-from", "test"], "no split 'test'"),
        (["--csv", "nowhere/a.csv"], "--csv nowhere/a.csv: there is no folder nowhere"),
        (["--curves", "c.png"], "--curves c.png: is written as SVG; call it c.svg"),
        (["--mistakes", "m.jpg"], "--mistakes m.jpg: is written as PNG; call it m.png"),
    ],
)
def test_mistakes_get_one_clear_line(run_folder: Path, flags: list[str], message: str) -> None:
    assert_one_clear_line(train("eval", run_folder, *flags), 2, message)


def test_folds_of_a_set_that_changed_are_not_guessed(run_folder: Path, set_copy: Path) -> None:
    edit_sidecar(sorted(set_copy.glob("train-*.json"))[0], sha256="0" * 64)
    assert_one_clear_line(train("eval", run_folder, "--shards", set_copy), 2, "is not the set that the run was")


def test_a_copy_across_the_split_is_refused_unless_allowed(tmp_path: Path) -> None:
    for number in range(8):
        split, label = ("train", "val")[number % 4 == 0], ("cats", "dogs")[number % 2]
        write_video(tmp_path / "videos" / split / label / f"{number}.mp4", frames=20, salt=11 * number)
    write_video(tmp_path / "videos" / "val" / "dogs" / "9.mp4", frames=20, salt=99)
    shutil.copy(tmp_path / "videos" / "val" / "dogs" / "9.mp4", tmp_path / "videos" / "train" / "dogs" / "10.mp4")
    build(tmp_path / "videos", tmp_path / "set", recipe=LARGER)
    out, where = tmp_path / "run", ["--shards", tmp_path / "set"]
    assert train("run", *QUICK, *where, "--out", out).exit_code == 0
    assert_one_clear_line(train("eval", out), 2, "val shares with train: ")
    metrics = json.loads(train("eval", out, "--allow-leaks", "--json").stdout)
    pairs = [{one, other} for one, other, *_ in metrics["leaks"]["pairs"]]
    assert {"train/dogs/10.mp4", "val/dogs/9.mp4"} in pairs
    assert metrics["leaks"]["count"] >= 1


def still_videos(folder: Path, *names: str) -> Path:
    """Videos `<split>/<label>/<number>.mp4`, each of one picture by its number: a copy is one of its bytes."""
    for name in names:
        picture = np.random.default_rng(int(Path(name).name)).integers(0, 256, (48, 64, 3)).astype(np.uint8)
        write_video(folder / f"{name}.mp4", frames=20, picture=picture)
    return folder


@pytest.fixture(scope="module")
def still_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on six still videos, judged on two others; its set and their videos stand beside it."""
    root = tmp_path_factory.mktemp("still")
    train_names = [f"train/{('cats', 'dogs')[number % 2]}/{number}" for number in range(6)]
    build(still_videos(root / "videos", *train_names, "val/cats/6", "val/dogs/7"), root / "set", recipe=LARGER)
    result = train("run", *QUICK, "--shards", root / "set", "--out", root / "run")
    assert result.exit_code == 0, result.output
    return root / "run"


def test_another_set_with_videos_that_were_learnt_is_refused(still_run: Path, tmp_path: Path) -> None:
    build(
        still_videos(tmp_path / "videos", "train/cats/6", "train/dogs/7", "val/cats/2", "val/dogs/9"),
        tmp_path / "set",
        recipe=LARGER,
    )
    swapped = ["--shards", tmp_path / "set"]
    refused = train("eval", still_run, *swapped)
    assert_one_clear_line(refused, 2, "val shares with train of ")
    assert "Build the judged set without them, or train again with --leave-out" in refused.stderr
    metrics = json.loads(train("eval", still_run, *swapped, "--allow-leaks", "--json").stdout)
    assert metrics["leaks"]["checked"] and metrics["leaks"]["count"] == 1 and not metrics["chose_epoch"]
    assert metrics["leaks"]["pairs"][0][:2] == [f"{still_run.parent / 'set'}: train/cats/2.mp4", "val/cats/2.mp4"]


def test_a_set_that_grew_keeps_its_check(still_run: Path, tmp_path: Path) -> None:
    shutil.copytree(still_run.parent, tmp_path / "all")
    for name, shown in {"val/dogs/9": 0, "val/dogs/1": 1}.items():
        still_videos(tmp_path / "all" / "videos", name)
        build(tmp_path / "all" / "videos", tmp_path / "all" / "set", recipe=LARGER)
        found = train("eval", still_run, "--shards", tmp_path / "all" / "set", "--allow-leaks", "--json")
        leaks = json.loads(found.stdout)["leaks"]
        assert leaks["checked"] and not leaks["changed"] and bool(leaks["count"]) is bool(shown)


@pytest.fixture
def moved_run(still_run: Path, tmp_path: Path) -> Path:
    """A copy of that run, whose set stands in another place, beside it."""
    shutil.copytree(still_run.parent, tmp_path / "all")
    about = json.loads((tmp_path / "all" / "run" / "run.json").read_text())
    about["settings"]["shards"] = str(tmp_path / "all" / "set")
    (tmp_path / "all" / "run" / "run.json").write_text(json.dumps(about))
    return tmp_path / "all" / "run"


def split_anew(run: Path) -> None:
    """Build its set again, with two videos of train in val and one of val in train; one of train is gone."""
    videos = run.parent / "videos"
    shutil.rmtree(videos)
    names = [
        "train/cats/0",
        "train/cats/6",
        "train/dogs/3",
        "train/dogs/5",
        "val/cats/2",
        "val/dogs/1",
        "val/dogs/7",
    ]
    build(still_videos(videos, *names), run.parent / "set", recipe=LARGER, prune=True)


def test_videos_that_moved_from_train_to_val_were_learnt(moved_run: Path) -> None:
    split_anew(moved_run)
    refused = train("eval", moved_run)
    assert_one_clear_line(refused, 2, "val shares with its train of then: 2 videos, the first is val/")
    judged = train("eval", moved_run, "--allow-leaks", "--json")
    leaks = json.loads(judged.stdout)["leaks"]
    assert set(leaks["videos"]) == {"val/cats/2.mp4", "val/dogs/1.mp4"} and leaks["count"] == 2
    assert leaks["changed"] and "1 videos that are gone from its set" in judged.stderr
    page = moved_run.parent / "report.html"
    assert train("report", moved_run, "--allow-leaks", "--clips", 1, "--out", page).exit_code == 0
    assert "2 of its videos, groups or copies were learnt; this is no test score" in page.read_text()
    assert "gone from its set" in page.read_text()
    assert "was learnt." not in page.read_text()


def test_videos_that_moved_into_another_set_were_learnt_though_the_runs_own_is_gone(
    moved_run: Path, tmp_path: Path
) -> None:
    split_anew(moved_run)
    other = (moved_run.parent / "set").rename(tmp_path / "other")
    assert_one_clear_line(train("eval", moved_run, "--shards", other), 2, "its train of then: 2 videos")


def test_a_group_that_was_learnt_stays_learnt_with_other_videos(moved_run: Path) -> None:
    videos, table = moved_run.parent / "videos", moved_run.parent / "videos.csv"
    still_videos(videos, "val/cats/20")
    rows = ("train/cats/0,cats,train,a", "train/dogs/1,dogs,train,b", "val/cats/20,cats,val,train/cats/2.mp4")
    lines = [row.replace(",", ".mp4,", 1) for row in (*rows, "val/dogs/7,dogs,val,c")]
    table.write_text("\n".join(["path,label,split,group", *(f"videos/{line}" for line in lines)]))
    build(table, moved_run.parent / "set", recipe=LARGER, prune=True)
    assert_one_clear_line(train("eval", moved_run), 2, "1 group, the first is train/cats/2.mp4")


def test_a_run_that_kept_no_digests_is_not_trusted_with_a_set_that_changed(moved_run: Path) -> None:
    split_anew(moved_run)
    (moved_run / MANIFEST).unlink()
    assert_one_clear_line(train("eval", moved_run), 2, "has changed since")
    judged = train("eval", moved_run, "--allow-leaks", "--json")
    assert not json.loads(judged.stdout)["leaks"]["checked"] and "leaks were not looked for" in judged.stderr
    assert train("eval", moved_run, "--shards", moved_run.parent / "set", "--split", "test").exit_code == 2


def test_a_set_that_grew_in_its_place_is_compared_with_what_was_learnt(moved_run: Path) -> None:
    build(still_videos(moved_run.parent / "videos", "val/dogs/9"), moved_run.parent / "set", recipe=LARGER)
    judged = train("eval", moved_run)
    assert judged.exit_code == 0 and "the set has changed since" in judged.stderr
    build(still_videos(moved_run.parent / "videos", "val/dogs/1"), moved_run.parent / "set", recipe=LARGER)
    assert_one_clear_line(train("eval", moved_run), 2, "1 video, the first is val/dogs/1.mp4; 1 pair of copies")


def test_by_its_bytes_a_set_is_the_runs_own_wherever_it_stands(moved_run: Path, still_run: Path) -> None:
    shutil.rmtree(moved_run.parent / "set")
    judged = train("eval", moved_run, "--shards", still_run.parent / "set")
    assert judged.exit_code == 0 and "gone" not in judged.stderr


def test_it_is_said_where_the_judged_videos_chose_the_epoch(still_run: Path, tmp_path: Path) -> None:
    best, last = (train("eval", still_run, "--checkpoint", weights) for weights in ("best", "last"))
    assert "val: chose the epoch of these weights" in best.stderr and "chose" not in last.stderr
    assert json.loads(train("eval", still_run, "--json").stdout)["chose_epoch"] is True
    page = tmp_path / "report.html"
    assert train("report", still_run, "--clips", 1, "--out", page).exit_code == 0
    assert 'class="bad">val: chose the epoch of these weights' in page.read_text()


def test_a_group_with_the_name_of_one_that_another_set_taught_is_told(still_run: Path, tmp_path: Path) -> None:
    for name in ("train/cats/2", "train/dogs/9"):  # the first is another video than the one of that name
        picture = np.random.default_rng(100 + int(name[-1])).integers(0, 256, (48, 64, 3)).astype(np.uint8)
        write_video(tmp_path / "videos" / f"{name}.mp4", frames=20, picture=picture)
    build(tmp_path / "videos", tmp_path / "set", recipe=LARGER)
    judged = train("eval", still_run, "--shards", tmp_path / "set", "--split", "train", "--json")
    leaks = json.loads(judged.stdout)["leaks"]
    assert leaks["count"] == 0 and leaks["namesakes"] == ["train/cats/2.mp4"]
    assert "1 group of it, the first is train/cats/2.mp4, has the name of one that was learnt" in judged.stderr


@pytest.mark.parametrize("first", ["labels", "frames"])
def test_what_the_first_weights_learnt_is_no_test_score(first: str, small_set: Path, tmp_path: Path) -> None:
    """Not two generations later, and not from a copy of the file."""
    tiny = ["--model", "videomae", "--option", "scale=micro", "--frames", 4, "--batch-size", 8, "--epochs", 1]
    tiny += ["--shards", small_set, "--precision", "fp32", "--out"]
    began = train(*(["run", "--fold", "1/4"] if first == "labels" else ["pretrain"]), *tiny, tmp_path / "start")
    assert began.exit_code == 0, began.output
    copy = (tmp_path / "start" / "best.safetensors").rename(tmp_path / "copy.safetensors")
    middle = train("run", *tiny, tmp_path / "middle", "--fold", "0/4", "--weights", copy)
    _, held_out = train_and_val(read_set(small_set), "0/4")
    assert held_out is not None
    known = [video for video in held_out.videos if first == "labels" or video.startswith("train/")]
    what = "the labels" if first == "labels" else "the frames, not the labels,"
    assert f"has learnt {what} of {len(known)} of the {len(held_out.videos)} videos" in middle.stderr
    assert train("run", *tiny, tmp_path / "w", "--fold", "0/4", "--weights", tmp_path / "middle").exit_code == 0
    refused = train("eval", tmp_path / "w")
    assert_one_clear_line(refused, 2, "val shares with train, or what its first weights learnt: ")
    leaks = json.loads(train("eval", tmp_path / "w", "--allow-leaks", "--json").stdout)["leaks"]
    assert leaks["videos"] == known and not leaks["unknown"]


def test_what_was_left_out_was_not_learnt(small_set: Path) -> None:
    shard_set = read_set(small_set)
    first, *others = shard_set.split("train").videos
    lessons = [Lesson(digest(shard_set), leave_out=(first,))]
    assert list(learnt_videos(shard_set, lessons)) == others
    again = [*lessons, Lesson(digest(shard_set), labels=False)]
    assert learnt_videos(shard_set, again)[first] is False and learnt_videos(shard_set, again)[others[0]]


def test_weights_that_learnt_from_another_set_or_do_not_say_are_warned_of(
    run_folder: Path, small_set: Path, tmp_path: Path
) -> None:
    told = read_origin(run_folder / "best.safetensors")
    assert told is not None
    other = replace(told, learnt=(Lesson("0" * 16), UNKNOWN))
    tensors = load_file(run_folder / "best.safetensors")
    save_file(tensors, tmp_path / "other.safetensors", other.as_metadata())
    run = ["run", *QUICK, "--shards", small_set, "--fold", "1/4", "--weights", tmp_path / "other.safetensors"]
    result = train(*run, "--out", tmp_path / "run")
    warning = "has learnt from the set 0000000000000000, a set that it does not name: whether"
    assert result.stderr.count(warning) == 1 and "of the" not in result.stderr.partition(warning)[0]
    judged = train("eval", tmp_path / "run", "--allow-leaks", "--json")
    leaks = json.loads(judged.stdout)["leaks"]
    assert not leaks["videos"] and len(leaks["unknown"]) == 2 and judged.stderr.count(warning) == 1


def test_groups_on_both_sides_cross(small_set: Path) -> None:
    shard_set = read_set(small_set)
    sample, other = shard_set.split("train").samples[:2]
    assert not crossing(shard_set, {sample.video: "train", other.video: "val"}, ())
    samples = tuple(structs.replace(entry, group="g") for entry in (sample, other))
    joined = structs.replace(shard_set.sidecars[0], samples=samples)
    found = crossing(replace(shard_set, sidecars=(joined,)), {sample.video: "train", other.video: "val"}, ())
    assert found.groups == ("g",)
