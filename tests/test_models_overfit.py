"""A family that cannot learn eight clips by heart has a fault in it."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from test_models import FAMILIES, Row
from torch import Tensor
from torch.nn import functional

from pipeline.decode import get_decoder
from pipeline.recipe import Recipe

STEPS = 120
QUICK = {"vivit"}


@pytest.fixture(scope="module")
def eight_clips(real_clips: Path) -> tuple[Tensor, Tensor]:
    """Four real clips of each label: float [8, 8, 3, 64, 64] and classes [8]."""
    with (real_clips / "videos.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    labels = sorted({row["label"] for row in rows})
    chosen = [row for label in labels for row in [row for row in rows if row["label"] == label][:40:10]]
    decoder, clips = get_decoder("pyav"), []
    for row in chosen:
        frames = [
            frame.pixels for frame in decoder.frames(str(real_clips / row["path"]), Recipe(width=64, height=64))
        ]
        clips.append(np.stack((frames * 8)[:8]))
    pixels = torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3).float()
    return (pixels - 110) / 60, torch.tensor([labels.index(row["label"]) for row in chosen])


@pytest.mark.parametrize("row", FAMILIES, ids=str)
def test_a_family_learns_eight_real_clips_by_heart(
    row: Row, eight_clips: tuple[Tensor, Tensor], exhaustive: bool
) -> None:
    if not exhaustive and str(row) not in QUICK:
        pytest.skip("slow: --exhaustive runs it")
    clips, labels = eight_clips
    model = row.build(classes=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(STEPS):
        torch.autograd.backward(functional.cross_entropy(model.train()(clips), labels))
        optimizer.step()
        optimizer.zero_grad()
        with torch.inference_mode():
            right = (model.eval()(clips).argmax(1) == labels).float().mean()
        if right == 1:
            break
    assert right == 1
