"""Weights from a file into a model: other people's checkpoints and our own runs.

What did not match is reported by name. Nothing is unpickled but tensors.
"""

import argparse
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.backbones import find_backbone
from models.cnn_weights import CNN_FORMATS
from models.family import Family
from models.formats import LEFT_OUT, Format
from models.head import fit_head
from models.normalisation import IMAGENET_MEAN, IMAGENET_STD
from models.origin import OURS, Lesson, Origin, read_origin
from models.vit import name_scale
from models.vit_weights import VIT_CROSSINGS, VIT_FORMATS

FORMATS: tuple[Format, ...] = (*CNN_FORMATS, *VIT_FORMATS)
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
ACCEPTED = f"weights are files that end in {', '.join(SUFFIXES)}, or a run's folder"
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")  # {"model": {…}, "epoch": 3}
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")  # DataParallel, torch.compile, Lightning, OpenMMLab

DEEPEST = 4  # wrappers in wrappers
FEW = 4  # names in a message
LAYERS = ("trunk.", "blocks.", "layers.", "encoder.blocks.", "decoder.blocks.")  # no part of them may be left over


@dataclass(frozen=True)
class Loaded:
    """What became of a file. `matched` and `missing` are our names (these kept their fresh weights), `unexpected`
    are the file's, after conversion, that found no place; `mean`, `std`: the normalisation the weights expect;
    `learnt`: the sets that they have learnt from, of other people's weights none; `input`: see `Origin`."""

    format: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    learnt: tuple[Lesson, ...] = ()
    input: str | None = None


def load_weights(path: Path, model: Family, family: str, labels: Sequence[str] | None = None) -> Loaded:
    """Fill `model`, of the family of that name, from a file or from one of our run folders.

    Tensors of another shape are mended by the family where it can; a head that does not fit as a whole stays out,
    and so does one for other labels than `labels`, where both are known.
    Raises `ValueError` where the file cannot be read, is of no known format or of one that the family does not
    take, where nothing matches or a shape cannot be mended; then the model is as it was.
    """
    is_run, path = path.is_dir(), weights_file(path)
    state = read_state(path)
    origin = read_origin(path)
    try:
        if is_run and origin is None:
            raise ValueError("does not say what it holds; the run was made by another release")
        found, bare = (_ours(origin, family), state) if origin else choose_format(state, family, model)
        converted = found.convert(bare)
        _check_network(converted, model)
        headed = fit_head(converted, model.state_dict(), origin.labels if origin else None, labels)
        fitting, unexpected = _fit(headed, model, origin)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    model.load_state_dict(fitting, strict=False)
    missing = tuple(name for name in model.state_dict() if name not in fitting)
    told = (origin.learnt, origin.input) if origin else ()
    return Loaded(found.name, tuple(fitting), missing, tuple(unexpected), found.mean, found.std, *told)


