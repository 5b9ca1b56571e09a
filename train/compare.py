"""Families × folds × seeds on one set, and the table of it. Each cell is an ordinary run folder under `out`.

A comparison that was stopped goes on: finished cells are kept, a half-done one resumes. Each cell is judged on
what it held out by the weights of its last epoch, since the best epoch is chosen on the very same videos.
"""

import json
import multiprocessing
import os
import signal
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import connection
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import UserError, WorkFailed
from pipeline.leaks import Pair
from pipeline.places import as_place
from pipeline.report import Stage, no_stage
from pipeline.shards.cache import one_at_a_time
from pipeline.shards.index import ShardSet, read_set
from pipeline.summary import summarize
from train.bootstrap import group_intervals
from train.catalog import describe_model
from train.checkpoint import LOG, METRICS, RUN, read_run, write_json
from train.compute import choose_compute
from train.evaluate import evaluate_run, groups_of
from train.folds import train_and_val, without
from train.forecast import Load, Outlook
from train.inputs import INPUTS
from train.leakage import copies, copies_of, crossing
from train.lessons import learnt_videos, lessons_in, tell_unknown, unknown_lessons
from train.loop import Trainer
from train.metrics import roc_auc, wilson
from train.run_settings import RunSettings

VERDICTS = "verdicts.json"  # in a cell's folder: what it says of the videos that it held out
Say = Callable[[str], None]
_STOPS: list[KeyboardInterrupt] = []  # of this process


@dataclass(frozen=True)
class Cell:
    """One run of the comparison: its folder's name is its place in it."""

    settings: RunSettings
    out: Path
    clips: int
    cache: Path | None = None  # where shards of a set behind a URL come to, of at most so many bytes
    cache_size: int | None = None

    def without(self, videos: list[str]) -> "Cell":
        """The same, not trained on these."""
        return replace(self, settings=replace(self.settings, leave_out=videos))

    def is_done(self) -> bool:
        """Whether it was trained and judged, by as many clips. Raises `UserError` for a run of other settings."""
        if not (self.out / RUN).exists():
            return False
        # What the release of that run had no setting for was as it is by default.
        plain = replace(self.settings, recipe=type(self.settings.recipe)(), leave_out=[]).as_dict()
        before, now = {**plain, **read_run(self.out)["settings"]}, self.settings.as_dict()
        for name in sorted(now.keys() - {"device"}):
            if before.get(name) != now[name]:
                raise UserError(
                    f"{self.out}: was trained with {name} {before.get(name)}, not {now[name]}; "
                    "give another --out, or remove that run"
                )
        verdicts = self.out / VERDICTS
        return verdicts.exists() and json.loads(verdicts.read_text())["clips"] == self.clips

    def work(self, say: Say = lambda _: None, stage: Stage = no_stage) -> None:
        """Train to the end, from where it stands, and judge. Raises `UserError` and `WorkFailed`."""
        if not (self.out / METRICS).exists():

            def say_whose(line: str) -> None:
                say(f"{self.out.name}: {line}")

            trainer = Trainer(self.settings, self.out, say_whose, cache=self.cache, cache_size=self.cache_size)
            trainer.resume() if (self.out / RUN).exists() else trainer.start()
            trainer.fit(lambda what, total: stage(f"{self.out.name}, {what}", total))
        compute = choose_compute(self.settings.device, self.settings.precision)
        # Leaks are a matter of the whole comparison, and were looked for before it began.
        found = evaluate_run(
            self.out, compute=compute, clips=self.clips, weights="last", check_leaks=False, cache=self.cache,
            cache_size=self.cache_size,
        )  # fmt: skip
        values = {
            "clips": self.clips,
            "videos": found.predictions.videos,
            "groups": groups_of(found.index),
            "labels": found.predictions.labels.tolist(),
            "probabilities": found.predictions.probabilities.tolist(),
        }
        write_json(self.out / VERDICTS, values)


