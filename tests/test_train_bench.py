"""`train bench`: three speeds, the share of waiting, and what to mend."""

import json
from itertools import islice
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import assert_one_clear_line
from far import FarServer

from train.bench import Speeds, _batches
from train.cli import main
from train.stream import ClipStream

QUICK = ["--model", "early_fusion", "--frames", "4", "--seconds", "0.2", "--precision", "fp32", "--device", "cpu"]


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bench", *QUICK, *map(str, arguments)])


def test_json_has_the_three_speeds_the_waiting_and_the_advice(small_set: Path) -> None:
    result = bench("--shards", small_set, "--batch-size", 5, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found["clips_per_second"]) == {"loader", "model", "together"}
    assert min(found["clips_per_second"].values()) > 0 and 0 <= found["data_wait"] < 1
    assert (found["batch_size"], found["frames"], found["device"]) == (5, 4, "cpu")
    assert found["advice"].endswith(".")


def test_the_familys_options_and_the_input_are_those_of_the_run(small_set: Path) -> None:
    narrow = ("--option", "backbone=resnet18_quarter")
    result = bench("--shards", small_set, "--batch-size", 8, *narrow, "--input", "diff", "--json")
    found = json.loads(result.stdout)
    assert found["parameters"] < 1_000_000 and found["options"] == {"backbone": "resnet18_quarter"}
    assert found["input"] == "diff"
    refused = bench("--shards", small_set, "--option", "depth=3", "--seconds", 0)
    assert_one_clear_line(refused, 2, "early_fusion has no option 'depth'")


def test_a_set_behind_a_url_is_measured_through_the_cache(server: FarServer, tmp_path: Path) -> None:
    result = bench("--shards", server.url, "--batch-size", 8, "--cache", tmp_path / "cache")
    assert result.exit_code == 0 and "both together" in result.stdout, result.output
    assert max(server.shards().values()) == 1


def test_the_table_ends_with_the_advice(small_set: Path) -> None:
    result = bench("--shards", small_set, "--batch-size", 8)
    assert result.exit_code == 0 and "both together" in result.stdout, result.output
    assert any(word in result.stdout.splitlines()[-1] for word in ("Mend", "Each alone"))


@pytest.mark.parametrize(
    ("speeds", "start"),
    [
        (Speeds(loader=1000, model=100, together=99, waiting=0.01), "Mend the model: the loader is 10.0 times"),
        (Speeds(loader=50, model=100, together=45, waiting=0.5), "Mend the loader: the model waits 50.0%"),
        (Speeds(loader=150, model=100, together=80, waiting=0.2), "Each alone is fast enough"),
    ],
)
def test_the_advice_names_what_holds_training_up(speeds: Speeds, start: str) -> None:
    assert speeds.advice.startswith(start)


@pytest.mark.parametrize("batch_size", [9, 16])
def test_every_batch_is_full_also_where_an_epoch_has_but_one(small_set: Path, batch_size: int) -> None:
    with ClipStream.open(small_set, frames_per_clip=4, batch_size=batch_size) as stream:
        assert len(stream.index) == 16
        assert [len(batch.labels) for batch in islice(_batches(stream), 3)] == [batch_size] * 3


def test_a_batch_larger_than_the_split_is_refused(small_set: Path) -> None:
    assert_one_clear_line(bench("--shards", small_set, "--batch-size", 17), 2, "--batch-size 17")


def test_an_unknown_family_is_refused(small_set: Path) -> None:
    result = CliRunner().invoke(main, ["bench", "--model", "nonesuch", "--shards", str(small_set)])
    assert_one_clear_line(result, 2, "nonesuch")
