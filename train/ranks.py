"""The processes that train one model together, as `torchrun` starts them. One alone needs none of this."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.errors import UserError, WorkFailed


@dataclass(frozen=True)
class Ranks:
    """Rank `rank` of `of`. Every method is called on all ranks alike, and each waits for the others."""

    rank: int = 0
    of: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, of a tensor on the CPU."""
        if self.of > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, *wishes: bool) -> list[bool]:
        """Which of these hold on any rank."""
        return [count > 0 for count in self.sum(torch.tensor(wishes, dtype=torch.int64)).tolist()]

    def text_of_first(self, text: str) -> str:
        """What the first rank has for it."""
        if self.of == 1:
            return text
        told = [text]
        dist.broadcast_object_list(told)
        return told[0]

    def share_buffers(self, model: nn.Module) -> None:
        """Give all ranks the first one's buffers: where norm layers see a rank's clips alone, these differ."""
        if self.of > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def wait(self) -> None:
        """Until all ranks are here."""
        self.any(False)


ALONE = Ranks()


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Meet the other processes that `torchrun` started; without it, one process is alone.

    Gloo on CPUs, NCCL for what is on CUDA. Raises `UserError` where they do not meet, `WorkFailed` where another
    one ends early; the error of a rank but the first says which it was.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"torchrun: the ranks do not meet: {error}") from error
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    try:
        yield ranks
    except UserError as error:
        raise error if ranks.first else type(error)(f"rank {ranks.rank}: {error}") from error
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise WorkFailed(f"rank {ranks.rank}: another rank has ended; its own message says why") from error
        raise
    finally:
        dist.destroy_process_group()
