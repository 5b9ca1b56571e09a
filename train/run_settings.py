"""What `train run` was asked for: saved with the run, enough to repeat it."""

from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.errors import UserError
from train.recipes import TrainRecipe


@dataclass(frozen=True)
class RunSettings:
    """What `train run` was asked for; saved in the run and enough to repeat it."""

    model: str
    shards: str
    recipe: TrainRecipe
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    weights: str | None = None  # what the model starts from, where not from nothing
    options: dict[str, Any] = field(default_factory=dict)  # the family's own
    fold: str | None = None  # k/K: held out of train and val together, instead of val
    leave_out: list[str] = field(default_factory=list)  # videos that are not trained on
    compile: bool = False
    fsdp: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Flat, as `run.json` has it."""
        values = asdict(self)
        recipe = values.pop("recipe")
        return {**values, **recipe}

    @classmethod
    def from_dict(cls, values: dict[str, Any], kind: type[TrainRecipe] = TrainRecipe) -> "RunSettings":
        """The reverse of `as_dict`, with a recipe of that kind. Raises `UserError` where a setting is missing."""
        wanted = {*kind.__dataclass_fields__, *cls.__dataclass_fields__} - {"recipe"}
        missing = sorted(wanted - set(values))
        if missing:
            raise UserError(f"run.json: its settings lack {missing[0]}; the run was made by another release")
        recipe = {name: values[name] for name in kind.__dataclass_fields__}
        rest = {name: values[name] for name in cls.__dataclass_fields__ if name != "recipe"}
        return cls(**rest, recipe=kind(**recipe))
