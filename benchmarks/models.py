"""Training steps on a CPU against what they are compared with: same batch, interleaved, medians of the ratios.

    python benchmarks/models.py                       # all rows
    python benchmarks/models.py --only scan --rounds 9 --threads 2

CNNs: our defaults (bf16 autocast where the processor multiplies bf16, channels last, fused AdamW, freed memory
kept) against the plain step (float32, contiguous, torch's defaults). Transformers: against the same network in
`transformers`, in the same precision and with the same optimiser. Scan: forward and backward against the
sequential reference loop of mamba-ssm (`selective_scan_ref`), and against the same loop written with care. The
share of peak: FLOPs of the step (a multiply-add is two, backward counted as it runs) per second over those of a
large matrix product, measured in the same run and precision. The scan is all elementwise work, of which such
counts know nothing: its share says little. Each side has a process of its own, and they take turns: how malloc is
set is of a whole process.
"""

import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # or `models` would be this file, run as a script

import click
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from models import build_model
from models.scan import selective_scan
from train.allocator import keep_freed_memory
from train.compute import Compute, choose_compute
from train.optim import make_optimizer

Step = Callable[[], object]
Scan = Callable[..., Tensor]
PLAIN = Compute(torch.device("cpu"), bf16=False)
DEFAULT = choose_compute("cpu")


@dataclass(frozen=True)
class Pair:
    """Two ways to do the same work, each made where it runs. `limit`: the ratio that we promise where the
    processor multiplies bf16; `bf16`: the precision of `ours`."""

    ours: Callable[[], Step]
    theirs: Callable[[], Step]
    limit: float
    bf16: bool = DEFAULT.bf16


def family_pair(name: str, limit: float, batch: int) -> Pair:
    """A family's training step as `train run` does it, and the same in float32 with contiguous tensors."""
    return Pair(
        ours=partial(train_step, name, DEFAULT, batch, prepare=True),
        theirs=partial(train_step, name, PLAIN, batch, prepare=False),
        limit=limit,
    )


def train_step(name: str, compute: Compute, batch: int, *, prepare: bool) -> Step:
    """Forward, backward and AdamW on one fixed batch, in the loader's layout where `prepare`d."""
    model = build_model(name, num_classes=2, num_frames=16, size=(112, 112)).train()
    clips = torch.randn(batch, 16, 112, 112, 3).permute(0, 1, 4, 2, 3)  # channels last in memory
    if prepare:
        model = compute.prepare(model)
    else:
        clips = clips.contiguous()
    optimizer = make_optimizer(model, 1e-4, 0.05) if prepare else torch.optim.AdamW(model.parameters(), lr=1e-4)
    return step_of(lambda x: compute.logits(model, x), clips, optimizer)


def step_of(logits: Callable[[Tensor], Tensor], clips: Tensor, optimizer: torch.optim.Optimizer) -> Step:
    """One training step."""
    labels = torch.arange(len(clips)) % 2

    def step() -> None:
        functional.cross_entropy(logits(clips), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def transformer_pair(name: str, twin: str, limit: float) -> Pair:
    """A training step of ours and of the same network in `transformers`: same precision, batch and optimizer."""

    def ours() -> Step:
        model = build_model(name, num_classes=2, num_frames=16, size=(112, 112))
        return transformer_step(model, model)

    def theirs() -> Step:
        import transformers

        family = twin.removesuffix("ForVideoClassification")
        settings = {"image_size": 112, "num_frames": 16, "num_labels": 2}
        model = getattr(transformers, twin)(getattr(transformers, f"{family}Config")(**settings))
        return transformer_step(model, lambda x: model(x).logits)

    return Pair(ours, theirs, limit)


def transformer_step(model: torch.nn.Module, forward: Callable[[Tensor], Tensor], batch: int = 2) -> Step:
    """The step of either."""

    def logits(clips: Tensor) -> Tensor:
        with DEFAULT.autocast():
            return forward(clips).float()

    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4)
    return step_of(logits, torch.randn(batch, 16, 3, 112, 112), optimizer)


def reference_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """`selective_scan_ref` of mamba-ssm: decays of all steps at once, then a loop over slices of them."""
    decay = torch.exp(torch.einsum("bld,dn->bdln", delta, a))
    given = torch.einsum("bld,bln,bld->bdln", delta, b, u)
    h = a.new_zeros(len(u), *a.shape)
    outputs = []
    for t in range(u.shape[1]):
        h = decay[:, :, t] * h + given[:, :, t]
        outputs.append(torch.einsum("bdn,bn->bd", h, c[:, t]))
    return torch.stack(outputs, 1)


def careful_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The same loop with each step's decay made in the step: its backward pass is linear in L, too."""
    h = a.new_zeros(len(u), *a.shape)
    outputs = []
    for u_t, delta_t, b_t, c_t in zip(*(x.unbind(1) for x in (u, delta, b, c)), strict=True):
        h = torch.exp(delta_t[..., None] * a) * h + (delta_t * u_t)[..., None] * b_t[:, None]
        outputs.append((h * c_t[:, None]).sum(-1))
    return torch.stack(outputs, 1)


def scan_pair(peer: Scan, limit: float, batch: int, length: int) -> Pair:
    """Forward and backward of the scan alone, for width 512: D = 1024, N = 16."""
    ours, theirs = (partial(scan_step, scan, batch, length) for scan in (selective_scan, peer))
    return Pair(ours, theirs, limit, bf16=False)


