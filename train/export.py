"""A trained model for people without this project: frames as they are stored in, probabilities out.

Normalisation and softmax are inside; what cannot be (rate, size, labels …) stands beside the model in the file, as
JSON under the name METADATA. A file is kept only if it says what the run says.
"""

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from models.family import Family
from pipeline.commands import check_files
from pipeline.errors import UserError, WorkFailed
from pipeline.places import as_place
from pipeline.shards.cache import cache_for
from pipeline.shards.index import read_set
from train.clips import Clips, evaluation_clips
from train.compute import Compute
from train.evaluate import index_for
from train.stream import ClipStream
from train.trained import Trained, load_trained

METADATA = "reelcache.json"
TOLERANCE = 1e-4  # that a probability may differ by from the run's
Model = Callable[[Tensor], Tensor]  # frames uint8 [B, T, H, W, 3] → probabilities [B, K]


class Deployed(nn.Module):
    """The whole way from stored frames uint8 [B, T, H, W, 3] to probabilities [B, K]."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: Family, mean: tuple[float, ...], std: tuple[float, ...], kind: str) -> None:
        super().__init__()
        self.model = model
        self.kind = kind
        deviation = torch.tensor(std)
        self.register_buffer("scale", 1 / (255 * deviation))
        self.register_buffer("shift", torch.tensor(mean) / deviation)

    def forward(self, frames: Tensor) -> Tensor:
        """`to_clips` and `make_input` without writing in place: a batch of any size can be traced through it."""
        clips = (frames * self.scale - self.shift).permute(0, 1, 4, 2, 3)  # [B, T, C, H, W]
        if self.kind != "rgb":
            change = clips[:, 1:] - clips[:, :-1]
            first = change[:, :1] if frames.shape[1] > 1 else torch.zeros_like(clips)
            change = torch.cat([first, change], 1)
            clips = change if self.kind == "diff" else torch.cat([clips, change], 2)
        probabilities: Tensor = self.model(clips).float().softmax(1)
        return probabilities


@dataclass(frozen=True)
class Target:
    """A kind of file: `write` makes it of a traced program and its metadata, `read` gives what it computes."""

    suffix: str
    packages: tuple[str, ...]
    write: Callable[[ExportedProgram, str, Path], None]
    read: Callable[[Path], Model]


def export_run(
    run: Path, to: str, out: Path | None, *, weights: str, clips: int, overwrite: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """Write the run's model as `to` (one of TARGETS), checked on `clips` clips against the run itself.

    Returns the metadata with the parity's figures. Raises `UserError`; `WorkFailed`, and no file, where a
    probability differs by more than TOLERANCE.
    """
    target = TARGETS[to]
    missing = [name for name in target.packages if find_spec(name) is None]
    if missing:
        raise UserError(
            f"--to {to}: needs {', '.join(missing)}; install them with pip install 'reelcache[export]'"
        )
    out = out or run / f"model{target.suffix}"
    check_files({"--out": out}, overwrite=overwrite, suffixes={"--out": target.suffix})
    compute = Compute(torch.device("cpu"), bf16=False)
    trained = load_trained(run, weights, compute)
    frames, kind = _parity_clips(trained, clips, say)
    about = _metadata(trained, weights)
    made = out.with_name(f".{out.name}.tmp")
    try:
        with _quiet():
            target.write(_trace(trained), json.dumps(about), made)
            differs = _difference(target.read(made), trained, frames, compute)
        if not differs <= TOLERANCE:
            raise WorkFailed(
                f"{out}: not written: on {len(frames)} {kind} clips its probabilities differ from the run's by up "
                f"to {differs:.2g}, more than {TOLERANCE:g}"
            )
        os.replace(made, out)
    finally:
        made.unlink(missing_ok=True)
    parity = {"clips": len(frames), "kind": kind, "max_abs_difference": differs, "tolerance": TOLERANCE}
    return {"file": str(out), "to": to, "bytes": out.stat().st_size, "parity": parity, **about}


def _metadata(trained: Trained, weights: str) -> dict[str, Any]:
    """What a user of the file must know: how to make its input, and what its output means."""
    recipe = trained.recipe
    return {
        "model": trained.about["model"],
        "weights": weights,
        "labels": list(trained.labels),
        "input": "frames: uint8 [B, T, H, W, 3], RGB; normalised inside",
        "shown": trained.kind,
        "output": "probabilities: float32 [B, K], in the order of labels",
        "frames": trained.sampling.frames,
        "sampling": trained.sampling.kind,
        "stride": trained.sampling.stride,
        "fps": str(recipe.fps),
        "size": [recipe.width, recipe.height],
        "fit": recipe.fit,
        "mean": list(trained.mean),
        "std": list(trained.std),
        "fingerprint": trained.about["fingerprint"],
        "reelcache": version("reelcache"),
    }


def _trace(trained: Trained) -> ExportedProgram:
    deployed = Deployed(trained.model, trained.mean, trained.std, trained.kind).eval()
    shape = (trained.sampling.frames, trained.recipe.height, trained.recipe.width, 3)
    example = torch.zeros((2, *shape), dtype=torch.uint8)  # of one clip, "batch" would be taken for a constant
    with torch.no_grad():
        return torch.export.export(deployed, (example,), dynamic_shapes={"frames": {0: Dim("batch", min=1)}})


def _parity_clips(trained: Trained, clips: int, say: Callable[[str], None]) -> tuple[Tensor, str]:
    """Clips of the run's own shard set, uint8 [clips, T, H, W, 3]; random pixels where it is gone, and that is
    said."""
    try:
        shard_set = read_set(as_place(trained.about["settings"]["shards"]))
        index = index_for(shard_set, dict(trained.about), "val" if "val" in shard_set.splits else "train")
        chosen = evaluation_clips(index.frames, trained.sampling, 1)
        some = np.linspace(0, len(chosen) - 1, min(clips, len(chosen))).astype(np.int64)
        chosen = Clips(chosen.sample[some], chosen.start[some])
        how = trained.sampling
        with ClipStream(
            index, frames_per_clip=how.frames, sampling=how.kind, stride=how.stride, batch_size=len(some),
            shards=cache_for(index),
        ) as stream:  # fmt: skip
            return next(stream.batches(chosen)).frames.clone(), "real"
    except (UserError, KeyError) as error:
        say(f"parity is checked on random clips: {error}")
    shape = (clips, trained.sampling.frames, trained.recipe.height, trained.recipe.width, 3)
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8)), "random"


def _difference(exported: Model, trained: Trained, frames: Tensor, compute: Compute) -> float:
    """The largest difference of a probability; one clip alone, then the others: the batch is free."""
    largest = 0.0
    for part in (frames[:1], frames[1:]):
        if len(part):
            apart = exported(part).double() - trained.probabilities(part, compute)
            largest = max(largest, float(apart.abs().max().nan_to_num(nan=float("inf"))))
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters' notes to themselves, on deprecated internals and absent packages, are nothing to a user."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _write_torch(program: ExportedProgram, about: str, path: Path) -> None:
    with path.open("wb") as file:  # by name it would ask for .pt2
        torch.export.save(program, file, extra_files={METADATA: about})


def _read_torch(path: Path) -> Model:
    with path.open("rb") as file:
        module = torch.export.load(file).module()

    def compute(frames: Tensor) -> Tensor:
        with torch.inference_mode():
            probabilities: Tensor = module(frames)
        return probabilities

    return compute


def _write_onnx(program: ExportedProgram, about: str, path: Path) -> None:
    made = torch.onnx.export(
        program, (), dynamo=True, verbose=False, input_names=["frames"], output_names=["probabilities"]
    )
    assert made is not None
    made.model.metadata_props[METADATA] = about
    made.save(str(path))


def _read_onnx(path: Path) -> Model:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda frames: torch.from_numpy(session.run(["probabilities"], {"frames": frames.numpy()})[0])


TARGETS = {
    "torch": Target(".pt2", (), _write_torch, _read_torch),
    "onnx": Target(".onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _read_onnx),
}