def weights_file(path: Path) -> Path:
    """The file that `--weights` means: itself, or the best one of a run's folder. Raises `ValueError` for a folder
    without one, and for what is not there."""
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    if not path.is_dir():
        return path
    best = path / "best.safetensors"
    if not best.exists():
        raise ValueError(f"{path}: is no run with weights: it has no {best.name}; {ACCEPTED}")
    return best


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU. Raises `ValueError` where it holds none."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: {ACCEPTED}")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            _check_zip(path)
            with torch.serialization.safe_globals(
                [argparse.Namespace]
            ):  # of strings and numbers, in VideoMAE's files
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler stumbles over a stranger's bytes in any way
        raise ValueError(f"{path}: cannot be read as weights: {_reason(error)}") from error
    for _ in range(DEEPEST):  # a pickled dict may hold itself
        if not isinstance(content, Mapping):
            break
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    tensors = content.items() if isinstance(content, Mapping) else ()
    state = {name: value for name, value in tensors if isinstance(name, str) and isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{path}: holds no tensors by name")
    _check_sizes(path, state)
    return state


def _check_sizes(path: Path, state: dict[str, Tensor]) -> None:
    """Raises `ValueError` for a tensor of more numbers than the file has: strides of zero make one as large as one
    likes, and whoever copies it needs that memory."""
    room = path.stat().st_size
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.numel() * tensor.element_size() > room:
            raise ValueError(f"{path}: {name[:80]} of shape {list(tensor.shape)} is more than the file holds")


def _check_zip(path: Path) -> None:
    """Raises `ValueError` where torch's zip holds more than its own length: unpacked, it would fill the memory."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as file:
        entries = file.infolist()
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("its parts promise more bytes than the file has")


def _reason(error: Exception) -> str:
    """One plain line: torch's are pages with colours, about how to unpickle what it has refused."""
    text = str(error)
    refused = re.search(r"GLOBAL (\S+) was not an allowed", text)
    if refused:
        return (
            f"it holds a {refused[1]}, and only tensors and plain values are unpickled; save its state_dict alone"
        )
    cause = text.partition("WeightsUnpickler error: ")[2] or text
    return re.sub(r"\x1b\[\d*m", "", cause.strip().partition("\n")[0]) or type(error).__name__


def accepted_formats(family: str) -> list[str]:
    """Names of the formats that a family can start from, besides our own runs."""
    return [form.name for form in FORMATS if family in form.families]


def choose_format(state: dict[str, Tensor], family: str, model: Family) -> tuple[Format, dict[str, Tensor]]:
    """The format that knows these names, and the tensors without the prefix that hid them from it; ours where they
    are simply the model's names. Raises `ValueError` where no format is found or the family does not take it.
    """
    bare = state
    while not (known := [form for form in FORMATS if form.recognises(set(bare))]):
        prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in bare)), None)
        if prefix is None:
            break
        bare = {name.removeprefix(prefix): tensor for name, tensor in bare.items()}
    for form in known:
        if family in form.families:
            return form, bare
    if known:
        takers = ", ".join(known[0].families)
        raise ValueError(f"{known[0].name} weights are not for {family}; they fit {takers}")
    if any(name in bare for name in model.state_dict()):
        return _ours(None, family), bare
    raise ValueError(f"nothing in it is known to {family}; it holds {', '.join(state)}")


def _ours(origin: Origin | None, family: str) -> Format:
    """Our own names; without an origin, as of a model that somebody else saved, with ImageNet's normalisation."""
    if origin is None:
        return Format(OURS, lambda _: True, dict, (), IMAGENET_MEAN, IMAGENET_STD)
    convert = VIT_CROSSINGS.get((origin.family, family), dict)
    return Format(f"{OURS} {origin.family}", lambda _: True, convert, (), origin.mean, origin.std)


def _check_network(state: dict[str, Tensor], model: Family) -> None:
    """Raises `ValueError` where the tensors are of another backbone, scale or more layers than the model's."""
    ours = model.state_dict()
    own, theirs = find_backbone(ours), find_backbone(state)
    if own and theirs and own != theirs:
        raise ValueError(f"it holds a {theirs}, the model a {own}; choose the option backbone={theirs}")
    own, theirs = name_scale(ours), name_scale(state)
    if own and theirs and own != theirs:
        raise ValueError(f"it holds a {theirs} transformer, the model is {own}; choose the option scale={theirs}")
    parts = [part for part in LAYERS if any(name.startswith(part) for name in ours)]
    lost = [name for name in state if name not in ours and name.startswith(tuple(parts))]
    if lost:
        raise ValueError(
            f"{len(lost)} tensors have no place in this model, of another size or kind, such as {lost[0]}"
        )


def _fit(state: dict[str, Tensor], model: Family, origin: Origin | None) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors in our shapes, and the names that found no place. Raises `ValueError`."""
    ours = model.state_dict()
    fitting: dict[str, Tensor] = {}
    unexpected: list[str] = []
    broken: list[str] = []
    moved = origin is not None and origin.grid not in (None, model.grid)
    for name, tensor in state.items():
        if name not in ours:
            unexpected.append(name.removeprefix(LEFT_OUT))
            continue
        fits = tensor.shape == ours[name].shape and not (moved and name.endswith("pos_embed"))
        fitted = tensor if fits else model.mend(name, tensor, origin)
        if fitted is not None and fitted.shape == ours[name].shape:
            fitting[name] = fitted
        else:
            broken.append(f"{name} {list(tensor.shape)} for {list(ours[name].shape)}")
    if broken:
        raise ValueError(f"{len(broken)} tensors are of another shape: {', '.join(broken)}")
    if not fitting:
        names = list(state)
        more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
        of = f"; it is of {origin.family}" if origin else ""
        raise ValueError(f"nothing matched{of}; it holds {', '.join(names[:FEW])}{more}")
    return fitting, unexpected
