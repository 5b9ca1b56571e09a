"""The options of `train run` from end to end, on a tiny set."""

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import SMALL_RUN, assert_one_clear_line
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from pipeline.shards.index import read_set
from train.classification import Classification
from train.cli import main
from train.cli_recipe import make_recipe
from train.clips import Sampling
from train.compute import Compute
from train.ema import Ema
from train.predict import sliding_clips
from train.recipes import RECIPES
from train.trained import load_trained

QUICK = ["--model", "vivit", "--option", "scale=micro", *SMALL_RUN]
CPU = Compute(torch.device("cpu"), bf16=False)


def train(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def run(shards: Path, out: Path, *flags: object) -> Result:
    result = train("run", *QUICK, "--shards", shards, "--out", out, *flags)
    assert result.exit_code == 0, result.output
    return result


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run_folder(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    run(small_set, out, "--epochs", 1)
    return out


def test_a_stopped_run_with_all_options_resumes_to_the_same_weights(
    run_folder: Path, small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    flags = ["--epochs", 3, "--ema", 0.8, "--patience", 9, "--freeze-epochs", 2, "--weights", run_folder]
    flags += ["--repeats", 2, "--balanced", "--class-weights", "cats=2", "--stride", 2, "--best-by", "loss"]
    run(small_set, whole, *flags)
    after_step, steps = Ema.after_step, itertools.count(1)

    def stops(self: Ema) -> None:
        if next(steps) in (3, 11):  # in the first frozen epoch, and soon after the last
            raise KeyboardInterrupt
        after_step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Ema, "after_step", stops)
        for more in ([], ["--resume"]):
            often = ["--checkpoint-every", 1]
            train("run", *QUICK, "--shards", small_set, "--out", stopped, *flags, *often, *more)
        assert next(steps) == 12 and len(log_of(stopped)) == 2
    train("run", "--model", "vivit", "--out", stopped, "--resume")
    for name in ("last.safetensors", "best.safetensors", "checkpoint.safetensors"):
        if name.startswith("checkpoint"):  # seconds stand in its metadata
            tensors = load_file(stopped / name), load_file(whole / name)
            assert all(torch.equal(value, tensors[1][key]) for key, value in tensors[0].items())
        else:
            assert sha256(stopped / name) == sha256(whole / name)
    assert [line["loss"] for line in log_of(stopped)] == [line["loss"] for line in log_of(whole)]


def test_the_averaged_weights_are_those_that_are_saved(small_set: Path, tmp_path: Path) -> None:
    run(small_set, tmp_path, "--epochs", 1, "--ema", 0.8)
    state, saved = load_file(tmp_path / "checkpoint.safetensors"), load_file(tmp_path / "last.safetensors")
    assert all(torch.equal(value, state[f"component/ema/{name}"]) for name, value in saved.items())
    assert not torch.equal(saved["head.weight"], state["model/head.weight"])


def test_a_run_ends_when_patience_does(small_set: Path, tmp_path: Path) -> None:
    run(small_set, tmp_path, "--epochs", 9, "--patience", 1, "--best-by", "accuracy", "--lr", 1e-12)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["epochs"] == len(log_of(tmp_path)) < 9


def test_the_best_epoch_is_chosen_by_the_metric_that_was_asked_for(small_set: Path, tmp_path: Path) -> None:
    run(small_set, tmp_path, "--epochs", 3, "--best-by", "loss")
    losses = [line["val_loss"] for line in log_of(tmp_path)]
    best = json.loads((tmp_path / "metrics.json").read_text())["best_epoch"]
    assert losses[best - 1] == min(losses)


def test_frozen_weights_stay_what_was_loaded(run_folder: Path, small_set: Path, tmp_path: Path) -> None:
    run(small_set, tmp_path, "--epochs", 1, "--freeze-epochs", 1, "--weights", run_folder)
    before, after = load_file(run_folder / "best.safetensors"), load_file(tmp_path / "last.safetensors")
    moved = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"norm", "head"}
    counted = [
        json.loads((folder / "metrics.json").read_text())["parameters"] for folder in (run_folder, tmp_path)
    ]
    assert counted[0] == counted[1]


@pytest.mark.parametrize("more", [[], ["--mixup", "0.4"], ["--accumulate", "3"]])
def test_a_step_goes_down_the_weighted_mean_that_torch_takes(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []
    steps: list[tuple[torch.Tensor, torch.Tensor]] = []
    losses, clip, plain = Classification.losses, nn.utils.clip_grad_norm_, functional.cross_entropy
    weights = torch.tensor([1.0, 3.0])

    def spied(self, model, frames, labels, drawn):  # type: ignore[no-untyped-def]
        with monkeypatch.context() as patch:
            patch.setattr("train.classification.functional.cross_entropy", entropy)
            values = losses(self, model, frames, labels, drawn)
        return values

    def entropy(logits, targets, given, **named):  # type: ignore[no-untyped-def]
        parts.append((logits, targets))
        return plain(logits, targets, given, **named)

    def noted(parameters, norm):  # type: ignore[no-untyped-def]
        logits = torch.cat([one for one, _ in parts]).detach().requires_grad_()
        targets = torch.cat([one for _, one in parts])
        if targets.ndim == 1:
            wanted = functional.cross_entropy(logits, targets, weights, label_smoothing=0.1)
        else:
            total = functional.cross_entropy(logits, targets, weights, label_smoothing=0.1, reduction="sum")
            wanted = total / (targets @ weights).sum()
        (gradient,) = torch.autograd.grad(wanted, logits)
        kept = list(parameters)
        steps.append((kept[-1].grad.clone(), gradient.sum(0)))  # of the last layer's bias
        parts.clear()
        return clip(kept, norm)

    monkeypatch.setattr(Classification, "losses", spied)
    monkeypatch.setattr("train.step.nn.utils.clip_grad_norm_", noted)
    run(small_set, tmp_path, "--epochs", 1, "--class-weights", "dogs=3", "--label-smoothing", 0.1, *more)
    assert len(steps) == 2
    for found, wanted in steps:
        torch.testing.assert_close(found, wanted)


def test_gradients_are_never_cut_to_nothing(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.step.nn.utils.clip_grad_norm_", None)
    run(small_set, tmp_path, "--epochs", 1, "--clip-norm", 0)


@pytest.mark.parametrize("how", [["--stride", "2"], ["--sampling", "uniform"]])
def test_a_run_is_judged_and_used_with_the_frames_that_it_was_trained_on(
    small_set: Path, tmp_path: Path, how: list[str]
) -> None:
    run(small_set, tmp_path, "--epochs", 1, *how)
    trained = load_trained(tmp_path, "best", CPU)
    wanted = Sampling(4, "uniform") if "uniform" in how else Sampling(4, "window", 2)
    assert trained.sampling == wanted
    index = read_set(small_set).split("val")
    assert trained.window == (
        7 if wanted.kind == "window" else np.median(read_set(small_set).split("train").frames)
    )
    judged = train("eval", tmp_path, "--allow-leaks", "--precision", "fp32", "--json", "--csv", tmp_path / "t.csv")
    assert (
        json.loads(judged.stdout)["accuracy"]
        == json.loads((tmp_path / "metrics.json").read_text())["val"]["accuracy"]
    )
    rows = (tmp_path / "t.csv").read_text().splitlines()[1:]
    sample = int(index.frames.argmax())  # long enough for a window
    name = index.samples[sample].video
    chance = next(float(row.split(",")[3]) for row in rows if row.startswith(name))
    video = small_set.parent / "videos" / name
    told = json.loads(train("predict", tmp_path, video, "--precision", "fp32", "--json").stdout)["videos"][0]
    assert told["probabilities"]["cats"] == pytest.approx(chance, abs=1e-6)
    slid = train("predict", tmp_path, video, "--every", 1, "--json")
    assert slid.exit_code == 0, slid.output
    moment = json.loads(slid.stdout)["videos"][0]["timeline"][0]
    assert moment["end"] - moment["start"] == pytest.approx(trained.window / float(trained.recipe.fps))


def test_a_sliding_clip_has_every_second_frame_of_its_window() -> None:
    frames = (np.full((1, 1, 3), number, np.uint8) for number in range(9))
    clips = [
        (first, stop, pixels[:, 0, 0, 0].tolist())
        for first, stop, pixels in sliding_clips(frames, Sampling(3, "window", 2), 5, 3)
    ]
    assert clips == [(0, 5, [0, 2, 4]), (3, 8, [3, 5, 7]), (4, 9, [4, 6, 8])]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--freeze-epochs", "1"], "--freeze-epochs 1: without --weights there is nothing learnt to keep"),
        (["--class-weights", "wolves=2"], "--class-weights wolves=2: no such label; there are cats, dogs"),
        (["--balanced", "--class-weights", "balanced"], "--class-weights balanced: not with --balanced"),
        (["--sampling", "uniform", "--stride", "2"], "--stride 2: not with --sampling uniform"),
        (["--repeats", "3"], "--repeats 3: --batch-size 8 is not a multiple"),
        (["--warmup", "3", "--epochs", "3"], "--warmup 3: of 3 epochs none would be at the rate of --lr"),
    ],
)
def test_options_that_make_no_sense_get_one_clear_line(
    flags: list[str], message: str, small_set: Path, tmp_path: Path
) -> None:
    assert_one_clear_line(train("run", *QUICK, "--shards", small_set, "--out", tmp_path / "r", *flags), 2, message)


def test_the_default_warm_up_is_a_fifth_of_a_short_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert make_recipe("videomae", {"epochs": 3}).warmup == pytest.approx(0.6)
    assert "videomae: warm-up of 0.6 epochs, a fifth of 3, instead of 5" in capsys.readouterr().err
    assert make_recipe("videomae", {"epochs": 3, "warmup": 2.0}).warmup == 2
    assert make_recipe("videomae", {"epochs": None}) == RECIPES["videomae"] and not capsys.readouterr().err


def test_without_tensorboard_the_way_out_is_told(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.scalars.find_spec", lambda _name: None)
    result = train("run", *QUICK, "--shards", small_set, "--out", tmp_path / "r", "--tensorboard")
    assert_one_clear_line(result, 2, "pip install 'reelcache[tensorboard]'")


def test_tensorboard_shows_what_the_log_says(small_set: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(small_set, tmp_path, "--epochs", 2, "--tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name in ("loss", "val_accuracy", "lr"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert shown == [(line["epoch"], pytest.approx(line[name])) for line in log_of(tmp_path)]