def scan_step(scan: Scan, batch: int, length: int) -> Step:
    """On the same numbers for every scan, and with freed memory kept for each: what is measured is the scan."""
    keep_freed_memory()
    u, raw, grad = (torch.randn(batch, length, 1024) for _ in range(3))
    b, c = torch.randn(2, batch, length, 16)
    a = -torch.arange(1.0, 17).repeat(1024, 1)
    given = [x.requires_grad_() for x in (u, functional.softplus(raw - 4), a, b.clone(), c.clone())]
    return lambda: torch.autograd.backward(scan(*given), grad, inputs=given)


ROWS = {
    "s3d": family_pair("s3d", 5.0, 4),
    "single_frame": family_pair("single_frame", 1.8, 2),
    "late_fusion": family_pair("late_fusion", 1.8, 2),
    "early_fusion": family_pair("early_fusion", 1.8, 16),
    "cnn_lstm": family_pair("cnn_lstm", 1.8, 2),
    "cnn_mamba": family_pair("cnn_mamba", 1.8, 2),
    "vivit": transformer_pair("vivit", "VivitForVideoClassification", 1.0),
    "videomae": transformer_pair("videomae", "VideoMAEForVideoClassification", 1.0),
    "scan L=16": scan_pair(reference_scan, 5.0, 8, 16),
    "scan L=256": scan_pair(reference_scan, 10.0, 2, 256),
    "scan L=16, careful loop": scan_pair(careful_scan, 1.0, 8, 16),
    "scan L=256, careful loop": scan_pair(careful_scan, 1.0, 2, 256),
}


def seconds(step: Step) -> float:
    """Wall-clock time of one step."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def turn(step: Step, least: float = 0.3) -> float:
    """Seconds of a step; of short ones, of as many as take `least` seconds."""
    taken: list[float] = []
    while not taken or sum(taken) < least:
        taken.append(seconds(step))
    return sum(taken) / len(taken)


def matmul_peak(dtype: torch.dtype, side: int = 2048) -> float:
    """FLOP/s of a large matrix product: the best of five."""
    left, right = (torch.randn(side, side).to(dtype) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: torch.mm(left, right)) for _ in range(5))


def serve(row: str, side: str, threads: int, turns: Connection) -> None:
    """A side's process: makes its step and takes it whenever it is told to; answers with seconds."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    pair = ROWS[row]
    step: Step = getattr(pair, side)()
    with FlopCounterMode(display=False) as counter:
        step()  # not timed: memory is fetched and kernels are chosen
    turns.send(counter.get_total_flops())
    dtype = torch.bfloat16 if pair.bf16 else torch.float32
    for wanted in iter(turns.recv, "end"):
        turns.send(turn(step) if wanted == "step" else matmul_peak(dtype))


def measure(row: str, rounds: int, threads: int) -> dict[str, Any]:
    """Medians over rounds in which the sides take turns."""
    spawn = multiprocessing.get_context("spawn")
    sides: dict[str, Connection] = {}
    flops = {}
    for side in ("ours", "theirs"):
        sides[side], end = spawn.Pipe()
        spawn.Process(target=serve, args=(row, side, threads, end), daemon=True).start()
        end.close()  # or a side that dies would leave us waiting
        flops[side] = sides[side].recv()

    def ask(side: str, what: str = "step") -> float:
        time.sleep(0.1)  # idle threads of the other side spin for a moment before they sleep
        sides[side].send(what)
        return float(sides[side].recv())

    theirs, ours, peaks = [], [], []
    for _ in range(rounds):
        theirs.append(ask("theirs"))
        ours.append(ask("ours"))
        peaks.append(ask("ours", "peak"))
    for turns in sides.values():
        turns.send("end")
    ratios = sorted(t / o for t, o in zip(theirs, ours, strict=True))
    rate = flops["ours"] / statistics.median(ours)
    return {
        "ms": round(1000 * statistics.median(ours), 1),
        "peer_ms": round(1000 * statistics.median(theirs), 1),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(ratios[0], 2), round(ratios[-1], 2)],
        "limit": ROWS[row].limit,
        "gflops_per_second": round(rate / 1e9, 1),
        "share_of_peak": round(rate / statistics.median(peaks), 3),
    }


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--only", default="", help="Rows whose name holds this word.")
@click.option("--json", "as_json", is_flag=True)
def main(rounds: int, threads: int, only: str, as_json: bool) -> None:
    """Print milliseconds a step, the ratio to the peer and the share of the measured matmul peak."""
    rows = {name: measure(name, rounds, threads) for name in ROWS if only in name}
    if as_json:
        about = {"precision": DEFAULT.precision, "threads": threads, "rounds": rounds}
        print(json.dumps({**about, "rows": rows}, indent=2))
        return
    print(f"{DEFAULT.precision}, {threads} threads, {rounds} interleaved rounds, torch {torch.__version__}")
    print(f"{'':26}{'ms':>9}{'peer ms':>10}{'ratio':>8}{'promised':>10}{'GFLOP/s':>9}{'of peak':>9}   (ratios)")
    for name, row in rows.items():
        low, high = row["ratio_range"]
        print(
            f"{name:26}{row['ms']:>9}{row['peer_ms']:>10}{row['ratio']:>8}{row['limit']:>10}"
            f"{row['gflops_per_second']:>9}{row['share_of_peak']:>9.1%}   ({low} to {high})"
        )


if __name__ == "__main__":
    main()
