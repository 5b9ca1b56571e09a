"""Formats of other people's CNN and Mamba checkpoints."""

import re
from dataclasses import replace

from torch import Tensor

from models.formats import Format
from models.normalisation import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    KINETICS_MEAN,
    KINETICS_STD,
    LITE_MEAN,
    LITE_STD,
)

PICTURE_FAMILIES = ("single_frame", "late_fusion", "early_fusion", "cnn_lstm", "cnn_mamba")


def _to_trunk(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Below `trunk.`; their classifier (`fc`, `classifier`) keeps its name, and so finds no place."""
    return {k if k.startswith(("fc.", "classifier.")) else f"trunk.{k}": v for k, v in state.items()}


def _to_lite(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the underscores that they all begin with; `_fc` is their classifier."""
    plain = {re.sub(r"(^|\.)_", r"\1", name): tensor for name, tensor in state.items()}
    return _to_trunk(plain)


def _to_layers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A single block becomes the first layer's mixer; a stack keeps its numbers."""
    if "A_log" in state:
        return {f"layers.0.mixer.{name}": tensor for name, tensor in state.items()}
    return {re.sub(r"^.*?(layers\.\d+\.|norm_f\.)", r"\1", name): tensor for name, tensor in state.items()}


def _is_mamba(keys: set[str]) -> bool:
    """A block or a stack of them; not VideoMamba's, whose blocks look both ways, and not a run of ours."""
    others = any("A_b_log" in key or key.startswith("trunk.") for key in keys)
    return not others and any(re.search(r"(^|mixer\.)A_log$", key) for key in keys)


RESNET = Format(
    name="torchvision ResNet",
    recognises=lambda keys: {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight"} <= keys,
    convert=_to_trunk,
    families=PICTURE_FAMILIES,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)
CNN_FORMATS: tuple[Format, ...] = (
    RESNET,
    replace(
        RESNET,
        name="torchvision VGG with batch norm",
        recognises=lambda keys: {"features.0.weight", "features.1.running_mean"} <= keys,
    ),
    Format(
        name="efficientnet-lite-pytorch",
        recognises=lambda keys: {"_conv_stem.weight", "_blocks.1._expand_conv.weight"} <= keys,
        convert=_to_lite,
        families=PICTURE_FAMILIES,
        mean=LITE_MEAN,
        std=LITE_STD,
    ),
    Format(
        name="torchvision S3D",
        recognises=lambda keys: {"features.0.0.0.weight", "features.5.branch0.0.weight"} <= keys,
        convert=_to_trunk,
        families=("s3d",),
        mean=KINETICS_MEAN,
        std=KINETICS_STD,
    ),
    Format(
        name="mamba-ssm",
        recognises=_is_mamba,
        convert=_to_layers,
        families=("cnn_mamba",),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
)
