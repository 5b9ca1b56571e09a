"""Several ranks of torchrun make the steps of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import watched_train
from click.testing import CliRunner
from far import free_port
from safetensors.torch import load_file
from watched_train import Few

from models import build_model
from models.family import Family
from models.origin import Origin
from train import checkpoint
from train.checkpoint import save_weights
from train.cli import main
from train.clips import rank_part
from train.step import Stepper

FEW = ["--model", "few", "--precision", "fp32", "--batch-size", "5", "--epochs", "5", "--mixup", "0.4"]
VIVIT = ["--model", "vivit", "--option", "scale=micro", *FEW[2:]]
pytestmark = pytest.mark.usefixtures("one_thread", "few_family")
CARRIED = ["--ema", "0.8", "--freeze-epochs", "2"]


def losses(out: Path, ranks: int, *flags: object, shards: Path, **wanted: int) -> list[float]:
    """The losses of the steps of a run in the folder `out`; `wanted` as in WATCH. One rank runs here."""
    file = out.with_suffix(".losses")
    file.unlink(missing_ok=True)
    watch = {"losses": str(file), **wanted}
    arguments = ["run", *map(str, flags), "--shards", str(shards), "--out", str(out)]
    if ranks > 1:
        torchrun(ranks, arguments, watch)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Stepper, "__call__", Stepper.__call__)  # put back afterwards
            patch.setattr(checkpoint, "write_tensors", checkpoint.write_tensors)
            watched_train.watch(watch)
            result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
    return [float(line) for line in file.read_text().splitlines()]


def torchrun(ranks: int, arguments: list[str], watch: dict[str, Any]) -> None:
    """Several processes, of which one is killed where that is wanted."""
    start = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", str(free_port())]
    environment = {**os.environ, "WATCH": json.dumps(watch), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *start, watched_train.__file__, *arguments]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert "exitcode  : -9" in done.stderr if "kill_at_step" in watch else done.returncode == 0, done.stderr


def saved_model(path: Path, name: str, model: Family) -> Path:
    """A file for `--weights`."""
    origin = Origin(name, {"scale": "micro"}, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), model.grid)
    save_weights(path, model, origin)
    return path


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    """The weights of the last epoch: their average, where there is one."""
    return load_file(out / "last.safetensors")


def worst(one: list[float], other: list[float]) -> float:
    """The largest relative difference."""
    difference = np.abs(np.array(one) / np.array(other) - 1).max()
    print(f"largest relative difference of {len(one)} losses: {difference:.1e}")  # noqa: T201 - the docs' figure
    return float(difference)


def test_two_ranks_make_the_steps_of_one_process_frozen_or_not_and_average_the_same(
    small_set: Path, tmp_path: Path
) -> None:
    first = Few(num_classes=2, num_frames=4, size=(48, 48), norm=False)
    weights = saved_model(tmp_path / "first.safetensors", "few", first)
    plain = [*FEW, *CARRIED, "--option", "norm=no", "--weights", str(weights)]
    alone = losses(tmp_path / "alone", 1, *plain, shards=small_set)
    together = losses(tmp_path / "together", 2, *plain, shards=small_set)
    assert len(alone) == len(together) == 20 and worst(together, alone) < 1e-5
    last = weights_of(tmp_path / "together")
    assert not torch.allclose(last["conv.weight"], first.conv.weight, atol=0.01)  # it was frozen for 8 steps
    torch.testing.assert_close(last, weights_of(tmp_path / "alone"), rtol=0, atol=2e-4)
    assert (tmp_path / "together" / "log.jsonl").read_text().count("\n") == 5  # one rank writes


def test_batch_norm_sees_a_ranks_clips_as_it_sees_a_micro_batch(
    small_set: Path, tmp_path: Path, exhaustive: bool
) -> None:
    if not exhaustive:
        pytest.skip("as in early_fusion; --exhaustive runs both")
    alone = losses(tmp_path / "alone", 1, *FEW, "--accumulate", 2, shards=small_set)
    together = losses(tmp_path / "together", 2, *FEW, shards=small_set)
    assert len(alone) == 20 and worst(together, alone) < 1e-5


def test_batch_norm_of_early_fusion_sees_a_ranks_clips_as_it_sees_a_micro_batch(
    small_set: Path, tmp_path: Path
) -> None:
    early = ["--model", "early_fusion", "--option", "backbone=resnet18_quarter", *FEW[2:], "--epochs", 1]
    alone = losses(tmp_path / "alone", 1, *early, "--accumulate", 2, shards=small_set)
    together = losses(tmp_path / "together", 2, *early, shards=small_set)
    assert len(alone) == 4 and worst(together, alone) < 1e-5


def test_micro_batches_of_a_family_without_batch_norm_change_nothing(small_set: Path, tmp_path: Path) -> None:
    plain = [*FEW, "--option", "norm=no", "--repeats", 2, "--batch-size", 8]  # cut between pairs of videos
    whole = losses(tmp_path / "whole", 1, *plain, shards=small_set)
    parts = losses(tmp_path / "parts", 1, *plain, "--accumulate", 3, shards=small_set)
    assert worst(parts, whole) < 1e-5


@pytest.mark.parametrize("more", [[], ["--fsdp"]])
def test_two_ranks_that_are_killed_go_on_as_one_process(
    more: list[str], small_set: Path, tmp_path: Path, exhaustive: bool
) -> None:
    if not exhaustive and not more:
        pytest.skip("as with --fsdp; --exhaustive runs both")
    first = build_model("vivit", scale="micro", num_classes=2, num_frames=4, size=(48, 48))
    carried = [*CARRIED, "--weights", saved_model(tmp_path / "first.safetensors", "vivit", first)]
    alone = losses(tmp_path / "alone", 1, *VIVIT, *carried, shards=small_set)
    run = [*VIVIT, *carried, *more, "--checkpoint-every", 2]
    made = losses(tmp_path / "run", 2, *run, shards=small_set, kill_at_step=15)
    made = made[:14] + losses(tmp_path / "run", 1, *run, "--resume", shards=small_set)
    assert len(made) == len(alone) == 20 and worst(made, alone) < 1e-5
    torch.testing.assert_close(weights_of(tmp_path / "run"), weights_of(tmp_path / "alone"), rtol=0, atol=2e-4)


def test_parts_of_a_batch_keep_pairs_whole() -> None:
    parts = [rank_part(10, 21, rank, 3, unit=2) for rank in range(3)]
    assert parts == [slice(10, 14), slice(14, 18), slice(18, 21)]
    assert [rank_part(0, 3, rank, 2, unit=2) for rank in range(2)] == [slice(0, 2), slice(2, 3)]
