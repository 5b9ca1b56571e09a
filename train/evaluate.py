"""A trained model on a split: several clips a video, probabilities averaged, one verdict a video."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.origin import UNKNOWN, Lesson, read_origin
from pipeline.errors import UserError, WorkFailed
from pipeline.places import as_place
from pipeline.report import Stage, no_stage
from pipeline.shards.cache import ShardCache, cache_for, one_at_a_time
from pipeline.shards.index import ShardSet, SplitIndex, read_set
from pipeline.summary import digest
from train.checkpoint import read_run
from train.clips import Clips, Ints, evaluation_clips
from train.compute import Compute
from train.folds import train_and_val
from train.inputs import make_input, to_clips
from train.leakage import Crossing, crossing_into
from train.learnt import Learnt, LocalOf
from train.manifest import MANIFEST, read_manifest
from train.metrics import fit_threshold, score
from train.ranks import Ranks
from train.stream import ClipStream
from train.trained import Trained, load_trained


@dataclass(frozen=True)
class Predictions:
    """`probabilities` [videos, K] and `labels` [videos], in the order of the index's `videos`."""

    videos: list[str]
    probabilities: NDArray[np.float64]
    labels: NDArray[np.int64]


def spread(count: int, ranks: Ranks) -> tuple[Ints, NDArray[np.bool_]]:
    """Which of `count` clips are this rank's, and which of those are not another rank's, too.

    As many on every rank, since ranks that share a model's weights call it together: some clips come twice.
    """
    own = np.arange(ranks.rank, -(-count // ranks.of) * ranks.of, ranks.of)
    return own % count, own < count


def predict_split(
    model: nn.Module,
    stream: ClipStream,
    compute: Compute,
    *,
    clips: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    kind: str = "rgb",
) -> Predictions:
    """Probabilities of every video of the stream's split: the mean over its clips, shown as `kind` of input.

    The clips are spread over the ranks of `compute`, and all ranks get all probabilities. Raises `WorkFailed` for
    a model that has diverged.
    """
    index, ranks = stream.index, compute.ranks
    chosen = evaluation_clips(index.frames, stream.sampling, clips)
    own, fresh = spread(len(chosen), ranks)
    total = np.zeros((len(index.videos), len(index.labels)))
    count = np.zeros(len(index.videos))
    labels = np.zeros(len(index.videos), np.int64)
    labels[index.video] = index.label
    model.eval()
    with torch.inference_mode():
        for batch in stream.batches(Clips(chosen.sample[own], chosen.start[own])):
            logits = compute.logits(model, make_input(to_clips(batch.frames, mean, std), kind))
            counted, fresh = np.split(fresh, [len(logits)])
            videos = index.video[batch.samples.numpy()][counted]
            np.add.at(total, videos, logits.softmax(1).double().cpu().numpy()[counted])
            np.add.at(count, videos, 1)
    total, count = (ranks.sum(torch.from_numpy(sums)).numpy() for sums in (total, count))
    strange = np.flatnonzero(~np.isfinite(total).all(1))
    if len(strange):
        raise WorkFailed(
            f"the model has diverged: what it gives for {index.videos[strange[0]]} is no probability; train it "
            "with a lower --lr, a longer --warmup or --precision fp32"
        )
    return Predictions(index.videos, total / count[:, None], labels)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_run` finds: JSON-ready metrics, and what they are made from. `open_cache` gives the shards of
    `index` to a `ClipStream`."""

    metrics: dict[str, Any]
    index: SplitIndex
    predictions: Predictions
    open_cache: Callable[[SplitIndex], ShardCache | None]


def evaluate_run(
    run: Path,
    *,
    compute: Compute,
    split: str = "val",
    clips: int = 5,
    weights: str = "best",
    shards: Path | str | None = None,
    batch_size: int = 32,
    cache: Path | None = None,
    cache_size: int | None = None,
    threshold_from: str | None = None,
    check_leaks: bool = True,
    allow_leaks: bool = False,
    stage: Stage = no_stage,
) -> Evaluation:
    """Judge a finished (or stopped) run on a split of its shard set, or of another set of the same recipe and
    labels. Of a run with `--fold`, `val` is its fold, and `train` the others.

    `threshold_from`: the split on which the threshold between two classes is fitted, never the judged one.
    `chose_epoch` of the metrics says that judged videos had a say in which epoch has the `best` weights.
    Raises `UserError`; so where the judged videos, or copies of them, were learnt, but for `allow_leaks`.
    """
    about = read_run(run)
    if "shards" not in about["settings"]:
        raise UserError(f"{run}: the settings in its run.json lack shards")
    shard_set = read_set(as_place(str(shards or about["settings"]["shards"])))
    if threshold_from == split:
        others = ", ".join(name for name in shard_set.splits if name != split) or "none"
        raise UserError(f"--threshold-from {split}: is what is judged; fit it on another split, of {others}")
    index = index_for(shard_set, about, split)
    fitted_on = index_for(shard_set, about, threshold_from) if threshold_from else None
    if fitted_on and len(about["labels"]) != 2:
        raise UserError(f"--threshold-from: there are {len(about['labels'])} classes; a threshold divides two")
    trained = load_trained(run, weights, compute)
    learnt, leaks = _learnt(run, about, weights, shard_set)
    open_cache = partial(cache_for, root=cache, limit=cache_size)
    if check_leaks and learnt:
        local_of = partial(one_at_a_time, root=cache, limit=cache_size)
        leaks = _leaks(run, learnt, index, split, fitted_on, threshold_from, stage, local_of, allowed=allow_leaks)

    def predict(chosen: SplitIndex) -> Predictions:
        return _predict(trained, chosen, compute, clips=clips, batch_size=batch_size, source=open_cache(chosen))

    threshold = _threshold(predict(fitted_on), threshold_from) if fitted_on else None
    found = predict(index)
    groups = groups_of(index)
    metrics = {
        "run": str(run),
        "model": about["model"],
        "weights": weights,
        "shards": str(shard_set.folder),
        "shards_digest": digest(shard_set),
        "split": split,
        "fold": about["settings"].get("fold"),
        "clips": clips,
        "threshold": threshold,
        "threshold_from": threshold_from,
        "leaks": leaks,
        "chose_epoch": weights == "best" and learnt is not None and learnt.chose_by(index),
        **score(found.probabilities, found.labels, about["labels"], groups=groups, threshold=threshold),
    }
    return Evaluation(metrics, index, found, open_cache)


def _predict(
    trained: Trained,
    index: SplitIndex,
    compute: Compute,
    *,
    clips: int,
    batch_size: int,
    source: ShardCache | None,
) -> Predictions:
    with ClipStream(
        index,
        frames_per_clip=trained.sampling.frames,
        sampling=trained.sampling.kind,
        stride=trained.sampling.stride,
        batch_size=batch_size,
        device=compute.device,
        shards=source,
    ) as stream:
        return predict_split(
            trained.model, stream, compute, clips=clips, mean=trained.mean, std=trained.std, kind=trained.kind
        )


def groups_of(index: SplitIndex) -> list[str]:
    """The group of each of the index's `videos`."""
    group = {sample.video: sample.group for sample in index.samples}
    return [group[video] for video in index.videos]


def _threshold(found: Predictions, split: str | None) -> float:
    try:
        return fit_threshold(found.probabilities, found.labels)
    except ValueError as error:
        raise UserError(f"--threshold-from {split}: {error}") from error


def _learnt(
    run: Path, about: dict[str, Any], weights: str, shard_set: ShardSet
) -> tuple[Learnt | None, dict[str, Any]]:
    """What the run has learnt from, if that is known; and what to say of leaks as long as nobody looked."""
    ancestors = _ancestors(run / f"{weights}.safetensors") if about["settings"].get("weights") else ()
    sides = read_manifest(run)
    try:
        learnt = Learnt.of(about, shard_set, sides, ancestors)
    except UserError as error:
        return None, {"checked": False, "reason": f"what was trained on cannot be compared: {error}"}
    return learnt, {"checked": False, "reason": "not asked for"}


def _ancestors(weights: Path) -> tuple[Lesson, ...]:
    """What the weights learnt, but for the first lesson, their own. Raises `UserError`."""
    try:
        origin = read_origin(weights)
    except ValueError as error:
        raise UserError(str(error)) from error
    return (UNKNOWN,) if origin is None or origin.learnt == (UNKNOWN,) else origin.learnt[1:]


def _leaks(
    run: Path,
    learnt: Learnt,
    index: SplitIndex,
    split: str,
    fitted_on: SplitIndex | None,
    threshold_from: str | None,
    stage: Stage,
    local_of: LocalOf,
    *,
    allowed: bool,
) -> dict[str, Any]:
    """What of the judged videos was learnt. Learnt is what the run and its ancestors trained on, what chose their
    best epochs (but where that is judged), and what the threshold is fitted on; `unknown`: what is gone, or of the
    ancestors' other sets. Raises `UserError` where there is such a thing and it is not `allowed`."""
    if split == "train" and learnt.home:
        return {"checked": False, "reason": "these videos were trained on: no score"}
    if learnt.changed and not learnt.sides:
        return _unknown(run, learnt, allowed=allowed)
    names = ["train"] if split == "val" else ["train", "val"]
    before = learnt.before(chosen_by=split != "val")
    known = before | learnt.videos(names) | set(fitted_on.videos if fitted_on else ())
    found = crossing_into(learnt.judged, known, index.videos, learnt.pairs(run, stage, local_of))
    groups = {group for video, group in learnt.shared_groups(names, index).items() if video not in known}
    found = replace(found, groups=tuple(sorted(groups.union(found.groups))))
    if not allowed:
        where = ", ".join(name for name in names if name in {**learnt.parts, **learnt.sides})
        where += "" if learnt.same else f" of {learnt.shard_set.folder}"
        where += f", or {threshold_from}" if threshold_from not in (None, *names) else ""
        where += ", or what its first weights learnt" if before else ""
        _refuse(run, learnt, found, f"{split} shares with", where)
    told = {"checked": True, "allowed": allowed, "changed": learnt.changed, "unknown": learnt.unknown(names)}
    told["namesakes"] = learnt.namesakes(names, index)
    return {**told, **found.as_dict()}


def _refuse(run: Path, learnt: Learnt, found: Crossing, shares: str, where: str) -> None:
    """Raises `UserError` if anything was found."""
    place = learnt.judged.folder
    if learnt.changed:
        since = f"{run} was trained on another state of its set; {shares} its {where} of then"
        found.refuse(place, since, "Train again on the set as it is now")
    # No regrouping of one set parts it from another.
    apart = "" if learnt.home else "Build the judged set without them, or train again with --leave-out for each"
    found.refuse(place, f"{shares} {where}", apart)


def _unknown(run: Path, learnt: Learnt, *, allowed: bool) -> dict[str, Any]:
    """What to say of a run that has kept nothing of a set that has changed. Raises `UserError`."""
    reason = f"{learnt.shard_set.folder} has changed since {run} was trained, by a release that kept no {MANIFEST}"
    if not allowed:
        raise UserError(
            f"{reason}; so whether what is judged was learnt is unknown. Train again on the set as it is now, or "
            "say --allow-leaks"
        )
    return {"checked": False, "reason": reason}


def index_for(shard_set: ShardSet, about: dict[str, Any], split: str) -> SplitIndex:
    """The split, as the run has it, if it can be judged on it. Raises `UserError` for other labels or another
    recipe, and where the folds of a run are not known any more."""
    if list(shard_set.labels) != about["labels"]:
        raise UserError(
            f"{shard_set.folder}: has the labels {', '.join(shard_set.labels)}; the run was trained on "
            f"{', '.join(about['labels'])}; build the set from videos of each of these, and no others"
        )
    if shard_set.recipe.fingerprint != about["fingerprint"]:
        raise UserError(
            f"{shard_set.folder}: is of the recipe {shard_set.recipe.fingerprint}, the run was trained on "
            f"frames of {about['fingerprint']}; build the set with the same --fps, --size and --fit"
        )
    fold = about["settings"].get("fold")
    changed = digest(shard_set) != about["shards_digest"]
    if split not in ("train", "val") or (fold is None and (changed or split == "val")):
        return shard_set.split(split)
    if changed:
        raise UserError(
            f"{shard_set.folder}: is not the set that the run was trained on, so {split} of its fold {fold} is "
            "unknown there; name another split"
        )
    train, val = train_and_val(shard_set, fold, about["settings"].get("leave_out") or ())
    return val if split == "val" and val is not None else train
