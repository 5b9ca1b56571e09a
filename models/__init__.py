"""Model families: `[B, T, C, H, W]` float clips to `[B, classes]` logits. torch only; no data, no training.

Adding a family: one file here, one line in MODELS.
"""

from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # whoever asks for names alone, such as shell completion, does not wait for torch
    from torch import nn

    from models.family import Family

# name -> class, imported on first use
MODELS = {
    "single_frame": "models.single_frame:SingleFrame",
    "late_fusion": "models.late_fusion:LateFusion",
    "early_fusion": "models.early_fusion:EarlyFusion",
    "cnn_lstm": "models.cnn_lstm:CnnLstm",
    "cnn_mamba": "models.cnn_mamba:CnnMamba",
    "s3d": "models.s3d:S3D",
    "vivit": "models.vivit:ViViT",
    "videomae": "models.videomae:VideoMAE",
}
# Networks that learn without labels, and start the family of the same file
PRETRAINING = {"videomae_pretraining": "models.videomae:VideoMAEPretraining"}
SHARED = ("in_channels", "dropout", "mask_ratio", "mean", "std")  # options that flags of their own choose
KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a word"}


def build_model(
    name: str, *, num_classes: int, num_frames: int, size: tuple[int, int], **options: Any
) -> "Family":
    """The family's network with fresh weights.

    `size`: (width, height) of a frame in pixels. Raises `ValueError` for a name that is not in MODELS, and for
    an option, a kind of option or an input that the family does not take.
    """
    if name not in MODELS:
        raise ValueError(f"no model family is called {name!r}; there are {', '.join(MODELS)}")
    given = {"num_classes": num_classes, "num_frames": num_frames, "size": size}
    return _build(name, MODELS[name], given, options)


def build_pretraining(name: str, *, num_frames: int, size: tuple[int, int], **options: Any) -> "Family":
    """A network of PRETRAINING with fresh weights; it maps clips to the loss of each. See `build_model`."""
    if name not in PRETRAINING:
        raise ValueError(f"no pre-training is called {name!r}; there are {', '.join(PRETRAINING)}")
    return _build(name, PRETRAINING[name], {"num_frames": num_frames, "size": size}, options)


def _build(name: str, place: str, given: dict[str, Any], options: dict[str, Any]) -> "Family":
    module, _, cls = place.partition(":")
    family = getattr(import_module(module), cls)
    _check_options(name, options, {p.name: p.default for p in signature(family).parameters.values()})
    model: Family = family(**given, **options)
    return model


def takes(name: str, option: str) -> bool:
    """Whether the family in MODELS has an option of that name."""
    module, _, cls = MODELS[name].partition(":")
    return option in signature(getattr(import_module(module), cls)).parameters


def _check_options(name: str, options: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Raises `ValueError` for an option that the family has not, or of another kind than its default."""
    known = [option for option in defaults if option not in ("num_classes", "num_frames", "size")]
    for option, value in options.items():
        if option not in known:
            own = [option for option in known if option not in SHARED]
            near = get_close_matches(option, own, 1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(own) or 'none'}"
            raise ValueError(f"option {option}={value}: {name} has no option {option!r}; {hint}")
        kind = type(defaults[option])
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ValueError(
                f"{name}: option {option} is {KINDS[kind]}, such as {defaults[option]!r}; got {value!r}"
            )


def count_parameters(model: "nn.Module") -> int:
    """How many numbers the model learns."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
