"""Where the work is done: in this process, on a Dask cluster of this machine, or on one that runs already.

The only file that imports Dask.
"""

import faulthandler
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from pipeline.errors import UserError, WorkFailed
from pipeline.interrupt import unheard
from pipeline.report import Report, Step

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")
Work = Callable[[TaskT, Report], ResultT]

PROGRESS = "reelcache-progress"
CONNECT_SECONDS = 10
REPORT_SECONDS = 0.5  # between two words of one worker on its progress: the scheduler carries them all
# Tasks that the scheduler has at once: plenty for thousands of workers, and its memory does not grow with the set.
WINDOW = 10_000
# What Dask watches while its workers compute (ticks of 20 ms, profiles of 10 ms, memory of 100 ms) cost a tenth of
# two cores, and giving memory back to the kernel after each frame another twentieth: `benchmarks/whole_build.py`.
LOCAL = {
    "distributed.worker.memory.terminate": False,
    "distributed.worker.memory.monitor-interval": "5s",
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.tick.limit": "1h",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.system-monitor.disk": False,
    "distributed.nanny.pre-spawn-environ": {
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
        "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20),
    },
    # The first death brings the task back: it is done again with every video in a process of its own.
    "distributed.scheduler.allowed-failures": 0,
}


class WorkerDied(Exception):
    """A worker process ended in the middle of its task: a decoder crashed, hung, or took all memory."""


class _Lost(Exception):
    """The scheduler went away, and with it everything that was asked of it."""


def run(
    work: Work[TaskT, ResultT],
    tasks: Sequence[TaskT],
    step: Step,
    *,
    workers: int,
    scheduler: str | None = None,
    time_limit: float,
) -> Iterator[tuple[TaskT, ResultT | Exception]]:
    """Do `work(task, report)` for every task and yield each with its result, or what it failed with. `step` gets
    what the work reports as done.

    `workers` 0: here, one after the other, where a crash is a crash; else that many processes of this machine.
    `scheduler`: the address of a running one, instead. A worker that reports nothing for `time_limit` seconds ends
    itself; a task whose worker ended comes back as `WorkerDied`. Raises `UserError` where no scheduler
    answers, `WorkFailed` where it goes away.
    """
    if scheduler is None and workers == 0:
        for task in tasks:
            try:
                result: ResultT | Exception = work(task, lambda done, silence=0.0: step(done))  # noqa: ARG005
            except Exception as error:
                result = error
            yield task, result
        return
    with _client(min(workers, len(tasks)), scheduler) as client:
        try:
            yield from _run_on(client, partial(_work_there, work, time_limit), tasks, step)
        except _Lost as error:
            where = f"--scheduler {scheduler}" if scheduler else "the cluster of this machine"
            raise WorkFailed(
                f"{where}: the connection to the scheduler was lost; finished shards are safe, and the "
                "same command goes on from there"
            ) from error


def _run_on(
    client: Any, work: Callable[[TaskT], ResultT], tasks: Sequence[TaskT], step: Step
) -> Iterator[tuple[TaskT, ResultT | Exception]]:
    from distributed import CancelledError, KilledWorker, as_completed

    client.subscribe_topic(PROGRESS, lambda event: step(event[1]))
    waiting = iter(tasks)
    futures: dict[Any, TaskT] = {}
    finished = as_completed()

    def submit() -> None:
        if len(futures) <= WINDOW // 2 and (batch := list(islice(waiting, WINDOW - len(futures)))):
            fresh = dict(zip(client.map(work, batch, pure=False), batch, strict=True))
            futures.update(fresh)
            finished.update(fresh)

    submit()
    for future in finished:
        result: ResultT | Exception
        try:
            result = future.result()
        except KilledWorker as error:
            result = WorkerDied(str(error))
        except CancelledError as error:  # nobody here cancels anything
            raise _Lost from error
        except Exception as error:  # the work's own
            result = error
        yield futures.pop(future), result
        future.release()
        submit()


def _work_there(work: Work[TaskT, ResultT], time_limit: float, task: TaskT) -> ResultT:
    """Runs on a worker: progress goes back to the client as events, silence ends the process."""
    from distributed import get_worker

    worker = get_worker()
    with open(os.devnull, "w") as nowhere:
        armed = told = given = 0.0
        untold = 0

        def report(done: int, silence: float = 0.0) -> None:
            nonlocal armed, told, given, untold
            untold += done
            now = time.monotonic()
            if untold and now - told > REPORT_SECONDS:
                worker.log_event(PROGRESS, untold)
                told, untold = now, 0
            if silence != given or now - armed > min(1.0, time_limit / 4):
                armed, given = now, silence
                # Not a Python thread: it also ends a process whose decoder never gives the GIL back.
                faulthandler.dump_traceback_later(time_limit + silence, exit=True, file=nowhere)

        report(0)
        try:
            return work(task, report)
        finally:
            faulthandler.cancel_dump_traceback_later()
            if untold:
                worker.log_event(PROGRESS, untold)


@contextmanager
def _client(workers: int, scheduler: str | None) -> Iterator[Any]:
    import dask
    from distributed import Client, LocalCluster

    # What they log of a lost connection is pages, some of it after a cluster is closed that was told to be silent;
    # the one line is `WorkFailed`, or that of who stopped the build.
    for name in ("distributed.client", "distributed.batched"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=CONNECT_SECONDS)
        except (OSError, ValueError, TimeoutError) as error:
            raise UserError(
                f"--scheduler {scheduler}: no Dask scheduler answers there ({error}); "
                "start one with `dask scheduler`, or leave the option out"
            ) from error
        with client:
            yield client
        return
    with dask.config.set(LOCAL):
        with unheard():  # by the cluster's threads, too: they begin new workers for those that die
            # A worker decodes one video at a time on one thread; more threads would only fight over the cores.
            local = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address=":0",  # any free port: another build may run here
                silence_logs=logging.CRITICAL,
            )
        with local as cluster, Client(cluster) as client:
            try:
                yield client
            except BaseException:
                _kill(cluster)
                raise


def _kill(cluster: Any) -> None:
    """End the workers of this machine at once: closing would wait for shards that nobody wants any longer."""
    for nanny in cluster.workers.values():
        nanny.auto_restart = False
        with suppress(ProcessLookupError):
            if nanny.pid:
                os.kill(nanny.pid, signal.SIGKILL)
