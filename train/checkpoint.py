"""A run on disk. Weights and optimiser state are safetensors, everything else JSON; nothing is ever unpickled.

run.json                what made it: settings, labels, normalisation, shard set, versions, seed
config.toml             the settings as flags, for `--config`
log.jsonl               a line an epoch
manifest.safetensors    which videos it learns, as digests (train/manifest.py)
checkpoint.safetensors  weights, optimiser and place: what `--resume` goes on from
best.safetensors        weights with the best validation score;  last.safetensors: of the last epoch
metrics.json            the closing numbers
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.origin import Origin
from pipeline.errors import UserError
from pipeline.foreign import MOST_JSON, open_plain, parse_json, read_text
from pipeline.recipe import RECIPE_FILE
from train.component import Component
from train.parallel import divided_like, whole
from train.recipes import MOST_FRAMES

RUN, LOG, METRICS = "run.json", "log.jsonl", "metrics.json"
CHECKPOINT, BEST, LAST = "checkpoint.safetensors", "best.safetensors", "last.safetensors"


def write_json(path: Path, values: Any) -> None:
    """A JSON file, whole or not at all."""
    write_text(path, _json_text(values))


def write_new_json(path: Path, values: Any) -> None:
    """A JSON file where none is. Raises `FileExistsError`, also to one of two who write it at the same time."""
    with path.open("x") as file:
        file.write(_json_text(values))


def _json_text(values: Any) -> str:
    return json.dumps(values, indent=2) + "\n"


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    made = path.with_name(f".{path.name}.tmp")
    made.write_text(text)
    os.replace(made, path)


def read_run(run: Path) -> dict[str, Any]:
    """The run's `run.json`. Raises `UserError` where there is none."""
    try:
        values = parse_json(read_text(run / RUN, MOST_JSON))
    except FileNotFoundError:
        if (run / RECIPE_FILE).exists():
            raise UserError(f"{run}: is a shard set, no run; give a run, and the set with --shards") from None
        raise UserError(f"{run}: no run here (no {RUN}); make one with `train run --out {run}`") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{run / RUN}: cannot be read: {error}") from error
    wanted = {"model", "settings", "labels", "mean", "std", "fingerprint", "shards_digest"}
    if not isinstance(values, dict) or not wanted <= set(values) or not isinstance(values["settings"], dict):
        raise UserError(f"{run / RUN}: not a run's description")
    _check_run(run / RUN, values)
    return values


def _check_run(file: Path, values: dict[str, Any]) -> None:
    """Raises `UserError` for a field that is of another kind than a run writes."""
    labels, frames = values["labels"], values["settings"].get("frames")
    if not (isinstance(labels, list) and labels and all(isinstance(label, str) for label in labels)):
        raise UserError(f"{file}: labels is no list of names")
    for name in ("mean", "std"):
        numbers = values[name]
        if not (isinstance(numbers, list) and len(numbers) == 3 and all(_is_finite(number) for number in numbers)):
            raise UserError(f"{file}: {name} is {str(numbers)[:80]}, not three numbers")
    if frames is not None and not (type(frames) is int and 1 <= frames <= MOST_FRAMES):
        raise UserError(f"{file}: frames is {str(frames)[:80]}, not a number from 1 to {MOST_FRAMES}")
    for name in ("model", "fingerprint", "shards_digest"):
        if not isinstance(values[name], str):
            raise UserError(f"{file}: {name} is {str(values[name])[:80]}, no text")
    for name, where in (("options", values["settings"]), ("frames_recipe", values), ("started_from", values)):
        if not isinstance(where.get(name) or {}, dict):
            raise UserError(f"{file}: {name} is no object")


def _is_finite(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)


def save_weights(path: Path, model: nn.Module, origin: Origin, *, write: bool = True) -> None:
    """The model's state as safetensors that say what they are, whole or not at all.

    To be called on all ranks; one that does not `write` only gives its part of divided weights.
    """
    tensors = whole(model.state_dict())
    if write:
        write_tensors(path, tensors, origin.as_metadata())


