"""A run made ready for use: its model with the weights, and how the model's input is made."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import PRETRAINING
from models.family import Family
from pipeline.errors import UserError
from pipeline.recipe import Recipe
from train.checkpoint import RUN, check_shapes, load_weights, read_run
from train.clips import Sampling
from train.compute import Compute, make_model
from train.inputs import INPUTS, make_input, to_clips

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A run's model, and what its clips are: frames of `recipe` by `sampling`, normalised by `mean` and `std`.

    `kind`: one of INPUTS, what of a clip the model is shown; `about` is the run's description as it stands.
    """

    model: Family
    labels: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sampling: Sampling
    recipe: Recipe
    kind: str
    about: Mapping[str, Any]

    @property
    def window(self) -> int:
        """How many stored frames a clip reaches over; with uniform sampling, over as many as the samples that were
        trained on have (their median)."""
        return int(self.about["sample_frames"]) if self.sampling.kind == "uniform" else self.sampling.span

    def probabilities(self, frames: Tensor, compute: Compute) -> Tensor:
        """Stored frames uint8 [B, T, H, W, 3] → float64 [B, K] on the CPU, the numbers of `train eval`."""
        with torch.inference_mode():
            clips = to_clips(frames.to(compute.device), self.mean, self.std)
            return compute.logits(self.model, make_input(clips, self.kind)).softmax(1).double().cpu()


def load_trained(run: Path, weights: str, compute: Compute) -> Trained:
    """The run with its weights (`best` or `last`), on the device and in evaluation mode. Raises `UserError`."""
    about = read_run(run)
    refuse_pretraining(run, about)
    settings = about["settings"]
    for name, where in (("frames", settings), ("frames_recipe", about)):
        if name not in where:
            raise UserError(f"{run / RUN}: lacks {name}; the run was made by another release")
    kind = settings.get("input", "rgb")
    if not isinstance(kind, str) or kind not in INPUTS:
        raise UserError(
            f"{run / RUN}: input {kind!r} is none of {', '.join(INPUTS)}; the run is of another release"
        )
    try:
        recipe = Recipe.from_dict(about["frames_recipe"])
    except UserError as error:
        raise UserError(f"{run / RUN}: its frames_recipe: {error}") from error
    try:
        sampling = Sampling(settings["frames"], settings.get("sampling", "window"), settings.get("stride", 1))
    except (ValueError, TypeError) as error:
        raise UserError(f"{run / RUN}: {error}; the run is of another release") from error
    make = partial(
        make_model,
        about["model"],
        **{
            **(settings.get("options") or {}),
            "num_classes": len(about["labels"]),
            "num_frames": settings["frames"],
            "size": (recipe.width, recipe.height),
            "in_channels": INPUTS[kind],
        },
    )
    file = run / f"{weights}.safetensors"
    check_shapes(file, make, settings.get("options") or {})
    model = make()
    load_weights(file, model)
    LOG.info("%s: %s", file, about["model"])
    return Trained(
        model=compute.prepare(model).eval(),
        labels=tuple(about["labels"]),
        mean=tuple(about["mean"]),
        std=tuple(about["std"]),
        sampling=sampling,
        recipe=recipe,
        kind=kind,
        about=about,
    )


def refuse_pretraining(run: Path, about: Mapping[str, Any]) -> None:
    """Raises `UserError` where the run's model knows no labels."""
    if about["model"] in PRETRAINING:
        family = about["model"].removesuffix("_pretraining")
        way = f"`train run --model {family} --weights {run}`"
        raise UserError(f"{run}: learnt without labels; make a classifier of it with {way}")
