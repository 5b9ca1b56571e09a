"""`train pretrain`: masked pre-training from end to end on a tiny set, and the classifier that starts from it."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from conftest import assert_one_clear_line, write_video
from safetensors.torch import load_file

from models.videomae import VideoMAEPretraining
from pipeline.driver import Wanted, build_set
from pipeline.recipe import Recipe
from pipeline.shards.index import read_set
from train.cli import main
from train.compute import choose_compute
from train.evaluate import spread
from train.inputs import make_input, pixel_constants
from train.loop import Trainer
from train.pretraining import MaskedPretraining
from train.ranks import Ranks
from train.recipes import PretrainRecipe
from train.run_settings import RunSettings

QUICK = ["--option", "scale=micro", "--frames", "4", "--batch-size", "8", "--precision", "fp32", "--epochs", "3"]


def train(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def pretrain(shards: Path, out: Path, *more: object) -> Result:
    return train("pretrain", *QUICK, "--shards", shards, "--out", out, *more)


@pytest.fixture(scope="module")
def run_folder(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrain") / "first"
    result = pretrain(small_set, out, "--pictures-every", 2, "--json")
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)
    assert metrics["model"] == "videomae_pretraining" and metrics["val"]["loss"] > 0
    return out


def test_what_comes_next_is_shown_the_same_and_weights_of_another_input_are_warned_of(
    small_set: Path, tmp_path: Path
) -> None:
    flags = ["--epochs", 1, "--input", "diff", "--option", "decoder_depth=1", "--fold", "0/2"]
    result = pretrain(small_set, tmp_path / "diff", *flags)
    command = result.stdout.partition("next: train ")[2].strip()
    wanted = "--option scale=micro --input diff --frames 4 --fold 0/2"
    place = f"--shards {small_set} --weights {tmp_path / 'diff'}"
    assert command == f"run --model videomae {wanted} {place}"
    more = ["--epochs", 1, "--batch-size", 8, "--precision", "fp32", "--out"]
    as_told = train(*shlex.split(command), *more, tmp_path / "a")
    assert as_told.exit_code == 0 and "Warning" not in as_told.stderr
    other = train(*shlex.split(command.replace("--input diff ", "")), *more, tmp_path / "b")
    assert "was trained with --input diff, and this run shows it rgb" in other.stderr


def test_a_run_logs_its_losses_and_paints_pictures(run_folder: Path) -> None:
    log = [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == [1, 2, 3]
    assert {"loss", "val_loss", "lr", "clips_per_second", "data_wait"} <= log[0].keys()
    assert json.loads((run_folder / "metrics.json").read_text())["val"]["loss"] == log[-1]["val_loss"]
    pictures = sorted((run_folder / "pictures").iterdir())
    assert [path.name for path in pictures] == ["epoch-00002.png", "epoch-00003.png"]
    picture = cv2.imread(str(pictures[0]))
    assert picture is not None and picture.shape == (3 * (3 * 48 + 4), 4 * 48, 3)


def test_the_best_weights_are_the_last(run_folder: Path) -> None:
    best, last = (load_file(run_folder / f"{name}.safetensors") for name in ("best", "last"))
    assert all(torch.equal(best[name], last[name]) for name in best)


@pytest.mark.parametrize("stops_at", [0, 2])
def test_a_stopped_run_resumes_to_the_same_weights_and_pictures(
    run_folder: Path, small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops_at: int
) -> None:
    out, steps, losses = tmp_path / "stopped", [], MaskedPretraining.losses

    def stops(self, *arguments):  # type: ignore[no-untyped-def]
        steps.append(1)
        if len(steps) > 2 * stops_at + 1:
            raise KeyboardInterrupt
        return losses(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(MaskedPretraining, "losses", stops)
        pretrain(small_set, out, "--pictures-every", 2)
    assert not (out / "metrics.json").exists()
    result = train("pretrain", "--out", out, "--resume")
    assert result.exit_code == 0, result.output
    for name in ("last.safetensors", "pictures/epoch-00003.png"):
        assert (out / name).read_bytes() == (run_folder / name).read_bytes()


def test_a_runs_own_file_repeats_it(run_folder: Path, tmp_path: Path) -> None:
    config = run_folder / "config.toml"
    assert train("pretrain", "--config", config, "--out", tmp_path / "again").exit_code == 0
    weights = (tmp_path / "again" / "last.safetensors").read_bytes()
    assert weights == (run_folder / "last.safetensors").read_bytes()
    other = train("pretrain", "--config", config, "--out", tmp_path / "other", "--mask-ratio", 0.5, "--epochs", 1)
    assert other.exit_code == 0, other.output
    before, now = (
        json.loads((run / "run.json").read_text())["settings"] for run in (run_folder, tmp_path / "other")
    )
    assert {name for name in before if before[name] != now[name]} == {"mask_ratio", "epochs"}
    refused = train("run", "--config", config, "--model", "videomae")
    assert_one_clear_line(refused, 2, "mask-ratio: is no setting of `train run`")


def test_a_classifier_starts_from_the_run_and_says_what_did_not_match(
    run_folder: Path, small_set: Path, tmp_path: Path
) -> None:
    run = ["run", "--model", "videomae", *QUICK, "--epochs", 1, "--shards", small_set, "--weights", run_folder]
    result = train(*run, "--out", tmp_path / "fine")
    assert result.exit_code == 0, result.output
    assert "reelcache videomae_pretraining" in result.stderr
    assert "left as they were made: fc_norm.weight, fc_norm.bias, head.weight, head.bias" in result.stderr
    started = json.loads((tmp_path / "fine" / "run.json").read_text())["started_from"]
    assert started["missing"] == ["fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"]
    larger = train(*run, "--option", "scale=tiny", "--out", tmp_path / "tiny")
    assert_one_clear_line(
        larger, 2, "it holds a micro transformer, the model is tiny; choose the option scale=micro"
    )


def test_normalisation_goes_from_run_to_run(run_folder: Path, small_set: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in run_folder.glob("best.*"):
        told = file.read_bytes().replace(b"0.485", b"0.500")
        (source / file.name).write_bytes(told)
    out = tmp_path / "next"
    assert pretrain(small_set, out, "--weights", source, "--epochs", 1).exit_code == 0
    assert json.loads((out / "run.json").read_text())["mean"][0] == 0.5
    run = ["run", "--model", "videomae", *QUICK, "--epochs", 1, "--shards", small_set, "--weights", out]
    assert train(*run, "--out", tmp_path / "fine").exit_code == 0
    assert json.loads((tmp_path / "fine" / "run.json").read_text())["mean"][0] == 0.5


def test_videos_without_labels_and_without_a_val_split_are_enough(tmp_path: Path) -> None:
    for number in range(6):
        write_video(tmp_path / "videos" / f"{number}.mp4", frames=20, salt=number)
    wanted = Wanted(tmp_path / "videos", Recipe(width=32, height=32), val=0.0, unlabelled=True)
    build_set(wanted, tmp_path / "shards")
    result = pretrain(tmp_path / "shards", tmp_path / "run", "--epochs", 1)
    assert result.exit_code == 0, result.output
    assert "--shards YOUR_LABELLED_SET --weights" in result.stdout.partition("next: train run")[2]
    assert "val_loss" not in json.loads((tmp_path / "run" / "log.jsonl").read_text())
    assert list((tmp_path / "run" / "pictures").iterdir())


def test_held_out_clips_reach_as_far_as_those_that_are_learnt(small_set: Path, tmp_path: Path) -> None:
    result = pretrain(small_set, tmp_path, "--epochs", 1, "--pictures-every", 0, "--stride", 2)
    assert result.exit_code == 0, result.output


def test_a_fold_is_never_seen(small_set: Path, tmp_path: Path) -> None:
    settings = RunSettings("videomae_pretraining", str(small_set), PretrainRecipe(frames=4), fold="1/3",
                           options={"scale": "micro"})  # fmt: skip
    trainer = Trainer(settings, tmp_path, lambda _: None, MaskedPretraining)
    assert trainer.val_index is not None
    assert not set(trainer.train_index.videos) & set(trainer.val_index.videos)
    assert len(trainer.train_index.videos) + len(trainer.val_index.videos) == 24


def test_two_ranks_that_share_the_weights_paint_as_one(small_set: Path, tmp_path: Path, exhaustive: bool) -> None:
    if not exhaustive:
        pytest.skip("starts processes; --exhaustive runs it")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    lines = []
    for start, more in (([], []), (torchrun, ["--fsdp"])):
        out = tmp_path / f"run{len(start)}"
        command = [
            sys.executable,
            *start,
            "-m",
            "train",
            "pretrain",
            *QUICK,
            "--shards",
            small_set,
            "--out",
            out,
            *more,
        ]
        done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lines.append(json.loads((out / "log.jsonl").read_text().splitlines()[-1]))
        assert len(list((out / "pictures").iterdir())) == 1
    assert [lines[1][name] for name in ("loss", "val_loss")] == pytest.approx(
        [lines[0][name] for name in ("loss", "val_loss")], rel=1e-5
    )


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_clips_are_spread_evenly_and_counted_once(ranks: int) -> None:
    parts = [spread(7, Ranks(rank, ranks)) for rank in range(ranks)]
    assert len({len(own) for own, _ in parts}) == 1
    assert sorted(np.concatenate([own[fresh] for own, fresh in parts])) == list(range(7))


def objective(shards: Path, **recipe: object) -> MaskedPretraining:
    settings = RunSettings("videomae_pretraining", str(shards), PretrainRecipe(frames=4, **recipe),  # type: ignore[arg-type]
                           options={"scale": "micro"})  # fmt: skip
    made = MaskedPretraining(settings, read_set(shards), choose_compute("cpu", "fp32"), lambda _: None)
    made.build()
    return made


def test_masks_are_a_function_of_the_seed_and_are_cut_with_the_batch(small_set: Path) -> None:
    made = objective(small_set, mask_ratio=0.5)
    draws = [made.draw(6, (48, 48), np.random.default_rng([0, step])) for step in (1, 1, 2)]
    assert torch.equal(draws[0].mask, draws[1].mask) and not torch.equal(draws[0].mask, draws[2].mask)
    assert torch.equal(draws[0][2:4].mask, draws[0].mask[2:4]) and len(draws[0][2:4].augment.flip) == 2
    assert (draws[0].mask.sum(1) == 2 * 4).all()  # two time steps, half of nine patches rounded down


@pytest.mark.parametrize("kind", ["rgb", "diff", "rgb+diff"])
def test_every_kind_of_input_is_painted_in_pixels(small_set: Path, kind: str) -> None:
    made = objective(small_set, input=kind)
    frames = torch.randint(0, 256, (2, 4, 48, 48, 3), dtype=torch.uint8)
    loss = made.losses(made.network, frames, torch.zeros(2), made.draw(2, (48, 48), np.random.default_rng(0)))
    assert loss["loss"].shape == (2,) and loss["loss"].isfinite().all()
    picture = made.picture(frames)
    middle = frames[0, :, :, :, :].permute(1, 0, 2, 3).reshape(48, 4 * 48, 3)
    if kind == "diff":
        change = (frames[0, 1].double() - frames[0, 0].double()) / 2 + 127.5
        assert np.abs(picture[:48, 48:96] - change.numpy()).max() <= 1
    else:
        assert np.abs(picture[:48].astype(int) - middle.numpy()).max() <= 1


def test_pixel_constants_undo_the_input() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    pixels = torch.rand(1, 3, 3, 8, 8)
    clips = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    means, deviations = (torch.tensor(c).view(-1, 1, 1) for c in pixel_constants("rgb+diff", mean, std))
    shown = make_input(clips, "rgb+diff") * deviations + means
    torch.testing.assert_close(shown[:, :, :3], pixels)
    torch.testing.assert_close(shown[:, 1:, 3:], (pixels[:, 1:] - pixels[:, :-1]) / 2 + 0.5)


def test_the_network_is_told_the_constants_that_it_paints_with(small_set: Path) -> None:
    made = objective(small_set)
    made.normalise_by((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    assert isinstance(made.network, VideoMAEPretraining)
    torch.testing.assert_close(made.network.get_buffer("mean").flatten(), torch.tensor((0.1, 0.2, 0.3)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "--model", "s3d"], "--model s3d: has no pre-training; there is one for videomae"),
        (["pretrain", "--resume"], "--resume: say which run with --out"),
        (["pretrain", *QUICK, "--mask-ratio", "0.05"], "a mask ratio of 0.05 hides 0 of 9 patches"),
        (["pretrain", *QUICK, "--option", "width=3"], "videomae_pretraining has no option 'width'; it has"),
        (["pretrain", *QUICK, "--option", "mask_ratio=0.5"], "--option mask_ratio=0.5: is not the family's own"),
    ],
)
def test_mistakes_get_one_clear_line(arguments: list[str], message: str, small_set: Path, tmp_path: Path) -> None:
    result = train(
        *arguments, *([] if "--resume" in arguments else ["--shards", small_set, "--out", tmp_path / "a"])
    )
    assert_one_clear_line(result, 2, message)


def test_a_pre_training_is_not_taken_for_a_classifier(run_folder: Path) -> None:
    words = "learnt without labels; make a classifier of it with `train run --model videomae"
    assert_one_clear_line(train("eval", run_folder), 2, words)
    assert_one_clear_line(train("export", run_folder, "--to", "torch"), 2, words)
    resumed = train("run", "--model", "videomae", "--out", run_folder, "--resume")
    assert_one_clear_line(resumed, 2, "is a run of `train pretrain`; that goes on with it")
