"""docs/models.md: every family is told and drawn, and its figures are what the code counts."""

import json
import re
import runpy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from models import MODELS, build_model, count_parameters
from models.origin import OURS
from train.catalog import list_models

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "models.md").read_text(encoding="utf-8")


def section_of(family: str) -> str:
    """The text below a family's heading."""
    return PAGE.partition(f"\n## {family}\n")[2].partition("\n## ")[0]


def table_below(first_words: str) -> list[list[str]]:
    """The cells of the table whose head starts with these words, row by row."""
    table = PAGE.partition(f"\n| {first_words}")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return [[re.sub(r"^\[(\w+)\]\(#\1\)$", r"\1", cell.strip()) for cell in row] for row in rows]


@pytest.fixture(scope="module")
def catalog() -> list[dict[str, Any]]:
    return list_models(16, (112, 112), 2)


@pytest.mark.parametrize("family", MODELS)
def test_every_family_has_a_section_and_a_diagram(family: str) -> None:
    assert f"](models/{family}.svg)" in section_of(family)
    for point in ("When", "Options", "Cost", "Weights", "Paper", "Traps"):
        assert f"- **{point}**:" in section_of(family), point


def test_the_diagrams_are_what_the_script_draws() -> None:
    drawn = runpy.run_path(str(DOCS / "models" / "draw.py"))
    assert list(drawn["READINGS"]) == list(MODELS)
    for family in MODELS:
        svg = (DOCS / "models" / f"{family}.svg").read_text(encoding="utf-8")
        assert svg == drawn["diagram"](family), "run python docs/models/draw.py"
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"


def test_parameters_cost_and_weights_are_those_of_train_models(catalog: list[dict[str, Any]]) -> None:
    told = [[row[0], *row[2:5]] for row in table_below("family | how")]
    assert told == [
        [row["model"], f"{row['parameters']:,}", str(row["gflops"]), ", ".join(foreign(row["weights"]))]
        for row in catalog
    ]
    for row in catalog:
        cost = f"{row['parameters']:,} parameters, {row['gflops']} GFLOPs"
        assert cost in re.sub(r"\s+", " ", section_of(row["model"]))


def foreign(formats: list[str]) -> list[str]:
    """All but our own, which every family takes."""
    return [name for name in formats if name != OURS]


@pytest.mark.parametrize(("column", "frames", "side"), [(1, 16, 112), (2, 32, 112), (3, 16, 224)])
def test_costs_of_longer_and_larger_clips_are_those_of_train_models(column: int, frames: int, side: int) -> None:
    told = {row[0]: row[column] for row in table_below("family | 16 frames")}
    assert told == {row["model"]: str(row["gflops"]) for row in list_models(frames, (side, side), 2)}


@pytest.mark.parametrize("row", table_below("family | options"), ids=lambda row: "-".join(row[:2]))
def test_parameters_with_options_are_counted(row: list[str]) -> None:
    family, options, told = row
    name, _, value = options.strip("`").partition("=")
    option = {name: json.loads(value) if value in ("true", "1") else value}
    with torch.device("meta"):
        model = build_model(family, num_classes=2, num_frames=16, size=(112, 112), **option)
    assert f"{count_parameters(model):,}" == told
