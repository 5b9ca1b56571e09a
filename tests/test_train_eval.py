"""`train eval`: thresholds, intervals by group, leaks refused, and what it writes to look at."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import assert_one_clear_line, build, edit_sidecar, write_video
from msgspec import structs
from sklearn.metrics import roc_auc_score

from pipeline.recipe import Recipe
from pipeline.shards.index import read_set
from train.bootstrap import group_intervals, weighted_auc
from train.cli import main
from train.folds import train_and_val
from train.leakage import crossing
from train.metrics import decide, fit_threshold, score

QUICK = ["--model", "early_fusion", "--frames", "4", "--batch-size", "8", "--precision", "fp32", "--epochs", "1"]


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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--threshold-from", "val"], "--threshold-from val: is what is judged"),
        (["--threshold-from", "test"], "no split 'test'"),
        (["--csv", "nowhere/a.csv"], "--csv nowhere/a.csv: there is no folder nowhere"),
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
    build(tmp_path / "videos", tmp_path / "set", recipe=Recipe(width=48, height=48))
    out, where = tmp_path / "run", ["--shards", tmp_path / "set"]
    assert train("run", *QUICK, *where, "--out", out).exit_code == 0
    assert_one_clear_line(train("eval", out), 2, "val shares with train: ")
    metrics = json.loads(train("eval", out, "--allow-leaks", "--json").stdout)
    pairs = [{one, other} for one, other, *_ in metrics["leaks"]["pairs"]]
    assert {"train/dogs/10.mp4", "val/dogs/9.mp4"} in pairs
    assert metrics["leaks"]["count"] >= 1
    refused = train("compare", *where, "--models", "early_fusion", "--out", tmp_path / "cmp")
    assert_one_clear_line(refused, 2, "what is held out shares with what is trained on")


def test_groups_on_both_sides_cross(small_set: Path) -> None:
    shard_set = read_set(small_set)
    sample, other = shard_set.split("train").samples[:2]
    assert not crossing(shard_set, {sample.video: "train", other.video: "val"}, ())
    samples = tuple(structs.replace(entry, group="g") for entry in (sample, other))
    joined = structs.replace(shard_set.sidecars[0], samples=samples)
    found = crossing(replace(shard_set, sidecars=(joined,)), {sample.video: "train", other.video: "val"}, ())
    assert found.groups == ("g",)
