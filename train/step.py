"""One step of training: from a global batch to new weights, on all ranks, in micro-batches."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from models.family import Family
from pipeline.errors import WorkFailed
from train.clips import rank_part
from train.objective import Objective
from train.optim import learning_rate, set_rate
from train.parallel import Replica
from train.stream import Batch


class Stepper:
    """Makes the steps of a run. All that is random in one is a function of seed, step and (dropout) rank.

    The loss is the mean over the global batch, whatever the number of ranks and micro-batches; batch norm sees a
    micro-batch of one rank at a time (of all ranks on CUDA: see `Compute.prepare`).
    """

    def __init__(
        self, model: Family, objective: Objective, optimizer: torch.optim.Optimizer, steps_per_epoch: int
    ) -> None:
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.compute, self.recipe, self.seed = objective.compute, objective.recipe, objective.settings.seed
        self.steps_per_epoch = steps_per_epoch
        self.replica = Replica(model, self.compute)
        self.scaler = self.compute.scaler()

    def __call__(self, batch: Batch, number: int) -> dict[str, float]:
        """Step `number` of the run; returns the sum of each of the objective's values over the global batch.

        Raises `WorkFailed` where the loss is no number any more.
        """
        ranks = self.compute.ranks
        torch.manual_seed(int(np.random.SeedSequence([self.seed, number, ranks.rank]).generate_state(1)[0]))
        set_rate(self.optimizer, self._rate(number))
        sums: dict[str, Tensor] = {}
        for values in self._backward(batch, number):
            for name, value in values.items():
                sums[name] = sums.get(name, 0) + value.detach().sum()
        totals = ranks.sum(torch.stack(list(sums.values())).double().cpu())
        found = dict(zip(sums, totals.tolist(), strict=True))
        if not np.isfinite(found["loss"]):
            loss = found["loss"] / batch.size
            epoch = number // self.steps_per_epoch + 1
            raise WorkFailed(
                f"epoch {epoch}: the loss became {loss} at step {number}; try a lower --lr, a longer --warmup or "
                "--precision fp32"
            )
        self.scaler.unscale_(self.optimizer)
        if "weight" in found:  # known only now that all parts of the batch are through
            self._scale_gradients(batch.size / found["weight"])
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return found

    def _backward(self, batch: Batch, number: int) -> Iterator[dict[str, Tensor]]:
        """Gradients of the global batch's mean loss; gives the objective's values of each micro-batch."""
        frames, ranks = batch.frames, self.compute.ranks
        rng = np.random.default_rng([self.seed, number])
        drawn = self.objective.draw(batch.size, (frames.shape[2], frames.shape[3]), rng)
        drawn = drawn[batch.first : batch.first + len(frames)]
        parts = self._parts(batch)
        for part in parts:
            with self.replica.backward(last=part is parts[-1]):
                values = self.objective.losses(self.replica.module, frames[part], batch.labels[part], drawn[part])
                # Ranks' gradients are averaged, each with the same weight however many clips it has.
                loss = values["loss"].sum() * (ranks.of / batch.size)
                torch.autograd.backward(self.scaler.scale(loss))
            yield values

    def _scale_gradients(self, factor: float) -> None:
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def _parts(self, batch: Batch) -> list[slice]:
        """Micro-batches of this rank's clips: as many on every rank."""
        unit = self.objective.unit
        fewest = -(-batch.size // unit) // self.compute.ranks.of
        count = max(1, min(self.recipe.accumulate, fewest))
        return [rank_part(0, len(batch.frames), number, count, unit) for number in range(count)]

    def _rate(self, number: int) -> float:
        recipe, per_epoch = self.recipe, self.steps_per_epoch
        return learning_rate(number, recipe.epochs * per_epoch, round(recipe.warmup * per_epoch), recipe.lr)
