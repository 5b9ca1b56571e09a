"""What a run carries along beside model and optimiser, as its settings ask."""

from collections.abc import Collection

from models.family import Family
from pipeline.errors import UserError
from train.component import Component
from train.ema import Ema
from train.freeze import Freeze
from train.patience import Patience
from train.run_settings import RunSettings


def check_carried(settings: RunSettings, *, judged: bool) -> None:
    """`judged`: whether there is a val split. Raises `UserError` for what makes no sense."""
    recipe = settings.recipe
    if recipe.freeze_epochs and settings.weights is None:
        raise UserError(
            f"--freeze-epochs {recipe.freeze_epochs}: without --weights there is nothing learnt to keep"
        )
    if recipe.patience and not judged:
        raise UserError(f"--patience {recipe.patience}: the set has no split 'val' to judge an epoch by")


def carried(settings: RunSettings, model: Family, metric: str, fresh: Collection[str]) -> list[Component]:
    """`metric`: the value in the log's line that patience watches; `fresh`: what no weights were loaded for."""
    recipe = settings.recipe
    found: list[Component] = []
    if recipe.freeze_epochs:
        found.append(Freeze(model, recipe.freeze_epochs, fresh))
    if recipe.ema:
        found.append(Ema(model, recipe.ema))
    if recipe.patience:
        found.append(Patience(metric, recipe.patience))
    return found
