"""`train compare` on a family of few weights: cells, their resumption, pooling, and the table."""

import json
import pickle
import shutil
import signal
import threading
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
from click import Context
from click.testing import CliRunner, Result
from conftest import assert_one_clear_line, edit_sidecar, write_video
from far import FarServer

import models
from pipeline.cli import main as prep
from pipeline.errors import WorkFailed
from pipeline.leaks import Pair
from pipeline.shards.index import read_set
from train.chart import Panel, Point, write_svg
from train.cli import main
from train.cli_recipe import options_by_family, settings_by_family, weights_by_family
from train.compare import Cell, _take_device, _work_in_pool
from train.comparison_table import COURSE
from train.folds import train_and_val
from train.leakage import copies_of, crossing
from train.loop import Trainer
from train.recipes import RECIPES, TrainRecipe
from train.run_settings import RunSettings
from train.stopping import Stopped


@pytest.fixture(autouse=True)
def tiny_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.MODELS, "tiny", "watched_train:Few")
    monkeypatch.setitem(RECIPES, "tiny", TrainRecipe(epochs=1, frames=4, batch_size=8))


def compare(shards: Path | str, out: Path, *more: object) -> Result:
    flags = ["--models", "tiny", "--precision", "fp32", "--allow-leaks"]
    words = ["compare", "--shards", shards, "--out", out, *flags, *more]
    return CliRunner().invoke(main, [str(word) for word in words])


