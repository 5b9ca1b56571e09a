"""A run on disk. Weights and optimiser state are safetensors, everything else JSON; nothing is ever unpickled.

run.json                what made it: settings, labels, normalisation, shard set, versions, seed
config.toml             the settings as flags, for `train run --config`
log.jsonl               a line an epoch
checkpoint.safetensors  weights, optimiser and place: what `--resume` goes on from
best.safetensors        weights with the best validation score;  last.safetensors: of the last epoch
metrics.json            the closing numbers
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.origin import Origin
from pipeline.errors import UserError
from train.component import Component
from train.parallel import divided_like, whole

RUN, LOG, METRICS = "run.json", "log.jsonl", "metrics.json"
CHECKPOINT, BEST, LAST = "checkpoint.safetensors", "best.safetensors", "last.safetensors"


def write_json(path: Path, values: Any) -> None:
    """A JSON file, whole or not at all."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    made = path.with_name(f".{path.name}.tmp")
    made.write_text(text)
    os.replace(made, path)


def read_run(run: Path) -> dict[str, Any]:
    """The run's `run.json`. Raises `UserError` where there is none."""
    try:
        values = json.loads((run / RUN).read_text())
    except FileNotFoundError:
        raise UserError(f"{run}: no run here (no {RUN}); make one with `train run --out {run}`") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{run / RUN}: cannot be read: {error}") from error
    wanted = {"model", "settings", "labels", "mean", "std", "fingerprint", "shards_digest"}
    if not isinstance(values, dict) or not wanted <= set(values) or not isinstance(values["settings"], dict):
        raise UserError(f"{run / RUN}: not a run's description")
    return values


def save_weights(path: Path, model: nn.Module, origin: Origin, *, write: bool = True) -> None:
    """The model's state as safetensors that say what they are, whole or not at all.

    To be called on all ranks; one that does not `write` only gives its part of divided weights.
    """
    tensors = whole(model.state_dict())
    if write:
        write_tensors(path, tensors, origin.as_metadata())


def load_weights(path: Path, model: nn.Module) -> None:
    """Fill the model. Raises `UserError` where the file is missing or does not fit."""
    tensors, _ = _load(path)
    try:
        _fill(model, tensors)
    except RuntimeError as error:
        raise UserError(f"{path}: does not fit the model: {error}") from error


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
    tensors, metadata = _load(path)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, key = name.rpartition("/")
        parts.setdefault(part, {})[key] = tensor
    moments = {
        int(part.removeprefix("optimizer/")): values
        for part, values in parts.items()
        if part.startswith("optimizer/")
    }
    try:
        _fill(model, parts["model"])
        _fill_optimizer(optimizer, moments)
        for component in components:
            own, saved = component.state_dict(), parts.get(f"component/{component.name}", {})
            like = {name: divided_like(tensor, own.get(name, tensor)) for name, tensor in saved.items()}
            component.load_state_dict(like)
        state: dict[str, Any] = json.loads(metadata["state"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{path}: is not a checkpoint of this run: {error}") from error
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


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; was the run stopped before its first epoch ended?") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
