"""The schedule and what decays."""

import itertools

import pytest

from models import build_model
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
