"""`--config`: flags from a file, and a run's own file that repeats it."""

import hashlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import assert_one_clear_line

from train.cli import main, run
from train.config import config_text, flags_of, read_config
from train.recipes import TrainRecipe
from train.run_settings import RunSettings

QUICK = ["--model", "early_fusion", "--frames", "4", "--batch-size", "8", "--precision", "fp32", "--epochs", "1"]


def train(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def settings_of(folder: Path) -> dict[str, object]:
    settings: dict[str, object] = json.loads((folder / "run.json").read_text())["settings"]
    return settings


def test_a_runs_own_file_repeats_it_bit_for_bit(small_set: Path, tmp_path: Path) -> None:
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    more = [
        "--model",
        "vivit",
        "--option",
        "scale=micro",
        "--seed",
        3,
        "--balanced",
        "--ema",
        0.9,
        "--label-smoothing",
        0.05,
    ]
    made = train("run", *QUICK, *more, "--shards", small_set, "--out", first)
    assert made.exit_code == 0, made.output
    config = first / "config.toml"
    assert train("run", "--config", config, "--out", again).exit_code == 0
    assert sha256(first / "last.safetensors") == sha256(again / "last.safetensors")
    assert settings_of(first) == settings_of(again)
    assert train("run", "--config", config, "--out", other, "--seed", 4, "--no-balanced").exit_code == 0
    changed = {name for name, value in settings_of(first).items() if settings_of(other)[name] != value}
    assert changed == {"seed", "balanced"}
    refused = train("run", "--config", config, "--out", other, "--resume")
    assert_one_clear_line(refused, 2, "--balanced True: the run in")


def test_every_setting_is_a_flag_and_comes_back_from_the_file(tmp_path: Path) -> None:
    options = {"scale": 'a "word"\x7f\n', "depth": 3, "wide": True, "sizes": [1, 2]}
    settings = RunSettings(
        "vivit",
        "ü/shards",
        TrainRecipe(lr=1e-5),
        weights="w",
        options=options,
        fold="1/5",
        leave_out=["a'b", "ü.mp4"],
    )
    (tmp_path / "a.toml").write_text(config_text(settings.as_dict()))
    found = read_config(tmp_path / "a.toml", run)
    pairs, found["compile"] = found.pop("options"), found.pop("compiled")
    assert found == {name: value for name, value in settings.as_dict().items() if name != "options"}
    assert pairs == ['scale=a "word"\x7f\n', "depth=3", "wide=true", "sizes=[1, 2]"]
    assert {name.replace("_", "-") for name in found} <= flags_of(run).keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "a.toml: epoch: is no setting of `train run`; did you mean epochs?"),
        ("resume = true", "a.toml: resume: is no setting of `train run`"),
        ("epochs = '3'", 'a.toml: epochs = "3": must be a whole number'),
        ("epochs = true", "a.toml: epochs = true: must be a whole number"),
        ("epochs = 0", "a.toml: epochs = 0: 0 is not in the range x>=1"),
        ("lr = 'fast'", 'a.toml: lr = "fast": must be a number'),
        ("batch-size = 4\nbatch_size = 8", "a.toml: batch_size: is given twice, with - and with _"),
        ("balanced = 1", "a.toml: balanced = 1: must be true or false"),
        ("model = 3", "a.toml: model = 3: must be a word in quotes"),
        ("input = 'grey'", "a.toml: input = \"grey\": 'grey' is not one of 'rgb', 'diff', 'rgb+diff'"),
        ("option = 3", "a.toml: option = 3: must be a table"),
        ("option = {a = [1]}", "a.toml: option.a = [1]: must be a word, a number"),
        ("epochs = ", "a.toml: cannot be read as TOML"),
        (None, "a.toml: no such file"),
    ],
)
def test_a_wrong_file_is_one_clear_line_that_names_it(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "a.toml").write_text(text)
    assert_one_clear_line(train("run", "--model", "vivit", "--config", tmp_path / "a.toml"), 2, message)


def test_a_comparison_takes_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("models = 'magic'\nepochs = 2")
    assert_one_clear_line(train("compare", "--config", tmp_path / "a.toml"), 2, "--models magic: no such family")
    (tmp_path / "a.toml").write_text("patience = 2")
    message = "patience: is no setting of `train compare`"
    assert_one_clear_line(train("compare", "--config", tmp_path / "a.toml"), 2, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("family = 3", "a.toml: family: must be a table for each family"),
        ("[family.magic]", "a.toml: family.magic: must be a table, and its name one of single_frame"),
        (
            "[family.vivit]\nepoch = 3",
            "a.toml: family.vivit.epoch: is no setting of `train compare`; did you mean epoch",
        ),
        ("[family.vivit]\nseeds = '3'", "a.toml: family.vivit.seeds: is no setting of `train compare`"),
        ("[family.vivit]\nepochs = 0", "a.toml: family.vivit.epochs = 0: 0 is not in the range"),
    ],
)
def test_a_wrong_table_of_one_family_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(text)
    assert_one_clear_line(train("compare", "--config", tmp_path / "a.toml"), 2, message)
