"""One flow, one direction: who may import whom."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("pipeline", "models", "train")
# What train may use of pipeline: shards to read, what a set is, and the manners of a command line.
TRAIN_MAY_USE = (
    "pipeline.shards",
    "pipeline.summary",
    "pipeline.leaks",
    "pipeline.errors",
    "pipeline.commands",
    "pipeline.console",
    "pipeline.places",
    "pipeline.foreign",
    "pipeline.recipe",
    "pipeline.report",
    "pipeline.page",
    "pipeline.sprites",
)
# Whoever predicts from raw videos or streams does it through the offline stage's own code.
PREDICT_MAY_USE = (*TRAIN_MAY_USE, "pipeline.decode")
PREDICTORS = ("predict.py", "watch.py", "cli_watch.py", "event_clips.py")


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            module = node.module or ""
            yield from (module if module.count(".") else f"{module}.{alias.name}" for alias in node.names)


def files_of(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_files(room: str) -> None:
    assert files_of(room)


def test_pipeline_imports_neither_torch_nor_the_other_rooms() -> None:
    for path in files_of("pipeline"):
        roots = {name.partition(".")[0] for name in imports_of(path)}
        assert not roots & {"torch", "models", "train", "webdataset"}, path


def test_models_import_torch_safetensors_and_themselves() -> None:
    for path in files_of("models"):
        roots = {name.partition(".")[0] for name in imports_of(path)}
        assert roots <= {"torch", "safetensors", "models", *sys.stdlib_module_names}, path


def test_train_reaches_pipeline_through_its_doors_alone() -> None:
    for path in files_of("train"):
        doors = PREDICT_MAY_USE if path.name in PREDICTORS else TRAIN_MAY_USE
        for name in imports_of(path):
            assert not name.startswith("pipeline") or name.startswith(doors), f"{path} imports {name}"


def test_dask_lives_in_one_file() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in files_of(room)
        if {name.partition(".")[0] for name in imports_of(path)} & {"dask", "distributed"}
    }
    assert users == {"pipeline/cluster.py"}


def test_a_decode_worker_loads_no_torch() -> None:
    code = "import pipeline.build, pipeline.decode.pyav, pipeline.decode.opencv, pipeline.shards.webdataset, sys\n"
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_benchmark_that_imports_models_or_train_is_not_led_to_the_script_of_that_name() -> None:
    """Python looks beside a script first, and there is a benchmarks/models.py."""
    for path in (ROOT / "benchmarks").glob("*.py"):
        if {name.partition(".")[0] for name in imports_of(path)} & {"models", "train"}:
            assert "sys.path[0] = str(Path(__file__).parents[1])" in path.read_text(), path