def plan_cells(
    asked: Sequence[RunSettings],
    out: Path,
    *,
    folds: int | None,
    seeds: Sequence[int],
    clips: int,
    within: str | None = None,
    cache: Path | None = None,
    cache_size: int | None = None,
) -> list[Cell]:
    """Every family with every fold and seed, family by family; of what fold `within` trains on, where it is given.

    Raises `UserError` for `within` without `folds`."""
    if within and folds is None:
        raise UserError(f"--within {within}: say into how many folds with --folds")
    outer = f"{within}," if within else ""
    cells = []
    for settings in asked:
        for fold in [None] if folds is None else [f"{outer}{number}/{folds}" for number in range(folds)]:
            for seed in seeds:
                part = "" if fold is None else f"-fold{fold.replace('/', 'of').replace(',', '-')}"
                name = f"{settings.model}{part}-seed{seed}"
                cells.append(Cell(replace(settings, fold=fold, seed=seed), out / name, clips, cache, cache_size))
    return cells


def compare(
    cells: Sequence[Cell],
    out: Path,
    *,
    jobs: int = 1,
    allow_leaks: bool = False,
    say: Say = lambda _: None,
    stage: Stage = no_stage,
) -> dict[str, Any]:
    """Work on all cells that are not done, and put the table together; saved as `comparison.json`.

    A cell whose training fails (`WorkFailed`) is reported in its family's row, and the others go on.
    Raises `UserError`, before anything is trained where that can be known.
    """
    shard_set = read_set(as_place(cells[0].settings.shards))
    digest = summarize(shard_set)["digest"]
    size = shard_set.recipe.width, shard_set.recipe.height
    rows = {
        asked.model: describe_model(
            asked.model, asked.recipe.frames, size, len(shard_set.labels),
            in_channels=INPUTS[asked.recipe.input], **asked.options,
        )
        for asked in {cell.settings.model: cell.settings for cell in cells}.values()
    }  # fmt: skip
    for cell in cells:
        if (cell.out / RUN).exists() and read_run(cell.out)["shards_digest"] != digest:
            raise UserError(f"{cell.out}: the set {shard_set.folder} has changed since; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    pairs = copies(shard_set, out, stage, one_at_a_time(shard_set, cells[0].cache, cells[0].cache_size))
    weights = _check_weights(cells, shard_set, pairs, say, allowed=allow_leaks)
    leaks, left_out = _check_leaks(cells, shard_set, pairs, allowed=allow_leaks)
    cells = [cell.without(left_out[cell.settings.fold]) for cell in cells]
    if count := len(set().union(*left_out.values())):
        say(f"{count} copies of held-out videos are not trained on where those are judged, but for --allow-leaks")
    todo = [cell for cell in cells if not cell.is_done()]
    outlook = Outlook([_load(cell, shard_set, rows[cell.settings.model]["gflops"]) for cell in cells], jobs)
    say(f"{len(cells)} runs, {len(cells) - len(todo)} of them done; {outlook}")
    failed = _work(todo, jobs, outlook, say, stage)
    found = {
        "shards": str(shard_set.folder),
        "digest": digest,
        "folds": sorted({cell.settings.fold for cell in cells if cell.settings.fold}),
        "seeds": sorted({cell.settings.seed for cell in cells}),
        "clips": cells[0].clips,
        "weights": "last",
        "leaks": {**leaks, "weights": weights},
        "left_out": {fold or "val": videos for fold, videos in left_out.items()},
        "rows": [_row(rows[name], [c for c in cells if c.settings.model == name], failed) for name in rows],
    }
    write_json(out / "comparison.json", found)
    return found


def _check_weights(
    cells: Sequence[Cell], shard_set: ShardSet, pairs: tuple[Pair, ...], say: Say, *, allowed: bool
) -> list[str]:
    """The cells whose first weights have learnt what they hold out, or a copy of it. Raises `UserError` for the
    first of them where that is not `allowed`; what is not known is said."""
    found = []
    for place in dict.fromkeys(cell.settings.weights for cell in cells if cell.settings.weights):
        lessons = lessons_in(Path(place))
        learnt = learnt_videos(shard_set, lessons)
        if unknown := unknown_lessons(lessons, shard_set):
            say(f"Warning: --weights {place}: {tell_unknown(unknown)}")
        for cell in (cell for cell in cells if cell.settings.weights == place):
            _, held_out = train_and_val(shard_set, cell.settings.fold)
            if held_out is None or not copies_of(held_out.videos, learnt, pairs):
                continue
            if not allowed:
                raise UserError(
                    f"--weights {place}: has learnt from videos of this set that {cell.out.name} holds out, or "
                    "from copies of them; --allow-leaks goes on all the same"
                )
            found.append(cell.out.name)
    return found


def _check_leaks(
    cells: Sequence[Cell], shard_set: ShardSet, pairs: tuple[Pair, ...], *, allowed: bool
) -> tuple[dict[str, Any], dict[str | None, list[str]]]:
    """What stands on both sides; and for each fold the copies of what it holds out, which are then not trained on.

    Raises `UserError` for the former. Where it is `allowed`, copies are among it, and nothing is left out.
    """
    side: dict[str, str] = {}
    left_out: dict[str | None, list[str]] = {}
    for fold in dict.fromkeys(cell.settings.fold for cell in cells):
        train, held_out = train_and_val(shard_set, fold)
        if held_out is None:
            raise UserError(f"{shard_set.folder}: no split 'val' to judge on; give --folds")
        left_out[fold] = [] if allowed else copies_of(held_out.videos, train.videos, pairs)
        if fold is None:
            side |= dict.fromkeys(without(train, left_out[fold]).videos, "train")
        side |= dict.fromkeys(held_out.videos, fold or "val")
    found = crossing(shard_set, side, pairs if allowed else ())
    if not allowed:
        found.refuse(shard_set.folder, "what is held out shares with what is trained on")
    return {"checked": True, "allowed": allowed, **found.as_dict()}, left_out


def _load(cell: Cell, shard_set: ShardSet, gflops: float) -> Load:
    train, held_out = train_and_val(shard_set, cell.settings.fold, cell.settings.leave_out)
    recipe = cell.settings.recipe
    judged = 0 if held_out is None else len(held_out)
    log = cell.out / LOG
    cost = max(gflops, 0.01)  # a tiny model's are rounded to 0
    return Load(cell.settings.model, recipe.epochs, len(train) * recipe.repeats, judged, cost, log)


def _work(todo: Sequence[Cell], jobs: int, outlook: Outlook, say: Say, stage: Stage) -> dict[str, str]:
    """Do the cells; returns those whose training failed, by name, with the reason."""
    failed: dict[str, str] = {}
    doing = _one_by_one(todo, outlook, say, stage) if jobs == 1 else _side_by_side(todo, jobs, stage)
    for cell, error in doing:
        if error is not None:
            failed[cell.out.name] = str(error)
            outlook.loads[:] = [load for load in outlook.loads if load.log.parent != cell.out]
        say(f"{cell.out.name}: {error or 'done'}; {outlook}")
    return failed


def _one_by_one(
    todo: Sequence[Cell], outlook: Outlook, say: Say, stage: Stage
) -> Iterator[tuple[Cell, WorkFailed | None]]:
    for cell in todo:
        try:
            cell.work(say, outlook.after_an_epoch(stage, say))
        except WorkFailed as error:
            yield cell, error
        else:
            yield cell, None


def _side_by_side(todo: Sequence[Cell], jobs: int, stage: Stage) -> Iterator[tuple[Cell, WorkFailed | None]]:
    """In so many processes, each with a GPU of its own where there are as many."""
    spawn = multiprocessing.get_context("spawn")
    devices = spawn.Queue()
    names = visible_devices()
    for number in range(jobs):
        devices.put(names[number % len(names)] if names else None)
    step = stage("runs", len(todo))
    with ProcessPoolExecutor(jobs, spawn, partial(_take_device, devices, jobs)) as pool:
        # Ctrl-C reaches the workers, too, and while they still import it would fill the screen: they start with it
        # held back, and hear of it when they can tell.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            tasks = {pool.submit(_work_in_pool, cell): cell for cell in todo}
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        try:
            for task in as_completed(tasks):
                error = task.exception()
                if error is not None and not isinstance(error, WorkFailed):
                    raise error
                step(1)
                yield tasks[task], error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _work_in_pool(cell: Cell) -> None:
    """In a worker process. One that was stopped begins nothing new: the pool may have handed it another cell."""
    if _STOPS:
        raise _STOPS[0]
    try:
        cell.work()
    except KeyboardInterrupt as stop:  # `Stopped`, too
        _STOPS.append(stop)
        raise


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available():
        return []
    return given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]


