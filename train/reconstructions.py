"""What masked pre-training paints, as pictures in the run's folder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.videomae import VideoMAEPretraining
from models.vit import join_tubelets, split_tubelets
from train.clips import Clips, evaluation_clips
from train.component import Component
from train.stream import ClipStream

CLIPS, FRAMES = 3, 6  # of a picture
HIDDEN = 0.5  # grey
GAP = 4  # px between clips


class Reconstructions(Component):
    """A picture of the same few clips every `every` epochs and after the last one, as PNG.

    `paint`: uint8 frames [n, T, H, W, 3] to a picture. `open_stream`: where the clips are from. `folder`: None
    where only others write.
    """

    name = "reconstructions"

    def __init__(
        self,
        paint: Callable[[Tensor], NDArray[np.uint8]],
        open_stream: Callable[[], ClipStream],
        folder: Path | None,
        *,
        every: int,
        epochs: int,
    ) -> None:
        self._paint, self._open_stream, self._folder = paint, open_stream, folder
        self._every, self._epochs = every, epochs
        self._frames: Tensor | None = None  # once they are read

    def after_epoch(self, line: Mapping[str, Any]) -> bool:
        """Draw, if it is time."""
        epoch = line["epoch"]
        if epoch % self._every == 0 or epoch == self._epochs:
            if self._frames is None:
                self._frames = _read_clips(self._open_stream)
            _, png = cv2.imencode(".png", self._paint(self._frames)[..., ::-1])
            if self._folder is not None:
                self._folder.mkdir(exist_ok=True)
                (self._folder / f"epoch-{epoch:05d}.png").write_bytes(png.tobytes())
        return False


def draw_reconstructions(network: VideoMAEPretraining, clips: Tensor, mask: Tensor) -> NDArray[np.uint8]:
    """Clips as the network takes them and a mask [n, N] → a picture [rows, columns, 3] of some frames of each: a
    row as it is, one as the network sees it, one as it paints it."""
    tubelets = split_tubelets(clips, network.tubelet)
    pixels = tubelets * network.get_buffer("std") + network.get_buffer("mean")
    masked = torch.where(mask.view(*mask.shape, 1, 1, 1, 1), HIDDEN, pixels)
    kinds = [join_tubelets(seen, network.grid) for seen in (pixels, masked)]
    kinds.append(network.reconstruct(clips, mask))
    shown = np.unique(np.linspace(0, clips.shape[1] - 1, FRAMES).round().astype(int))
    strips = torch.stack(kinds, 1)[:, :, shown, :3].float().clamp(0, 1)  # [n, kinds, frames, RGB, H, W]
    n, rows, columns, _, height, width = strips.shape
    sheets = strips.permute(0, 1, 4, 2, 5, 3).reshape(n, rows * height, columns * width, 3)
    pages = (sheets * 255).round().byte().cpu().numpy()
    return np.concatenate([np.pad(page, ((0, GAP), (0, 0), (0, 0)), constant_values=255) for page in pages])


def _read_clips(open_stream: Callable[[], ClipStream]) -> Tensor:
    """The middle clips of some samples, spread over all of them: uint8 [n, T, H, W, 3]."""
    with open_stream() as stream:
        lengths = stream.index.frames
        places = np.unique(np.linspace(0, len(lengths) - 1, CLIPS).round().astype(np.int64))
        starts = evaluation_clips(lengths[places], stream.sampling, 1).start
        batches = stream.batches(Clips(places, starts))
        return torch.cat([batch.frames.cpu().clone() for batch in batches])
