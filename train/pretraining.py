"""Training without labels: most of a clip is hidden, and the model paints it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method

from models.family import Family
from models.videomae import VideoMAEPretraining
from pipeline.errors import WorkFailed
from pipeline.shards.index import SplitIndex
from train.augment import Draws, augment, draw_augmentation
from train.clips import Clips, evaluation_clips
from train.component import Component
from train.compute import make_pretraining
from train.evaluate import spread
from train.folds import train_and_val
from train.inputs import INPUTS, make_input, pixel_constants, to_clips
from train.objective import Objective
from train.recipes import PretrainRecipe
from train.reconstructions import Reconstructions, draw_reconstructions
from train.stream import ClipStream

PICTURES = "pictures"  # in a run's folder


@dataclass(frozen=True)
class MaskedDraws:
    """How each clip is changed, and which of its tokens are hidden: bool [B, N]."""

    augment: Draws
    mask: Tensor

    def __getitem__(self, part: slice) -> "MaskedDraws":
        return MaskedDraws(self.augment[part], self.mask[part])


class MaskedPretraining(Objective):
    """The hidden pixels of clips, of whatever labels. The best weights are the last: the loss on val
    does not say what they give to a classifier."""

    learns_labels = False

    def splits(self) -> tuple[SplitIndex, SplitIndex | None]:
        """Train and val, or what the fold makes of them."""
        return train_and_val(self.shard_set, self.settings.fold, self.settings.leave_out)

    def build(self) -> Family:
        """The network, for the size of the set's frames."""
        frames, recipe = self.shard_set.recipe, self.recipe
        assert isinstance(recipe, PretrainRecipe)
        mean, std = pixel_constants(recipe.input, self.mean, self.std)
        network = make_pretraining(
            self.settings.model,
            num_frames=recipe.frames,
            size=(frames.width, frames.height),
            in_channels=INPUTS[recipe.input],
            mask_ratio=recipe.mask_ratio,
            mean=mean,
            std=std,
            **self.settings.options,
        )
        assert isinstance(network, VideoMAEPretraining)
        self.network = network
        return network

    def normalise_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """The network is told, too: it paints pixels."""
        super().normalise_by(mean, std)
        for name, values in zip(("mean", "std"), pixel_constants(self.recipe.input, mean, std), strict=True):
            constant = self.network.get_buffer(name)
            constant.copy_(torch.tensor(values).view_as(constant))

    def draw(self, count: int, size: tuple[int, int], rng: np.random.Generator) -> MaskedDraws:
        """Augmentation, then masks."""
        draws = draw_augmentation(self.recipe, count, size, rng)
        return MaskedDraws(draws, self.masks(count, int(rng.integers(2**63))))

    def masks(self, count: int, seed: int) -> Tensor:
        """Masks [count, N], the same on every device."""
        return self.network.tube_mask(count, torch.Generator().manual_seed(seed))

    def losses(self, model: nn.Module, frames: Tensor, labels: Tensor, drawn: MaskedDraws) -> dict[str, Tensor]:  # noqa: ARG002
        """The squared error of normalised pixels."""
        clips = make_input(augment(frames, drawn.augment, self.mean, self.std), self.recipe.input)
        with self.compute.autocast():
            return {"loss": model(clips, drawn.mask)}

    def clips_of(self, frames: Tensor) -> Tensor:
        """Stored frames uint8 [B, T, H, W, 3] → the model's input, as they are."""
        return make_input(to_clips(frames.to(self.compute.device), self.mean, self.std), self.recipe.input)

    def validate(self, model: nn.Module, stream: ClipStream) -> dict[str, float]:
        """The loss of one clip a video, each time behind the same masks."""
        model.eval()
        clips = evaluation_clips(stream.index.frames, stream.sampling, 1)
        own, fresh = spread(len(clips), self.compute.ranks)
        total, done = 0.0, 0
        with torch.inference_mode(), self.compute.autocast():
            for batch in stream.batches(Clips(clips.sample[own], clips.start[own])):
                part = slice(done, done := done + len(batch.frames))
                mask = torch.cat([self.masks(1, seed=int(place)) for place in own[part]])
                losses = model(self.clips_of(batch.frames), mask).double().cpu()
                total += losses[torch.from_numpy(fresh[part])].sum().item()
        loss = self.compute.ranks.sum(torch.tensor([total], dtype=torch.float64)).item() / len(clips)
        if not np.isfinite(loss):
            raise WorkFailed(
                f"the loss on val became {loss}; try a lower --lr, a longer --warmup or --precision fp32"
            )
        return {"val_loss": loss}

    def close(self, model: nn.Module, stream: ClipStream | None) -> dict[str, Any]:
        """The loss on what is held out."""
        return {"val": None if stream is None else {"loss": self.validate(model, stream)["val_loss"]}}

    def components(self, out: Path, open_stream: Callable[[], ClipStream]) -> list[Component]:
        """Pictures now and then."""
        recipe = self.recipe
        assert isinstance(recipe, PretrainRecipe)
        if not recipe.pictures_every:
            return []
        register_fsdp_forward_method(self.network, "reconstruct")  # it calls for weights, too
        # All ranks paint, as they may share the weights; the first one writes.
        folder = out / PICTURES if self.compute.ranks.first else None
        every, epochs = recipe.pictures_every, recipe.epochs
        return [Reconstructions(self.picture, open_stream, folder, every=every, epochs=epochs)]

    def picture(self, frames: Tensor) -> NDArray[np.uint8]:
        """Clips, uint8 [n, T, H, W, 3], as they are, as the model sees and as it paints them: a picture."""
        self.network.eval()
        with torch.inference_mode(), self.compute.autocast():
            return draw_reconstructions(self.network, self.clips_of(frames), self.masks(len(frames), seed=0))