def check_shapes(path: Path, make: Callable[[], nn.Module], options: Mapping[str, Any]) -> None:
    """Whether a weights file can fill the model that `make` makes with `options`, by the shapes that both say: no
    memory is needed for a model that the file does not hold. Raises `UserError`."""
    try:
        open_plain(path).close()
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; was the run stopped before its first epoch ended?") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    for name, value in options.items():
        if type(value) is int and value > len(shapes):  # such as a depth
            raise UserError(f"{path}: has {len(shapes)} tensors, too few for {name} {value} of {RUN}")
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in make().state_dict().items()}
    if wrong := [name for name in {**wanted, **shapes} if wanted.get(name) != shapes.get(name)]:
        name = wrong[0]
        raise UserError(
            f"{path}: does not fit the model of {RUN}: {len(wrong)} tensors differ, the first is {name[:80]}, "
            f"{shapes.get(name, 'missing')} in the file, {wanted.get(name, 'none')} in the model"
        )


def load_weights(path: Path, model: nn.Module) -> None:
    """Fill the model. Raises `UserError` where the file is missing or does not fit."""
    tensors, _ = read_tensors(path)
    try:
        _fill(model, tensors)
    except RuntimeError as error:
        raise UserError(f"{path}: does not fit the model: {_short(error)}") from error


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    components: Sequence[Component],
    state: Mapping[str, Any],
    *,
    write: bool = True,
) -> None:
    """All that a run needs to go on, in one file, so that it can be replaced at one stroke. `write`: as above."""
    tensors = _under("model", model.state_dict())
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= _under(f"optimizer/{number}", values)
    for component in components:
        tensors |= _under(f"component/{component.name}", component.state_dict())
    tensors = whole(tensors)
    if write:
        write_tensors(path, tensors, {"state": json.dumps(state)})


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, components: Sequence[Component]
) -> dict[str, Any]:
    """Fill model, optimiser and components; returns the state. Raises `UserError`."""
    tensors, metadata = read_tensors(path)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, key = name.rpartition("/")
        parts.setdefault(part, {})[key] = tensor
    try:
        moments = {
            int(part.removeprefix("optimizer/")): values
            for part, values in parts.items()
            if part.startswith("optimizer/")
        }
        _fill(model, parts["model"])
        _fill_optimizer(optimizer, moments)
        for component in components:
            own, saved = component.state_dict(), parts.get(f"component/{component.name}", {})
            like = {name: divided_like(tensor, own.get(name, tensor)) for name, tensor in saved.items()}
            component.load_state_dict(like)
        state: dict[str, Any] = parse_json(metadata["state"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is not a checkpoint of this run: {_short(error)}") from error
    return state


def _fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own = model.state_dict()
    fitting = {
        n: divided_like(t, own[n]) if n in own and t.shape == own[n].shape else t for n, t in tensors.items()
    }
    model.load_state_dict(fitting)


def _fill_optimizer(optimizer: torch.optim.Optimizer, moments: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Give the optimiser its state; what has the shape of its parameter gets the layout of it, too."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if others := moments.keys() - set(range(len(parameters))):
        raise ValueError(f"moments of parameter {min(others)}, and there are {len(parameters)}")
    state = {
        number: {
            name: divided_like(tensor, parameters[number]) if tensor.shape == parameters[number].shape else tensor
            for name, tensor in values.items()
        }
        for number, values in moments.items()
    }
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _under(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}/{name}": tensor for name, tensor in tensors.items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file, whole or not at all."""
    made = path.with_name(f".{path.name}.tmp")
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, made, metadata)
    with made.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(made, path)


def _short(error: Exception) -> str:
    """One line: torch's are pages."""
    return " ".join(str(error).split())[:300]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and its metadata. Raises `UserError`."""
    try:
        open_plain(path).close()
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; was the run stopped before its first epoch ended?") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
