"""`train run` and `train eval` from end to end, on a tiny set."""

import hashlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import QUICK, assert_one_clear_line, build, edit_sidecar, write_video
from far import FarServer

from models import MODELS
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.shards.index import read_set
from train import checkpoint
from train.cli import main
from train.folds import train_and_val
from train.loop import Trainer
from train.recipes import TrainRecipe
from train.run_settings import RunSettings
from train.step import Stepper


def train(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def run_folder(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    result = train("run", *QUICK, "--shards", small_set, "--epochs", 3, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)
    assert metrics["epochs"] == 3 and 0 <= metrics["data_wait"] < 1 and metrics["clips_per_second"] > 0
    return out


def test_a_run_folder_holds_all_that_made_it(run_folder: Path) -> None:
    names = {path.name for path in run_folder.iterdir()}
    assert names == {
        "run.json", "config.toml", "log.jsonl", "metrics.json", "manifest.safetensors",
        "best.safetensors", "last.safetensors", "checkpoint.safetensors",
    }  # fmt: skip
    about = json.loads((run_folder / "run.json").read_text())
    assert about["labels"] == ["cats", "dogs"]
    assert about["settings"]["frames"] == 4 and about["settings"]["seed"] == 0
    assert {"fingerprint", "shards_digest", "versions", "mean", "std", "computed_on"} <= about.keys()
    log = [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == [1, 2, 3]
    assert {"loss", "val_accuracy", "lr", "clips_per_second", "data_wait"} <= log[0].keys()


def test_eval_prints_one_json_object_and_agrees_with_the_runs_own_number(run_folder: Path) -> None:
    result = train("eval", run_folder, "--clips", 5, "--precision", "fp32", "--allow-leaks", "--json")
    scores = json.loads(result.stdout)
    assert scores["videos"] == 8
    assert {"accuracy", "accuracy_interval", "roc_auc", "f1", "confusion"} <= scores.keys()
    assert scores["accuracy"] == json.loads((run_folder / "metrics.json").read_text())["val"]["accuracy"]


def test_the_same_seed_gives_the_same_weights(run_folder: Path, small_set: Path, tmp_path: Path) -> None:
    train("run", *QUICK, "--shards", small_set, "--epochs", 3, "--out", tmp_path / "again")
    assert sha256(tmp_path / "again" / "last.safetensors") == sha256(run_folder / "last.safetensors")
    train("run", *QUICK, "--shards", small_set, "--epochs", 3, "--out", tmp_path / "other", "--seed", 1)
    assert sha256(tmp_path / "other" / "last.safetensors") != sha256(run_folder / "last.safetensors")


@pytest.mark.parametrize("stops_at", [0, 1, 2])
def test_a_stopped_run_resumes_to_the_same_weights(
    run_folder: Path, small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops_at: int
) -> None:
    out = tmp_path / "stopped"
    step, steps = Stepper.__call__, []

    def stops(self, *arguments):  # type: ignore[no-untyped-def]
        steps.append(1)
        if len(steps) > stops_at * self.steps_per_epoch + 1:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "__call__", stops)
        train("run", *QUICK, "--shards", small_set, "--epochs", 3, "--out", out)
    assert not (out / "metrics.json").exists()
    result = train("run", "--model", "early_fusion", "--out", out, "--resume")
    assert result.exit_code == 0, result.output
    for name in ("last.safetensors", "best.safetensors"):
        assert sha256(out / name) == sha256(run_folder / name)
    logs = [(folder / "log.jsonl").read_text().splitlines() for folder in (out, run_folder)]
    assert [json.loads(line)["loss"] for line in logs[0]] == [json.loads(line)["loss"] for line in logs[1]]


def test_resuming_with_another_flag_is_refused(run_folder: Path) -> None:
    result = train("run", "--model", "early_fusion", "--out", run_folder, "--resume", "--lr", "0.5")
    assert_one_clear_line(result, 2, "--lr 0.5: the run in")


def test_resuming_on_a_changed_set_is_refused(set_copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train("run", *QUICK, "--shards", set_copy, "--epochs", 1, "--out", out)
    edit_sidecar(sorted(set_copy.glob("train-*.json"))[0], sha256="0" * 64)
    assert_one_clear_line(
        train("run", "--model", "early_fusion", "--out", out, "--resume"), 2, "has changed since"
    )


def test_a_family_that_takes_no_such_clips_is_listed_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.catalog.MODELS", {name: MODELS[name] for name in ("early_fusion", "vivit")})
    taken, refused = json.loads(train("models", "--size", "160x90", "--json").stdout)["models"]
    assert taken["input"] == [16, 3, 90, 160] and refused["model"] == "vivit"
    assert refused["error"].startswith("ViViT needs frames of a multiple of 16 pixels, got 160×90: give other")
    assert "ViViT needs frames of a" in train("models", "--size", "160x90").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--model", "magic"], "--model magic: no such family; there are single_frame"),
        (["run", "--model", "early_fusion", "--device", "meta"], "--device meta"),
        (["run", "--model", "early_fusion", "--resume"], "--resume: say which run with --out"),
        (["run", "--resume"], "--resume: say which run with --out"),
        (["run", "--model", "early_fusion", "--shards", "nowhere"], "nowhere: no shard set here"),
        (["run", "--model", "early_fusion", "--precision", "int3"], "'int3' is not one of 'auto', 'fp32'"),
        (["run", "--model", "early_fusion", "--device", "abacus"], "--device abacus"),
        (["run"], "Missing option '--model'"),
        (["run", "--resume", "--out", "nowhere"], "nowhere: no run here"),
        (["run", "--model", "early_fusion", "--fold", "5/5"], "--fold 5/5: folds are numbered from 0 to 4"),
        (["run", "--model", "early_fusion", "--weights", "a.pth"], "/a.pth: no such file"),
        (["eval", "nowhere"], "nowhere: no run here"),
        (["eval", "data/shards"], "data/shards: is a shard set, no run; give a run"),
        (["models", "--option", "depth=1"], "--option: say of which family with --model"),
        (["models", "--model", "magic"], "no model family is called 'magic'; there are single_frame"),
        (["models", "--model", "s3d", "--option", "depth=1"], "s3d has no option 'depth'"),
        (["models", "--size", "9"], "resnet18 needs frames of more than 32 pixels"),
        (["run", "--model", "vivit", "--frames", "4098"], "--frames 4098: a clip has 1 to 4096"),
        (["run", "--model", "vivit", "--cutmix", "inf"], "--cutmix inf: must be a number, and not infinite"),
        (["run", "--model", "vivit", "--label-smoothing", "nan"], "--label-smoothing nan: must be a number"),
        (["run", "--model", "vivit", "--frames", "7"], "a multiple of 2 frames, got 7: give other --frames, or"),
    ],
)
def test_mistakes_get_one_clear_line(
    arguments: list[str], message: str, small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shards").symlink_to(small_set)
    assert_one_clear_line(train(*arguments), 2, message)


def test_what_a_fold_trains_on_and_videos_shorter_than_a_clip_are_said(small_set: Path, tmp_path: Path) -> None:
    fold = ["--shards", small_set, "--fold", "1/4", "--epochs", 1, "--out", tmp_path / "fold"]
    result = train("run", *QUICK, *fold, "--frames", 400)
    learnt, held_out = train_and_val(read_set(small_set), "1/4")
    assert held_out is not None and result.exit_code == 0, result.output
    count = len(learnt.videos)
    assert f"fold 1/4: trains on {count} videos, holds out {len(held_out.videos)}\n" in result.stderr
    assert (
        f"{count} of {count} videos are shorter than a clip (400 stored frames): its 400 frames are"
        in result.stderr
    )


def test_a_run_is_not_replaced_unasked(run_folder: Path, small_set: Path, tmp_path: Path) -> None:
    result = train("run", *QUICK, "--shards", small_set, "--out", run_folder)
    assert_one_clear_line(result, 2, "holds a run; give another --out, --resume")
    (tmp_path / "thesis.tex").touch()
    result = train("run", *QUICK, "--shards", small_set, "--out", tmp_path, "--overwrite")
    assert_one_clear_line(result, 2, "holds something that is not a run")


def test_eval_refuses_a_set_that_the_run_does_not_fit(run_folder: Path, set_copy: Path) -> None:
    for path in set_copy.glob("*-*.json"):
        samples = json.loads(path.read_text().replace('"dogs"', '"wolves"'))["samples"]
        edit_sidecar(path, samples=samples)
    result = train("eval", run_folder, "--shards", set_copy)
    assert_one_clear_line(result, 2, "the run was trained on cats, dogs")


def test_models_lists_every_family_with_its_parameters() -> None:
    rows = json.loads(train("models", "--json").stdout)["models"]
    sizes = {row["model"]: row["parameters"] for row in rows}
    assert list(sizes) == list(MODELS) and sizes["early_fusion"] == 11_646_210
    early = rows[list(sizes).index("early_fusion")]
    assert early["input"] == [16, 3, 112, 112] and early["source"].startswith("Karpathy")
    assert 1.8 < early["gflops"] < 1.9  # ResNet-18 at 224 px takes 2 × 1.81; a quarter of the pixels, a wider stem
    foreign = ["torchvision ResNet", "torchvision VGG with batch norm", "efficientnet-lite-pytorch"]
    assert early["weights"] == [*foreign, "reelcache"]
    assert "11,646,210" in train("models").stdout
    assert [row["about"] for row in rows if row["model"] in ("vivit", "cnn_lstm")] == [
        "ResNet-18, Linear 512-256, two LSTM layers of 512, MLP 512-512-128-K on the last state",
        "ViT on tubelets that attends over space and time, a linear head",
    ]
    assert not any("parameters" in row["about"] or "\n" in row["about"] for row in rows)


def test_models_counts_one_family_with_its_options() -> None:
    chosen = ["--option", "scale=tiny", "--option", "embedding=uniform"]
    (row,) = json.loads(train("models", "--model", "vivit", *chosen, "--json").stdout)["models"]
    (base,) = json.loads(train("models", "--model", "vivit", "--json").stdout)["models"]
    assert row["model"] == "vivit" and row["parameters"] < 6e6 and 0 < row["gflops"] < base["gflops"]


def test_settings_survive_the_round_trip() -> None:
    settings = RunSettings("early_fusion", "data/shards", TrainRecipe(lr=0.5), seed=3)
    assert RunSettings.from_dict(json.loads(json.dumps(settings.as_dict()))) == settings


def test_weights_that_do_not_fit_or_are_no_weights_are_named(run_folder: Path, tmp_path: Path) -> None:
    for name in ("run.json", "checkpoint.safetensors"):
        (tmp_path / name).write_bytes((run_folder / name).read_bytes())
    assert_one_clear_line(train("eval", tmp_path), 2, "best.safetensors: no such file")
    (tmp_path / "best.safetensors").write_bytes(b"\x80\x04 a pickle, perhaps")
    assert_one_clear_line(train("eval", tmp_path), 2, "best.safetensors: cannot be read")
    (tmp_path / "best.safetensors").write_bytes((run_folder / "checkpoint.safetensors").read_bytes())
    assert_one_clear_line(train("eval", tmp_path), 2, "does not fit the model")


def test_a_write_that_is_cut_short_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.write_json(tmp_path / "a.json", {"a": 1})
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write_json(tmp_path / "a.json", {"a": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_overwrite_removes_nothing_before_the_new_run_can_start(small_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train("run", *QUICK, "--shards", small_set, "--epochs", 1, "--out", out)
    weights = sha256(out / "best.safetensors")
    here = ["--shards", small_set]
    for wrong in (["--shards", "nowhere"], [*here, "--device", "abacus"], [*here, "--batch-size", 10**8]):
        assert train("run", *QUICK, "--out", out, "--overwrite", *wrong).exit_code == 2
        assert sha256(out / "best.safetensors") == weights
    assert train("run", *QUICK, *here, "--batch-size", 10**8, "--out", tmp_path / "new").exit_code == 2
    assert not (tmp_path / "new").exists()
    assert train("run", *QUICK, "--shards", small_set, "--epochs", 1, "--out", out, "--overwrite").exit_code == 0


def test_of_two_runs_that_begin_in_one_folder_the_second_is_refused(small_set: Path, tmp_path: Path) -> None:
    options = {"backbone": "resnet18_quarter"}
    settings = RunSettings("early_fusion", str(small_set), TrainRecipe(frames=4), options=options)
    first, second = (Trainer(settings, tmp_path / "run", lambda _: None) for _ in range(2))
    first.start()
    about = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(UserError, match="another run has begun there; give another one"):
        second.start()
    assert (tmp_path / "run" / "run.json").read_bytes() == about


def test_a_set_without_val_names_no_command_that_would_fail(tmp_path: Path) -> None:
    for name in ("cats/0", "dogs/1"):
        write_video(tmp_path / "videos" / "train" / f"{name}.mp4", frames=20)
    build(tmp_path / "videos", tmp_path / "set", recipe=Recipe(width=48, height=48))
    result = train("run", *QUICK, "--shards", tmp_path / "set", "--epochs", 1, "--out", tmp_path / "run")
    assert "--split SPLIT --shards SET, as there is no val" in result.stdout


def test_labels_of_which_there_is_nothing_to_train_on_are_told(tmp_path: Path) -> None:
    for name in ("train/cats/0", "val/dogs/1", "val/hens/2"):
        write_video(tmp_path / "videos" / f"{name}.mp4", frames=20)
    build(tmp_path / "videos", tmp_path / "set", recipe=Recipe(width=48, height=48))
    run = ["run", *QUICK, "--shards", tmp_path / "set", "--epochs", 1, "--out", tmp_path / "run"]
    assert_one_clear_line(train(*run), 2, "all videos to train on are of one label, none is of dogs, hens; split")
    write_video(tmp_path / "videos" / "train" / "dogs" / "3.mp4", frames=20)
    build(tmp_path / "videos", tmp_path / "set", recipe=Recipe(width=48, height=48))
    assert "no video to train on is of hens: such videos cannot be told" in train(*run).stderr


def test_resume_and_overwrite_contradict_each_other(run_folder: Path) -> None:
    result = train("run", "--model", "early_fusion", "--out", run_folder, "--resume", "--overwrite")
    assert_one_clear_line(result, 2, "give one of them")


def test_a_folder_that_cannot_be_made_is_one_clear_line(small_set: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = train("run", *QUICK, "--shards", small_set, "--out", tmp_path / "file" / "run")
    assert_one_clear_line(result, 1, "file/run: cannot be made: Not a directory")


def test_a_set_behind_a_url_is_trained_on_and_judged_through_the_cache(server: FarServer, tmp_path: Path) -> None:
    options = ["--cache", tmp_path / "cache", "--cache-size", "1GB"]
    run = ["run", "--model", "early_fusion", "--shards", server.url, "--epochs", 1, "--frames", 4]
    found = train(*run, "--out", tmp_path / "far", *options, "--json")
    assert found.exit_code == 0, found.output
    assert "shards are here" in found.stderr
    assert json.loads(found.stdout)["val"]["videos"] == 8
    assert train("eval", tmp_path / "far", "--allow-leaks", *options).exit_code == 0
    assert max(server.shards().values()) == 1
    assert_one_clear_line(train(*run, "--cache-size", "much"), 2, "--cache-size much: not a size")


def bytes_of(root: Path, *splits: str) -> int:
    return sum({one.sha256: one.bytes for one in read_set(root).sidecars if one.split in splits}.values())


def test_a_cache_without_room_for_val_is_refused_before_the_first_step(
    server: FarServer, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stepper, "__call__", lambda *_: pytest.fail("a step was made"))
    size = bytes_of(many, "train", "val") - 1
    run = ["run", *QUICK, "--shards", server.url, "--out", tmp_path / "run", "--cache", tmp_path / "cache"]
    assert_one_clear_line(train(*run, "--cache-size", size), 2, "give a larger --cache-size")


def test_judging_a_split_needs_room_for_that_split_alone(
    server: FarServer, many: Path, run_folder: Path, tmp_path: Path
) -> None:
    size = bytes_of(many, "val")
    assert size < bytes_of(many, "train")
    judged = ["eval", run_folder, "--shards", server.url, "--cache", tmp_path / "cache", "--cache-size", size]
    result = train(*judged, "--allow-leaks")
    assert result.exit_code == 0, result.output