def _take_device(devices: "Queue[str | None]", jobs: int) -> None:
    """What a worker process does first."""
    before = signal.signal(signal.SIGINT, lambda *_: _STOPS.append(KeyboardInterrupt()))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # one that was held back is noted here
    signal.signal(signal.SIGINT, before)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    device = devices.get()
    if device is None:
        torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = device


def _end_with_parent() -> None:
    """A worker whose parent was killed must not go on: whoever runs the command again works in its folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _row(about: dict[str, Any], cells: Sequence[Cell], failed: dict[str, str]) -> dict[str, Any]:
    """A family's row. Its metrics are of all folds' videos together, and means over the seeds."""
    row = {"model": about["model"], "parameters": about["parameters"], "gflops": about["gflops"]}
    reasons = [f"{cell.out.name}: {failed[cell.out.name]}" for cell in cells if cell.out.name in failed]
    if reasons:
        return {**row, "runs": len(cells), "failed": reasons}
    metrics = [json.loads((cell.out / METRICS).read_text()) for cell in cells]
    log = [json.loads(line) for cell in cells for line in (cell.out / "log.jsonl").read_text().splitlines()]
    return {
        **row,
        "runs": len(cells),
        "epochs": metrics[0]["epochs"],
        **pooled(cells),
        "seconds_per_epoch": round(statistics.median(line["seconds"] for line in log), 2),
        "clips_per_second": round(statistics.median(line["clips_per_second"] for line in log), 1),
    }


def pooled(cells: Sequence[Cell]) -> dict[str, Any]:
    """Accuracy and ROC-AUC of what all folds held out, taken together; means over the seeds, that don't make the
    intervals any narrower. `accuracy_interval` is Wilson's, the others are drawn by group."""
    by_seed: dict[int, list[dict[str, Any]]] = {}
    for cell in cells:
        by_seed.setdefault(cell.settings.seed, []).append(json.loads((cell.out / VERDICTS).read_text()))
    # Folds come in the same order for every seed, and so do the videos in them.
    parts = next(iter(by_seed.values()))
    labels = np.array([label for part in parts for label in part["labels"]], np.int64)
    groups = [group for part in parts for group in part["groups"]]
    chances = np.array([[row for part in found for row in part["probabilities"]] for found in by_seed.values()])
    right = (chances.argmax(2) == labels).astype(np.float64)
    areas = [roc_auc(one, labels) for one in chances]
    intervals = group_intervals(chances, right, labels, groups)
    return {
        "videos": len(labels),
        "groups": len(set(groups)),
        "accuracy": float(right.mean()),
        "accuracy_interval": list(wilson(float(right.mean()), len(labels))),
        "accuracy_interval_by_group": intervals["accuracy"],
        "accuracy_by_seed": right.mean(1).tolist(),
        "roc_auc": None if None in areas else float(np.mean([area for area in areas if area is not None])),
        "roc_auc_interval_by_group": intervals["roc_auc"],
        "roc_auc_by_seed": areas,
    }
