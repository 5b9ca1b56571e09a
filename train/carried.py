"""What a run carries along, as its settings ask."""

from models.family import Family
from pipeline.errors import UserError
from train.component import Component
from train.ema import Ema
from train.freeze import Freeze
from train.patience import Patience
from train.run_settings import RunSettings


def make_components(settings: RunSettings, model: Family, metric: str, *, judged: bool) -> list[Component]:
    """`metric`: the value in the log's line that patience watches; `judged`: whether there is one. Raises
    `UserError` for what cannot be."""
    recipe = settings.recipe
    found: list[Component] = []
    if recipe.freeze_epochs:
        if settings.weights is None:
            raise UserError(
                f"--freeze-epochs {recipe.freeze_epochs}: without --weights there is nothing learnt to keep"
            )
        found.append(Freeze(model, recipe.freeze_epochs))
    if recipe.ema:
        found.append(Ema(model, recipe.ema))
    if recipe.patience:
        if not judged:
            raise UserError(f"--patience {recipe.patience}: the set has no split 'val' to judge an epoch by")
        found.append(Patience(metric, recipe.patience))
    return found
