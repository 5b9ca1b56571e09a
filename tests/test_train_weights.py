"""`train run --weights`: runs that start from other weights, and layer-wise decay."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import assert_one_clear_line
from safetensors.torch import load_file, save_file
from torch import nn

from models import MODELS, build_model
from models.normalisation import IMAGENET_MEAN, IMAGENET_STD
from models.origin import Lesson, Origin, read_origin
from pipeline.shards.index import read_set
from pipeline.summary import digest
from train.cli import main
from train.cli_recipe import parse_options
from train.loop import Trainer
from train.optim import make_optimizer, set_rate
from train.recipes import OWN, RECIPES, TrainRecipe
from train.step import Stepper

QUICK = ["--frames", "4", "--batch-size", "8", "--precision", "fp32", "--epochs", "1"]

SPECIAL = {
    "s3d": ["--frames", "16"],  # fewer leave nothing of so small a picture
    "vivit": ["--option", "scale=micro"],
    "videomae": ["--option", "scale=micro"],
}


def train(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """ResNet-18 as torchvision saves it; the rows of its first layer are all alike."""
    state = build_model("single_frame", num_classes=2, num_frames=1, size=(48, 48)).get_submodule("trunk")
    tensors = {name: tensor.clone() for name, tensor in state.state_dict().items()}
    save_file({**tensors, "fc.weight": torch.zeros(1000, 512)}, tmp_path / "resnet18.safetensors")
    return tmp_path / "resnet18.safetensors"


@pytest.mark.parametrize("family", MODELS)
def test_every_family_trains_and_is_judged(family: str, small_set: Path, tmp_path: Path) -> None:
    more = SPECIAL.get(family, [])
    result = train("run", "--model", family, *QUICK, *more, "--shards", small_set, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert json.loads(train("eval", tmp_path / "run", "--allow-leaks", "--json").stdout)["videos"] == 8


def test_a_familys_own_options_are_kept_with_the_run(small_set: Path, tmp_path: Path) -> None:
    run = ["run", "--model", "late_fusion", *QUICK, "--shards", small_set, "--out", tmp_path / "run"]
    assert train(*run, "--option", "fusion=concat").exit_code == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["options"] == {"fusion": "concat"}
    assert train("eval", tmp_path / "run", "--allow-leaks").exit_code == 0
    resume = ["run", "--model", "late_fusion", "--out", tmp_path / "run", "--resume"]
    assert train(*resume).exit_code == 0
    assert_one_clear_line(train(*resume, "--option", "fusion=mean"), 2, "--option {'fusion': 'mean'}: the run in")


def test_a_run_with_dropout_is_judged_and_starts_another_without(small_set: Path, tmp_path: Path) -> None:
    run = ["run", "--model", "early_fusion", *QUICK, "--shards", small_set]
    assert train(*run, "--dropout", 0.5, "--out", tmp_path / "run").exit_code == 0
    judged = train("eval", tmp_path / "run", "--allow-leaks")
    assert judged.exit_code == 0, judged.output
    again = train(*run, "--weights", tmp_path / "run", "--out", tmp_path / "again")
    assert again.exit_code == 0 and "left as they were made" not in again.stderr


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("concat", "--option concat: must be NAME=VALUE"),
        ("in_channels=1", "--option in_channels=1: is not the family's own to choose"),
        ("name=x", "--option name=x: is not the family's own to choose"),
        ("size=64", "--option size=64: is not the family's own to choose"),
        ("depth=3", "late_fusion has no option 'depth'; it has backbone, fusion"),
        (
            "backbon=resnet18",
            "option backbon=resnet18: late_fusion has no option 'backbon'; did you mean backbone?",
        ),
        ("backbone=alexnet", "option backbone=alexnet: no backbone is called 'alexnet'; there are"),
        ("fusion=3", "late_fusion: option fusion is a word, such as 'mean'; got 3"),
        ("fusion=sum", "fusion is 'mean' or 'concat', not 'sum'"),
    ],
)
def test_options_that_a_family_has_not_are_one_clear_line(
    small_set: Path, tmp_path: Path, option: str, message: str
) -> None:
    run = ["run", "--model", "late_fusion", "--shards", small_set, "--out", tmp_path / "run"]
    assert_one_clear_line(train(*run, "--option", option), 2, message)


@pytest.mark.parametrize(
    ("word", "value"), [("yes", True), ("True", True), ("no", False), ("FALSE", False), ("3", 3), ("x", "x")]
)
def test_options_are_truth_values_numbers_or_words(word: str, value: object) -> None:
    found = parse_options((f"depth={word}",))["depth"]
    assert found == value and type(found) is type(value)


def test_a_family_without_a_recipe_of_its_own_trains_by_the_defaults() -> None:
    assert list(RECIPES) == list(MODELS) and OWN.keys() < MODELS.keys()
    assert {family for family, recipe in RECIPES.items() if recipe != TrainRecipe()} == OWN.keys()


def test_videomae_is_fine_tuned_as_by_its_authors() -> None:
    recipe = RECIPES["videomae"]
    assert (recipe.mixup, recipe.cutmix, recipe.erase, recipe.label_smoothing) == (0.8, 1.0, 0.25, 0.1)
    assert (recipe.layer_decay, recipe.dropout, recipe.warmup, recipe.weight_decay) == (0.7, 0.5, 5.0, 0.05)


def test_a_run_says_and_keeps_what_it_started_from(weights: Path, small_set: Path, tmp_path: Path) -> None:
    run = ["run", "--model", "early_fusion", *QUICK, "--lr", 1e-9, "--shards", small_set]
    result = train(*run, "--out", tmp_path / "run", "--weights", weights)
    assert result.exit_code == 0, result.output
    assert "torchvision ResNet, 120 tensors loaded" in result.stderr and "not used: fc.weight" in result.stderr
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["settings"]["weights"] == str(weights) and about["mean"] == [0.485, 0.456, 0.406]
    assert (
        about["started_from"]["unexpected"] == ["fc.weight"]
        and "head.0.weight" in about["started_from"]["missing"]
    )
    learned = load_file(tmp_path / "run" / "last.safetensors")["trunk.layer1.0.conv1.weight"]
    torch.testing.assert_close(learned, load_file(weights)["layer1.0.conv1.weight"], rtol=0, atol=1e-6)
    chained = train(*run, "--out", tmp_path / "next", "--weights", tmp_path / "run")
    assert "run: reelcache early_fusion, " in chained.stderr and chained.exit_code == 0


def test_a_runs_weights_say_what_they_are(small_set: Path, tmp_path: Path) -> None:
    run = ["run", "--model", "vivit", *QUICK, "--option", "scale=micro", "--shards", small_set]
    assert train(*run, "--out", tmp_path / "run").exit_code == 0
    origin = read_origin(tmp_path / "run" / "last.safetensors")
    learnt = (Lesson(digest(read_set(small_set))),)
    assert origin == Origin(
        "vivit", {"scale": "micro"}, IMAGENET_MEAN, IMAGENET_STD, (2, 3, 3), learnt, ("cats", "dogs"), "rgb"
    )
    copy = (tmp_path / "run" / "best.safetensors").rename(tmp_path / "copy.safetensors")
    longer = train(*run, "--frames", 8, "--out", tmp_path / "longer", "--weights", copy)
    assert longer.exit_code == 0 and "copy.safetensors: reelcache vivit, " in longer.stderr
    assert "left as they were made" not in longer.stderr and "not used" not in longer.stderr


def test_a_run_that_never_ended_an_epoch_goes_on_without_the_file(
    weights: Path, small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ["run", "--model", "early_fusion", *QUICK, "--shards", small_set, "--weights", weights]
    assert train(*run, "--out", tmp_path / "whole").exit_code == 0

    def stops(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "__call__", stops)
        train(*run, "--out", tmp_path / "stopped")
    weights.unlink()
    result = train("run", "--model", "early_fusion", "--out", tmp_path / "stopped", "--resume")
    assert result.exit_code == 0, result.output
    whole, stopped = ((tmp_path / name / "last.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert whole == stopped


def test_a_run_that_was_stopped_before_its_first_checkpoint_still_starts_from_the_weights(
    weights: Path, small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ["run", "--model", "early_fusion", *QUICK, "--shards", small_set, "--weights", weights, "--lr", 1e-9]

    def stops(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_checkpoint", stops)
        train(*run, "--out", tmp_path / "run")
    names = ["config.toml", "manifest.safetensors", "run.json"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == names
    assert train("run", "--model", "early_fusion", "--out", tmp_path / "run", "--resume").exit_code == 0
    learned = load_file(tmp_path / "run" / "last.safetensors")["trunk.layer1.0.conv1.weight"]
    torch.testing.assert_close(learned, load_file(weights)["layer1.0.conv1.weight"], rtol=0, atol=1e-6)


def test_wrong_weights_are_one_clear_line_and_harm_no_run(small_set: Path, tmp_path: Path) -> None:
    run = ["run", "--model", "early_fusion", *QUICK, "--shards", small_set, "--out", tmp_path / "run"]
    assert train(*run).exit_code == 0
    wrong = tmp_path / "wrong.safetensors"
    save_file({"a": torch.zeros(1)}, wrong)
    for path, message in (
        (wrong, "nothing in it is known to early_fusion; it holds a"),
        ("no.pth", "no.pth: no such file"),
    ):
        assert_one_clear_line(train(*run, "--overwrite", "--weights", path), 2, message)
    assert (tmp_path / "run" / "best.safetensors").exists()


def test_layer_decay_slows_what_sees_the_pixels_most() -> None:
    model = build_model("cnn_mamba", num_classes=2, num_frames=8, size=(64, 64))
    optimizer = make_optimizer(model, 0.1, 0.05, layer_decay=0.5)
    set_rate(optimizer, 0.2)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert set(rates) == set(model.parameters())
    stages = [[s] if isinstance(s, nn.Parameter) else list(s.parameters()) for s in model.stages()]
    assert [rates[stage[0]] for stage in stages] == [0.2 * 0.5 ** (8 - number) for number in range(9)]
    still = {p for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    assert still == model.undecayed()


def test_a_model_that_forgets_a_parameter_in_its_stages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("early_fusion", num_classes=2, num_frames=4, size=(64, 64))
    monkeypatch.setattr(type(model), "stages", lambda self: [self.head])
    with pytest.raises(ValueError, match="must name each parameter exactly once"):
        make_optimizer(model, 0.1, 0.05)