def test_a_set_behind_a_url_is_fetched_once_for_all_runs(server: FarServer, tmp_path: Path) -> None:
    kept_in = ["--cache", tmp_path / "cache", "--cache-size", "1GB"]
    result = compare(server.url, tmp_path / "cmp", "--folds", 2, *kept_in, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["shards"] == server.url and max(server.shards().values()) == 1


def test_folds_and_seeds_make_one_row_of_all_videos(small_set: Path, tmp_path: Path) -> None:
    table, plot = tmp_path / "t.md", tmp_path / "p.svg"
    result = compare(
        small_set, tmp_path / "cmp", "--folds", 3, "--seeds", "0,1", "--markdown", table, "--plot", plot, "--json"
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    row = found["rows"][0]
    cells = [path.name for path in sorted((tmp_path / "cmp").iterdir()) if path.is_dir()]
    assert cells == [f"tiny-fold{fold}of3-seed{seed}" for fold in range(3) for seed in (0, 1)]
    assert row["videos"] == 24 and row["parameters"] == 642 and row["runs"] == 6
    assert row["accuracy"] == pytest.approx(np.mean(row["accuracy_by_seed"]))
    assert row["accuracy_interval"][0] < row["accuracy"] < row["accuracy_interval"][1]
    files = [tmp_path / "cmp" / cell / "verdicts.json" for cell in cells[::2]]
    held_out = [json.loads(file.read_text())["videos"] for file in files]
    assert len({video for part in held_out for video in part}) == sum(map(len, held_out)) == 24
    assert found["course"]["accuracy"] == COURSE
    assert "| tiny | 642 |" in table.read_text() and "not ours" in table.read_text()
    assert plot.read_text().startswith("<svg")


def test_parameters_are_those_of_the_input_that_is_trained_on(small_set: Path, tmp_path: Path) -> None:
    result = compare(small_set, tmp_path, "--folds", 2, "--input", "rgb+diff", "--json")
    assert json.loads(result.stdout)["rows"][0]["parameters"] == 642 + 3 * 8 * 5 * 5  # of the first convolution


def test_a_familys_own_table_in_the_file_beats_the_rest_and_the_command_line_beats_it(
    small_set: Path, tmp_path: Path
) -> None:
    file = tmp_path / "a.toml"
    file.write_text("lr = 0.5\nepochs = 3\n[family.tiny]\nepochs = 2\n[family.vivit]\noption = {scale = 'micro'}")
    for flags, wanted in (((), (2, 0.5)), (("--epochs", 1), (1, 0.5))):
        out = tmp_path / str(wanted[0])
        result = compare(small_set, out, "--folds", 2, "--config", file, *flags)
        assert result.exit_code == 0, result.output
        settings = json.loads((out / "tiny-fold0of2-seed0" / "run.json").read_text())["settings"]
        assert (settings["epochs"], settings["lr"]) == wanted


def test_options_and_first_weights_come_from_a_familys_table(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    tables = {"vivit": {"options": ["scale=micro"], "weights": [str(tmp_path / "w")]}}
    with Context(main.commands["compare"]) as context:
        context.meta["family"] = tables
        found = settings_by_family(["vivit", "s3d"], {"epochs": 3}, [], ["vivit.heads=4"])
    assert found["vivit"]["options"] == {"heads": 4, "scale": "micro"}
    assert found["vivit"]["weights"] == str(tmp_path / "w") and found["s3d"]["weights"] is None
    assert found["s3d"]["recipe"].epochs == 3 and found["s3d"]["options"] == {}


def test_what_is_typed_for_one_family_leaves_the_tables_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    file = tmp_path / "a.toml"
    file.write_text(
        f"[family.s3d]\nweights = '{tmp_path / 'w'}'\n[family.vivit]\noption = {{scale = 'micro', heads = 2}}"
    )
    typed = ["--config", str(file), "--weights", f"vivit={tmp_path}", "--option", "vivit.heads=4"]
    with main.commands["compare"].make_context("compare", typed) as context:
        given = context.params
        found = settings_by_family(["vivit", "s3d"], {}, given["weights"], given["options"])
    assert found["s3d"]["weights"] == str(tmp_path / "w") and found["vivit"]["weights"] == str(tmp_path)
    assert found["vivit"]["options"] == {"scale": "micro", "heads": 4}


def test_a_run_of_an_older_release_counts_where_what_it_lacks_is_at_its_default(
    small_set: Path, tmp_path: Path
) -> None:
    assert compare(small_set, tmp_path, "--folds", 2).exit_code == 0
    file = tmp_path / "tiny-fold0of2-seed0" / "run.json"
    about = json.loads(file.read_text())
    del about["settings"]["ratio"]
    file.write_text(json.dumps(about))
    assert "2 runs, 2 of them done" in compare(small_set, tmp_path, "--folds", 2).stderr
    refused = compare(small_set, tmp_path, "--folds", 2, "--ratio", 2)
    assert_one_clear_line(refused, 2, "was trained with ratio 1.0, not 2.0")


def test_inner_folds_leave_the_outer_one_alone(small_set: Path, tmp_path: Path) -> None:
    result = compare(small_set, tmp_path, "--folds", 2, "--within", "0/3")
    assert result.exit_code == 0 and "of what fold 0/3 trains on: to choose by, no test score" in result.stdout
    files = [tmp_path / f"tiny-fold0of3-{fold}of2-seed0" / "verdicts.json" for fold in range(2)]
    chosen_by = [video for file in files for video in json.loads(file.read_text())["videos"]]
    outer, held_out = train_and_val(read_set(small_set), "0/3")
    assert held_out is not None and not set(held_out.videos) & set(chosen_by)
    assert sorted(chosen_by) == sorted(outer.videos)
    assert_one_clear_line(compare(small_set, tmp_path, "--within", "0/3"), 2, "say into how many folds")


def test_a_stopped_comparison_goes_on(small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compare(small_set, tmp_path / "whole", "--folds", 2, "--epochs", 2, "--json")
    trained: list[str] = []
    epoch = Trainer._train_epoch

    def stops(self: Trainer, *arguments: Any) -> None:
        if len(trained) == 3:  # in the second epoch of the second cell
            raise KeyboardInterrupt
        trained.append(self.out.name)
        epoch(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", stops)
        assert compare(small_set, tmp_path / "cmp", "--folds", 2, "--epochs", 2).exit_code != 0
    assert trained == ["tiny-fold0of2-seed0", "tiny-fold0of2-seed0", "tiny-fold1of2-seed0"]
    result = compare(small_set, tmp_path / "cmp", "--folds", 2, "--epochs", 2, "--json")
    assert "2 runs, 1 of them done" in result.stderr and "going on after epoch 1 of 2" in result.stderr
    assert "2 runs, 1 of them done; about " in result.stderr and "nothing left to train" in result.stderr
    keys = ("accuracy", "roc_auc", "accuracy_interval", "roc_auc_interval_by_group")
    rows = [json.loads(done.stdout)["rows"][0] for done in (whole, result)]
    assert [rows[0][key] for key in keys] == [rows[1][key] for key in keys]


def test_ctrl_c_says_how_to_go_on(small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(*_: object) -> None:
        raise Stopped(signal.SIGINT, "stopped in epoch 1 after 3 steps")

    monkeypatch.setattr(Trainer, "fit", stops)
    result = compare(small_set, tmp_path)
    assert result.exit_code == 130
    assert "stopped in epoch 1 after 3 steps; the same command goes on from there" in result.stderr


def test_a_tree_shaped_as_rwf_2000_becomes_a_table_without_any_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    for number in range(12):
        split, label = ("train", "val")[number % 3 == 0], ("Fight", "NonFight")[number % 2]
        scene = random.integers(0, 256, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        file = tmp_path / "RWF-2000" / split / label / f"x{number}_0.avi"
        write_video(file, frames=150, codec="mpeg4", picture=scene)
    shutil.copy(
        tmp_path / "RWF-2000/val/Fight/x0_0.avi", tmp_path / "RWF-2000/train/Fight/x12_0.avi"
    )  # it has six
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("train.recipes.RECIPES", {"tiny": RECIPES["tiny"]})
    built = CliRunner().invoke(prep, ["build-shards", "RWF-2000", "--workers", "0"])
    assert built.exit_code == 0, built.output
    table = CliRunner().invoke(main, ["compare"])
    assert table.exit_code == 0, table.output
    assert "4 videos of 4 groups; the split val" in table.stdout and "nothing left to train" in table.stderr
    assert "1 copies of held-out videos were not trained on" in table.stdout
    cell, copy = Path("runs/compare/tiny-seed0"), "train/Fight/x12_0.avi"
    assert json.loads((cell / "run.json").read_text())["settings"]["leave_out"] == [copy]
    assert json.loads(Path("runs/compare/comparison.json").read_text())["left_out"] == {"val": [copy]}
    judged = CliRunner().invoke(main, ["eval", str(cell), "--json"])  # what was not learnt is no leak
    assert judged.exit_code == 0 and json.loads(judged.stdout)["leaks"]["count"] == 0
    again = CliRunner().invoke(main, ["run", "--config", str(cell / "config.toml"), "--out", "again"])
    assert again.exit_code == 0, again.output
    assert (cell / "last.safetensors").read_bytes() == Path("again/last.safetensors").read_bytes()


def pair(a: str, b: str, kind: str) -> Pair:
    return Pair(a, b, ("train", "train"), ("x", "x"), 0.0, kind)


def test_copies_cross_also_by_way_of_one_that_is_on_neither_side(small_set: Path) -> None:
    pairs = (pair("a", "b", "exact"), pair("a", "c", "exact"), pair("c", "d", "near"))
    whole = read_set(small_set)
    assert crossing(whole, {"b": "train", "c": "val"}, pairs).pairs == (pair("b", "c", "exact"),)
    assert crossing(whole, {"b": "train", "d": "val"}, pairs).pairs == (pair("b", "d", "near"),)
    assert not crossing(whole, {"b": "train", "c": "train"}, pairs)
    direct = crossing(whole, {"a": "train", "b": "val", "c": "train"}, pairs).pairs
    assert direct == (pair("a", "b", "exact"),)


def test_what_is_left_out_of_each_fold_is_what_it_has_copies_of() -> None:
    # Three that are the same, the first paired with each; one like the last of them, and one like that.
    pairs = [pair("a", "b", "exact"), pair("a", "c", "exact"), pair("c", "d", "near"), pair("d", "e", "near")]
    assert copies_of(["b"], ["a", "c", "d", "e", "f"], pairs) == ["a", "c", "d"]
    assert copies_of(["e"], ["a", "b", "c", "d", "f"], pairs) == ["d"]
    assert copies_of(["f"], ["a", "b"], pairs) == []


def test_groups_on_both_sides_are_refused(set_copy: Path, tmp_path: Path) -> None:
    for file in set_copy.glob("*-*.json"):
        samples = [{**sample, "group": "one"} for sample in json.loads(file.read_text())["samples"]]
        edit_sidecar(file, samples=samples)
    flags = ["--models", "tiny", "--shards", set_copy, "--out", tmp_path / "cmp"]
    refused = CliRunner().invoke(main, ["compare", *map(str, flags)])
    assert_one_clear_line(refused, 2, "what is held out shares with what is trained on: 1 group,")


@pytest.mark.usefixtures("one_thread")
def test_two_runs_at_a_time_give_the_table_of_one_after_the_other(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # for the processes that work side by side
    flags = ["--models", "vivit", "--option", "vivit.scale=micro", "--frames", 4, "--epochs", 1, "--seeds", "0,1"]
    rows = []
    for jobs in (1, 2):
        result = compare(small_set, tmp_path / str(jobs), *flags, "--jobs", jobs, "--json")
        assert result.exit_code == 0, result.output
        rows.append(json.loads(result.stdout)["rows"][0])
    assert rows[0]["accuracy_by_seed"] == rows[1]["accuracy_by_seed"] and rows[1]["runs"] == 2
    weights = [(tmp_path / str(jobs) / "vivit-seed1" / "last.safetensors").read_bytes() for jobs in (1, 2)]
    assert weights[0] == weights[1]


def test_without_folds_val_is_judged_and_other_settings_are_refused(small_set: Path, tmp_path: Path) -> None:
    result = compare(small_set, tmp_path)
    assert result.exit_code == 0 and "the split val" in result.stdout
    assert_one_clear_line(compare(small_set, tmp_path, "--epochs", 2), 2, "was trained with epochs 1, not 2")


def test_a_run_that_fails_is_told_and_the_others_go_on(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Trainer.fit

    def fails(self: Trainer, *arguments: Any) -> dict[str, Any]:
        if self.settings.fold == "0/2":
            raise WorkFailed("the loss became nan")
        return fit(self, *arguments)

    monkeypatch.setattr(Trainer, "fit", fails)
    result = compare(small_set, tmp_path, "--folds", 2)
    assert_one_clear_line(result, 1, "1 runs failed, the first: tiny-fold0of2-seed0: the loss became nan")
    assert (tmp_path / "tiny-fold1of2-seed0" / "verdicts.json").exists()


def test_a_model_that_diverges_fails_alone(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.MODELS, "wild", "watched_train:Few")
    monkeypatch.setitem(RECIPES, "wild", TrainRecipe(epochs=1, frames=4, batch_size=16, lr=1e38, warmup=0))
    result = compare(small_set, tmp_path, "--models", "wild,tiny", "--out", tmp_path / "cmp")
    message = "1 runs failed, the first: wild-seed0: epoch 1: the model has diverged"
    assert_one_clear_line(result, 1, message)
    assert (tmp_path / "cmp" / "tiny-seed0" / "verdicts.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models", "tiny,magic"], "--models magic: no such family"),
        (["--seeds", "0,x"], "--seeds 0,x: must be whole numbers"),
        (["--plot", "a.png"], "--plot a.png: is written as SVG; call it a.svg"),
        (["--folds", "99"], "99 folds of 24 groups"),
        (["--option", "vivit.scale=small"], "must be FAMILY.NAME=VALUE, with one of tiny as the family"),
        (["--weights", "tiny=nowhere"], "--weights tiny=nowhere: there is no nowhere"),
        (["--freeze-epochs", "1"], "--freeze-epochs 1: without --weights there is nothing learnt to keep"),
    ],
)
def test_mistakes_get_one_clear_line(flags: list[str], message: str, small_set: Path, tmp_path: Path) -> None:
    assert_one_clear_line(compare(small_set, tmp_path, *flags), 2, message)


def test_families_get_their_own_options_and_weights(tmp_path: Path) -> None:
    given = ["vivit.scale=small", "cnn_lstm.bidirectional=yes", "vivit.ratio=0.5"]
    wanted = {"vivit": {"scale": "small", "ratio": 0.5}, "cnn_lstm": {"bidirectional": True}}
    assert options_by_family(given, ["vivit", "cnn_lstm"]) == wanted
    (tmp_path / "a=b").touch()
    own, place = f"vivit={tmp_path}", str(tmp_path / "a=b")
    assert weights_by_family([place, own], ["vivit", "s3d"]) == {"vivit": str(tmp_path), "s3d": place}


@pytest.mark.parametrize("copied", [False, True])
def test_weights_that_have_learnt_what_is_held_out_are_refused(
    copied: bool, small_set: Path, tmp_path: Path
) -> None:
    flags = ["--models", "tiny", "--shards", small_set, "--folds", 2, "--precision", "fp32", "--epochs", 1]
    first = CliRunner().invoke(main, [str(word) for word in ["compare", *flags, "--out", tmp_path / "a"]])
    assert first.exit_code == 0, first.output  # without the copies of what it held out
    learnt = tmp_path / "a" / "tiny-fold0of2-seed0"
    if copied:
        learnt = (learnt / "best.safetensors").rename(tmp_path / "copy.safetensors")
    words = ["compare", *flags, "--out", tmp_path / "b", "--weights", learnt]
    refused = CliRunner().invoke(main, [str(word) for word in words])
    assert_one_clear_line(refused, 2, "has learnt from videos of this set that tiny-fold1of2-seed0 holds out")
    allowed = compare(small_set, tmp_path / "b", "--folds", 2, "--weights", f"tiny={learnt}", "--json")
    assert allowed.exit_code == 0, allowed.output
    about = json.loads((tmp_path / "b" / "tiny-fold1of2-seed0" / "run.json").read_text())
    began = "/copy.safetensors" if copied else "/last.safetensors"
    assert about["started_from"]["matched"] == 9 and about["settings"]["weights"].endswith(began)
    assert json.loads(allowed.stdout)["leaks"]["weights"] == ["tiny-fold1of2-seed0"]


def test_a_chart_escapes_its_names(tmp_path: Path) -> None:
    points = [Point("a<b", 1e6, 0.7, 0.6, 0.8), Point("c", 2e6, 0.71, 0.6, 0.8)]
    write_svg(tmp_path / "a.svg", [Panel("t", "x", "y", points=points, log_x=True, x_range=(1e5, 1e7))])
    text = (tmp_path / "a.svg").read_text()
    assert "a&lt;b" in text and text.count("<circle") == 2 and "1 M" in text


def test_hundreds_on_an_axis_are_plain_numbers(tmp_path: Path) -> None:
    write_svg(tmp_path / "a.svg", [Panel("t", "x", "y", y_range=(0, 160))])
    assert ">150<" in (tmp_path / "a.svg").read_text()


def test_a_worker_that_is_stopped_while_it_judges_begins_nothing_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def judges(cell: Cell) -> None:
        begun.append(cell.out.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(Cell, "work", judges)
    monkeypatch.setattr("train.compare._STOPS", [])
    for name in ("first", "second"):
        with pytest.raises(KeyboardInterrupt):
            _work_in_pool(Cell(RunSettings("tiny", "", RECIPES["tiny"]), tmp_path / name, 5))
    assert begun == ["first"]


def test_ctrl_c_while_a_worker_starts_is_heard_before_its_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.compare._STOPS", [])
    monkeypatch.setattr("train.compare._end_with_parent", lambda: None)
    places: Any = Queue()
    places.put(None)
    before = signal.getsignal(signal.SIGINT)  # of what runs in the background, to ignore it
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as a worker is born
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    _take_device(places, 1)
    with pytest.raises(KeyboardInterrupt):
        _work_in_pool(Cell(RunSettings("tiny", "", RECIPES["tiny"]), tmp_path, 5))
    assert signal.getsignal(signal.SIGINT) is before and not list(tmp_path.iterdir())


def test_a_worker_that_was_stopped_says_so_and_begins_nothing_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def stops(cell: Cell) -> None:
        begun.append(cell.out.name)
        raise Stopped(signal.SIGTERM, "stopped after epoch 1")

    monkeypatch.setattr(Cell, "work", stops)
    monkeypatch.setattr("train.compare._STOPS", [])
    for name in ("first", "second"):
        with pytest.raises(Stopped) as caught:
            _work_in_pool(Cell(RunSettings("tiny", "", RECIPES["tiny"]), tmp_path / name, 5))
        told = pickle.loads(pickle.dumps(caught.value))  # as the pool hands it over
        assert (told.number, str(told)) == (signal.SIGTERM, "stopped after epoch 1")
    assert begun == ["first"]
