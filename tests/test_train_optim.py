"""The schedule and what decays."""

import itertools

import pytest
import torch

from models import build_model
from train.augment import IMAGENET_MEAN, IMAGENET_STD, augment, to_clips
from train.optim import learning_rate, make_optimizer


def test_the_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    rates = [learning_rate(step, 100, 10, 0.5) for step in range(101)]
    assert rates[:10] == pytest.approx([0.05 * (step + 1) for step in range(10)])
    assert max(rates) == rates[9] == rates[10] == 0.5
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert rates[100] == pytest.approx(0)


def test_matrices_decay_vectors_do_not_and_none_is_forgotten() -> None:
    model = build_model("early_fusion", num_classes=2, num_frames=4, size=(64, 64))
    decaying, still = make_optimizer(model, 0.1, 0.05).param_groups
    assert (decaying["weight_decay"], still["weight_decay"]) == (0.05, 0.0)
    assert {p.ndim for p in still["params"]} == {1} and min(p.ndim for p in decaying["params"]) == 2
    assert len(decaying["params"]) + len(still["params"]) == len(list(model.parameters()))


def test_clips_are_normalised_as_the_formula_says() -> None:
    frames = torch.randint(0, 256, (2, 3, 4, 5, 3), dtype=torch.uint8)
    clips = to_clips(frames, IMAGENET_MEAN, IMAGENET_STD)
    assert clips.shape == (2, 3, 3, 4, 5)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    expected = ((frames.float() / 255 - mean) / std).permute(0, 1, 4, 2, 3)
    torch.testing.assert_close(clips, expected)


def drawn(clips: torch.Tensor, seed: int, **settings: object) -> torch.Tensor:
    values = {"scale": (0.5, 1.0), "jitter": 0.2, **settings}
    return augment(clips, torch.Generator().manual_seed(seed), **values)  # type: ignore[arg-type]


def test_augmentation_repeats_for_a_seed_and_treats_all_frames_of_a_clip_alike() -> None:
    clips = torch.randn(2, 1, 3, 16, 16).expand(2, 5, 3, 16, 16)
    first = drawn(clips, 7)
    assert torch.equal(first, drawn(clips, 7)) and not torch.equal(first, drawn(clips, 8))
    for frame in range(5):
        torch.testing.assert_close(first[:, frame], first[:, 0])
    assert not torch.allclose(first[0], first[1])


def test_without_crop_jitter_and_flip_nothing_changes() -> None:
    clips = torch.randn(2, 3, 3, 16, 16)
    torch.testing.assert_close(
        drawn(clips, 0, scale=(1.0, 1.0), jitter=0.0, flip=False), clips, rtol=1e-4, atol=1e-4
    )


def test_half_of_the_clips_are_mirrored() -> None:
    clips = torch.randn(200, 1, 3, 8, 8)
    moved = drawn(clips, 0, scale=(1.0, 1.0), jitter=0.0)
    mirrored = sum(torch.allclose(a, b.flip(-1), atol=1e-4) for a, b in zip(moved, clips, strict=True))
    same = sum(torch.allclose(a, b, atol=1e-4) for a, b in zip(moved, clips, strict=True))
    assert mirrored + same == 200 and 70 < mirrored < 130
