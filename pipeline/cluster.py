"""Where the work is done: in this process, on a Dask cluster of this machine, or on one that runs already.

The only file that imports Dask.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from pipeline.errors import UserError

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")
Report = Callable[[int], None]
Work = Callable[[TaskT, Report], ResultT]

PROGRESS = "reelcache-progress"


def run(
    work: Work[TaskT, ResultT],
    tasks: Sequence[TaskT],
    report: Report,
    *,
    workers: int,
    scheduler: str | None = None,
) -> Iterator[tuple[TaskT, ResultT | Exception]]:
    """Do `work(task, report)` for every task and yield each with its result, or what it failed with.

    `workers` 0: here, one after the other; else that many processes of this machine. `scheduler`: the
    address of a running one, instead. Raises `UserError` where no scheduler answers.
    """
    if scheduler is None and workers == 0:
        for task in tasks:
            try:
                yield task, work(task, report)
            except Exception as error:
                yield task, error
        return
    with _client(min(workers, len(tasks)), scheduler) as client:
        yield from _run_on(client, work, tasks, report)


def _run_on(
    client: Any, work: Work[TaskT, ResultT], tasks: Sequence[TaskT], report: Report
) -> Iterator[tuple[TaskT, ResultT | Exception]]:
    from distributed import as_completed

    client.subscribe_topic(PROGRESS, lambda event: report(event[1]))
    futures = {client.submit(partial(_work_there, work), task, pure=False): task for task in tasks}
    for future in as_completed(futures):
        try:
            result = future.result()
        except Exception as error:  # the work's own, a worker that died too often, a scheduler that went away
            result = error
        yield futures[future], result
        future.release()


def _work_there(work: Work[TaskT, ResultT], task: TaskT) -> ResultT:
    """Runs on a worker: progress goes back to the client as events."""
    from distributed import get_worker

    worker = get_worker()
    return work(task, lambda count: worker.log_event(PROGRESS, count))


@contextmanager
def _client(workers: int, scheduler: str | None) -> Iterator[Any]:
    import dask
    from distributed import Client, LocalCluster

    if scheduler is not None:
        try:
            client = Client(scheduler, timeout="5s")
        except (OSError, ValueError, TimeoutError) as error:
            raise UserError(
                f"--scheduler {scheduler}: no Dask scheduler answers there ({error}); "
                "start one with `dask scheduler`, or leave the option out"
            ) from error
        with client:
            yield client
        return
    # A worker decodes one video at a time on one thread; more threads would only fight over the cores.
    config = {"distributed.worker.memory.terminate": False, "distributed.admin.tick.limit": "1h"}
    with (
        dask.config.set(config),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
