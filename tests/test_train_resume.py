"""Killed, stopped and resumed, a run ends as if nothing had happened: weights, optimiser, log."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import watched_train
from click.testing import CliRunner, Result
from conftest import assert_one_clear_line

from train.cli import main
from train.compute import Compute
from train.loop import Trainer
from train.step import Stepper
from train.stopping import Every, Stopped

FEW = ["--model", "few", "--precision", "fp32", "--dropout", "0.2", "--mixup", "0.4"]
WALL_CLOCK = ("seconds", "clips_per_second", "data_wait")
pytestmark = pytest.mark.usefixtures("one_thread", "few_family")
FILES = ("last.safetensors", "best.safetensors")


def train(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def watched(*arguments: object, **wanted: Any) -> int:
    """A run in another process; its exit code."""
    command = [sys.executable, watched_train.__file__, *map(str, arguments)]
    environment = {**os.environ, "WATCH": json.dumps(wanted), "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.run(command, check=False, env=environment, **quiet).returncode  # type: ignore[call-overload,no-any-return]


def ending(run: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """What a run ends with: sha256 of weights and training state, and its log without the wall clock."""
    digests = {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in FILES}
    tensors = (run / "checkpoint.safetensors").read_bytes()
    # The header tells seconds of the wall clock; the tensors come after it.
    digests["tensors"] = hashlib.sha256(tensors[8 + int.from_bytes(tensors[:8], "little") :]).hexdigest()
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return digests, [{k: v for k, v in line.items() if k not in WALL_CLOCK} for line in lines]


@pytest.fixture
def undisturbed(small_set: Path, tmp_path: Path) -> Path:
    assert train("run", *FEW, "--shards", small_set, "--out", tmp_path / "whole").exit_code == 0
    return tmp_path / "whole"


@pytest.mark.parametrize("wanted", [{"kill_at_step": 7}, {"kill_at_write": 3}])  # both lose steps
def test_a_killed_run_ends_as_if_nothing_had_happened(
    undisturbed: Path, small_set: Path, tmp_path: Path, wanted: dict[str, int]
) -> None:
    run = ["run", *FEW, "--shards", small_set, "--out", tmp_path / "killed", "--checkpoint-every", 2]
    assert watched(*run, **wanted) == -signal.SIGKILL
    resumed = train(*run, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "going on in epoch 2 of 3, after" in resumed.stderr or "after epoch 1 of 3" in resumed.stderr
    assert ending(tmp_path / "killed") == ending(undisturbed)
    assert not list((tmp_path / "killed").glob(".*"))


@pytest.mark.parametrize(("number", "at"), [(signal.SIGTERM, 2), (signal.SIGINT, 7)])
def test_a_run_that_is_asked_to_stop_saves_and_says_how_to_go_on(
    undisturbed: Path, small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, at: int
) -> None:
    run = ["run", *FEW, "--shards", small_set, "--out", tmp_path / "stopped"]
    step = Stepper.__call__

    def is_asked(self: Stepper, batch: Any, of: int) -> dict[str, float]:
        if of == at:
            os.kill(os.getpid(), number)
        return step(self, batch, of)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "__call__", is_asked)
        stopped = train(*run)
    assert stopped.exit_code == 128 + number
    assert f"go on with: train run --model few --out {tmp_path / 'stopped'} --resume" in stopped.stderr
    assert train("run", "--out", tmp_path / "stopped", "--resume").exit_code == 0  # its model is known
    assert ending(tmp_path / "stopped") == ending(undisturbed)


def test_what_goes_on_with_a_run_names_its_cache(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise Stopped(signal.SIGTERM, "stopped")

    monkeypatch.setattr(Trainer, "fit", stopped)
    cache = ["--cache", tmp_path / "a cache", "--cache-size", "2GB"]
    result = train("run", *FEW, "--shards", small_set, "--out", tmp_path / "run", *cache)
    assert f"--resume --cache '{tmp_path}/a cache' --cache-size 2000000000\n" in result.stderr


@pytest.mark.parametrize("family", ["early_fusion", "cnn_mamba"])
def test_ten_kills_at_random_steps(family: str, small_set: Path, tmp_path: Path, exhaustive: bool) -> None:
    if not exhaustive:
        pytest.skip("takes minutes; --exhaustive kills them")
    run = ["run", "--model", family, "--frames", 4, "--batch-size", 4, "--precision", "fp32", "--epochs", 3]
    run += ["--shards", small_set, "--checkpoint-every", 2]
    assert watched(*run, "--out", tmp_path / "whole") == 0
    dice, equal, within = random.Random(family), 0, 0
    for number in range(10):
        at = dice.randrange(1, 12)  # of 3 × 4 steps
        out = ["--out", tmp_path / str(number)]
        assert watched(*run, *out, kill_at_step=at) == -signal.SIGKILL
        assert watched(*run, *out, "--resume") == 0
        equal += ending(tmp_path / str(number)) == ending(tmp_path / "whole")
        within += at % 4 != 0
    print(f"{family}: {equal} of 10 equal, {within} killed within an epoch")  # noqa: T201 - the figure of the docs
    assert equal == 10 and within >= 5


def test_a_checkpoint_of_steps_or_minutes() -> None:
    assert Every.parse("500") == Every(steps=500) and Every.parse("1.5min") == Every(seconds=90)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint-every", "often"], "--checkpoint-every often: must be a number of steps, such as 500, or"),
        (["--checkpoint-every", "0"], "--checkpoint-every 0"),
        (["--precision", "fp16"], "--precision fp16: is for CUDA devices, not for cpu; take bf16 or fp32"),
    ],
)
def test_mistakes_get_one_clear_line(flags: list[str], message: str, small_set: Path, tmp_path: Path) -> None:
    result = train("run", "--model", "few", "--shards", small_set, "--out", tmp_path / "run", *flags)
    assert_one_clear_line(result, 2, message)


def test_without_a_compiler_compile_is_refused(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def has_none(*_: object, **__: object) -> Any:
        raise RuntimeError("No working C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", has_none)
    result = train("run", *FEW, "--shards", small_set, "--out", tmp_path / "run", "--compile")
    assert_one_clear_line(result, 2, "--compile: this machine cannot compile (No working C++ compiler found)")


def test_a_compiled_run_resumes_and_is_judged(small_set: Path, tmp_path: Path, exhaustive: bool) -> None:
    if not exhaustive:
        pytest.skip("compiles for a minute; --exhaustive does")
    run = ["run", *FEW, "--shards", small_set, "--out", tmp_path / "run", "--compile"]
    assert watched(*run, "--checkpoint-every", 1, kill_at_step=6) == -signal.SIGKILL
    assert watched(*run, "--resume") == 0
    assert b"_orig_mod" not in (tmp_path / "run" / "last.safetensors").read_bytes()
    assert train("eval", tmp_path / "run", "--allow-leaks").exit_code == 0


def test_the_scaler_of_fp16_goes_on_from_a_checkpoint(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaled = Compute(torch.device("cpu"), bf16=False, fp16=True)
    monkeypatch.setattr("train.loop.choose_compute", lambda *_: scaled)
    run = ["run", *FEW, "--shards", small_set]
    assert train(*run, "--out", tmp_path / "whole").exit_code == 0
    scales: list[float] = []
    end_epoch = Trainer._end_epoch

    def stops(self: Trainer) -> None:
        end_epoch(self)
        scales.append(self.step.scaler.get_scale())
        if len(scales) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_end_epoch", stops)
        train(*run, "--out", tmp_path / "stopped")
    assert scales[1] > 1 and train(*run, "--out", tmp_path / "stopped", "--resume").exit_code == 0
    assert ending(tmp_path / "stopped") == ending(tmp_path / "whole")
