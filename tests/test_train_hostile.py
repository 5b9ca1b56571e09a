"""What a stranger's run or weights can do: end in one clear error, and run no code."""

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from conftest import assert_one_clear_line
from fuzz.samples import make_set
from safetensors.torch import save_file

from models.weights import read_state
from pipeline.recipe import Recipe
from train.cli import main

RECIPE = Recipe(width=48, height=48, max_frames=32)
RUN: dict[str, Any] = {
    "model": "single_frame", "settings": {"frames": 4, "shards": "set", "options": {}}, "labels": ["cats", "dogs"],
    "mean": [0.4] * 3, "std": [0.2] * 3, "fingerprint": RECIPE.fingerprint, "shards_digest": "d",
    "sample_frames": 20, "frames_recipe": RECIPE.as_dict(),
}  # fmt: skip
MAMBA = {"model": "cnn_mamba", "settings": {"frames": 4, "shards": "set", "options": {"depth": 10**7}}}
VIVIT = {"model": "vivit", "settings": {"frames": 4096, "shards": "set", "options": {}}}
RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "deep": ({"labels": "DEEP"}, "nested too deep"),
    "labels": ({"labels": 7}, "labels is no list of names"),
    "mean": ({"mean": [float("nan")] * 3}, "mean is"),
    "frames": ({"settings": {"frames": 10**12, "shards": "set"}}, "frames is 1000000000000"),
    "depth": (MAMBA, "too few for depth 10000000"),
    "size": (VIVIT, "does not fit the model of run.json"),
    "recipe": ({"frames_recipe": {**RECIPE.as_dict(), "width": 10**12}}, "width is 1000000000000"),
    "option": ({"settings": {"frames": 4, "shards": "set", "options": {"device": "x"}}}, "has no option 'device'"),
    "model": ({"model": "../evil"}, "no model family"),
}


class Payload:
    """What a pickle of it would do when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.file}",)


def evaluate(run: Path, shards: Path) -> Any:
    return CliRunner().invoke(main, ["eval", str(run), "--shards", str(shards), "--device", "cpu"])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("shards") / "set", RECIPE, split="val")


@pytest.mark.parametrize("name", RUNS)
def test_a_strangers_run_ends_in_one_clear_error(name: str, tmp_path: Path, shards: Path) -> None:
    values, message = RUNS[name]
    text = json.dumps({**RUN, **values}).replace('"DEEP"', "[" * 10**5)
    (tmp_path / "run.json").write_text(text)
    save_file({"a": torch.zeros(3)}, tmp_path / "best.safetensors")
    assert_one_clear_line(evaluate(tmp_path, shards), 2, message)


@pytest.mark.parametrize("header", [b"\xff" * 7 + b"\x7f", (1 << 40).to_bytes(8, "little"), b""])
def test_weights_whose_header_lies_are_refused(tmp_path: Path, shards: Path, header: bytes) -> None:
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    (tmp_path / "best.safetensors").write_bytes(
        header + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'
    )
    assert_one_clear_line(evaluate(tmp_path, shards), 2, "best.safetensors: cannot be read")


def test_a_run_is_told_of_a_hostile_set(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set", RECIPE, split="val")
    (root / "val-000000.tar").unlink()
    (root / "val-000000.tar").symlink_to("/etc/passwd")
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    assert_one_clear_line(evaluate(tmp_path, root), 2, "link that leads out of the set")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_in_a_weights_file_runs_nothing(tmp_path: Path, zipped: bool) -> None:
    file, trace = tmp_path / "weights.pth", tmp_path / "it-ran"
    if zipped:
        torch.save({"state_dict": Payload(trace)}, file)
    else:
        file.write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(ValueError, match="cannot be read as weights"):
        read_state(file)
    assert not trace.exists()


def test_weights_that_hold_themselves_end(tmp_path: Path) -> None:
    state: dict[str, Any] = {"a": 1}
    state["state_dict"] = state
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="holds no tensors"):
        read_state(tmp_path / "weights.pth")


def test_weights_larger_than_their_file_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**12)}, tmp_path / "strides.pth")
    with pytest.raises(ValueError, match="more than the file holds"):
        read_state(tmp_path / "strides.pth")
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(10**8))
    with pytest.raises(ValueError, match="promise more bytes"):
        read_state(tmp_path / "bomb.pth")
