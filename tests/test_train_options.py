"""What `train run` may carry along: averaged weights, patience, frozen stages, class weights."""

import math
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import build_model
from pipeline.errors import UserError
from train.class_weights import class_weights
from train.ema import Ema, decay_after
from train.freeze import Freeze
from train.optim import make_optimizer
from train.patience import Patience, merit
from train.recipes import TrainRecipe


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.linear(x))
        return normed


def change(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model(torch.randn(8, 3))  # moves the norm layer's statistics


def test_the_average_follows_weights_and_statistics_by_its_formula() -> None:
    model = Small()
    ema = Ema(model, 0.5)
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(12):
        change(model)
        ema.after_step()
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            wanted[name] = wanted[name] * decay + value * (1 - decay) if value.is_floating_point() else value
    with ema.judged():
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, wanted[name])
    assert decay_after(0, 0.999) == 0.1 and decay_after(10**6, 0.999) == 0.999


def test_judging_gives_the_very_weights_back() -> None:
    model = Small()
    ema = Ema(model, 0.9)
    change(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ema.after_step()
    with suppress(KeyboardInterrupt), ema.judged():
        assert not torch.equal(model.linear.weight, before["linear.weight"])
        raise KeyboardInterrupt
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_average_that_was_saved_goes_on_as_if_nothing_had_happened() -> None:
    model, other = Small(), Small()
    whole, stopped = Ema(model, 0.9), Ema(other, 0.9)
    change(model)
    whole.after_step()
    state = {name: value.clone() for name, value in whole.state_dict().items()}
    stopped.load_state_dict(state)
    other.load_state_dict(model.state_dict())
    for ema in (whole, stopped):
        ema.after_step()
    assert all(torch.equal(value, stopped.state_dict()[name]) for name, value in whole.state_dict().items())
    with pytest.raises(ValueError, match="not those of this model"):
        stopped.load_state_dict({"weight": torch.zeros(1), "updates": torch.tensor(1)})


def test_patience_ends_after_so_many_epochs_without_a_better() -> None:
    values = [0.5, 0.7, 0.7, 0.6, 0.9]
    patience = Patience("val_accuracy", 2)
    ends = [patience.after_epoch({"epoch": n, "val_accuracy": value}) for n, value in enumerate(values, 1)]
    assert ends == [False, False, False, True, False]  # an equal value is not better
    again = Patience("val_accuracy", 2)
    again.load_state_dict(patience.state_dict())
    assert not again.after_epoch({"epoch": 6, "val_accuracy": 0.8})
    assert again.after_epoch({"epoch": 7, "val_accuracy": 0.9})


def test_less_of_a_loss_is_better_and_nan_is_the_worst() -> None:
    assert merit({"val_loss": 0.2}, "val_loss") > merit({"val_loss": 0.3}, "val_loss")
    assert merit({"val_loss": math.nan}, "val_loss") == -math.inf < merit({"val_loss": 9e9}, "val_loss")
    assert merit({"val_accuracy": 0.3}, "val_accuracy") > merit({"val_accuracy": 0.2}, "val_accuracy")


@pytest.mark.parametrize("family", ["early_fusion", "cnn_mamba", "s3d", "vivit"])
def test_frozen_stages_do_not_move_and_the_head_does(family: str) -> None:
    torch.manual_seed(0)
    options = {"vivit": {"scale": "micro"}}.get(family, {})
    model = build_model(family, num_classes=2, num_frames=6, size=(64, 64), **options)
    optimizer = make_optimizer(model, 0.1, 0.05)
    freeze = Freeze(model, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def moved(epoch: int) -> set[str]:
        model.train()
        freeze.before_epoch(epoch)
        model(torch.randn(2, 6, 3, 64, 64)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}

    last = list(model.stages())[-1]
    assert isinstance(last, nn.Module)
    head = {id(parameter) for parameter in last.parameters()}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in head}
    assert moved(0) and moved(0) <= names  # no running statistics either
    assert len(optimizer.state_dict()["state"]) == len(names)
    assert len(moved(1)) > len(names)


def test_what_no_weights_were_loaded_for_is_not_frozen() -> None:
    model = build_model("cnn_lstm", num_classes=2, num_frames=4, size=(48, 48))
    fresh = {name for name in model.state_dict() if name.startswith(("lstm.", "head.", "trunk.bn1."))}
    model.train()
    Freeze(model, 1, fresh).before_epoch(0)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} <= fresh
    assert all(parameter.requires_grad for parameter in model.get_submodule("lstm").parameters())
    assert model.get_submodule("trunk.bn1").training and not model.get_submodule("trunk.layer1").training


def test_what_was_fixed_before_stays_so() -> None:
    model = build_model("early_fusion", num_classes=2, num_frames=4, size=(48, 48))
    fixed = next(model.parameters()).requires_grad_(False)
    freeze = Freeze(model, 1)
    for epoch in range(2):
        freeze.before_epoch(epoch)
    assert not fixed.requires_grad and all(p.requires_grad for p in list(model.parameters())[1:])


def test_class_weights_are_balanced_or_given() -> None:
    counted = np.array([0, 0, 0, 1])
    balanced = class_weights("balanced", ("calm", "fight"), counted)
    assert balanced == [4 / 6, 2.0] and np.mean(np.array(balanced)[counted]) == 1
    assert class_weights("fight=3,calm=0.5", ("calm", "fight"), counted) == [0.5, 3.0]
    assert class_weights("a=b=3", ("a=b", "c"), counted) == [3.0, 1.0]
    assert class_weights("none", ("calm", "fight"), counted) is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("much", "--class-weights much: must be balanced, none, or such as calm=3,fight=1"),
        ("brawl=3", "--class-weights brawl=3: no such label; there are calm, fight, rest"),
        ("fight=3,fight=1", "gives fight twice"),
        ("fight=0", "--class-weights fight=0: a weight must be a number above 0"),
        ("fight=inf", "a number above 0"),
        ("fight=lots", "a number above 0"),
        ("balanced", "there are no videos of rest to train on"),
    ],
)
def test_class_weights_that_make_no_sense_are_named(asked: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        class_weights(asked, ("calm", "fight", "rest"), np.array([0, 1, 1]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sampling": "uniform", "stride": 2}, "--stride 2: not with --sampling uniform"),
        ({"repeats": 3, "batch_size": 16}, "--repeats 3: --batch-size 16 is not a multiple"),
        ({"balanced": True, "class_weights": "balanced"}, "not with --balanced"),
        ({"freeze_epochs": 3, "epochs": 2}, "--freeze-epochs 3: there are only 2 epochs"),
    ],
)
def test_options_that_contradict_each_other_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainRecipe(**given)  # type: ignore[arg-type]
