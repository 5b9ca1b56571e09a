"""Training steps on a CPU against what they are compared with: same batch, interleaved, medians of the ratios.

    python benchmarks/models.py                       # all rows
    python benchmarks/models.py --only scan --rounds 9 --threads 2

CNNs: our defaults (bf16 autocast, channels last) against the plain step (float32, contiguous). Transformers:
against the same network in `transformers`, in bf16, too. Scan: forward and backward against the sequential
reference loop of mamba-ssm (`selective_scan_ref`), and against the same loop written with care. The share of peak:
FLOPs of the step (a multiply-add is two, backward counted as it runs) per second over those of a large matrix
product, measured in the same run and precision. The scan is all elementwise work, of which such counts know
nothing: its share says little.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
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
from train.compute import Compute
from train.optim import make_optimizer

Step = Callable[[], object]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Pair:
    """Two ways to do the same work. `limit`: the ratio that we promise; `bf16`: the precision of `ours`."""

    ours: Step
    theirs: Step
    limit: float
    bf16: bool


def family_pair(name: str, limit: float, batch: int, *, frames: int = 16, side: int = 112) -> Pair:
    """A family's training step as `train run` does it, and the same in float32 with contiguous tensors."""
    return Pair(
        ours=train_step(name, Compute(CPU, bf16=True), batch, frames, side, prepare=True),
        theirs=train_step(name, Compute(CPU, bf16=False), batch, frames, side, prepare=False),
        limit=limit,
        bf16=True,
    )


def train_step(name: str, compute: Compute, batch: int, frames: int, side: int, *, prepare: bool) -> Step:
    """Forward, backward and AdamW on one fixed batch, in the loader's layout where `prepare`d."""
    torch.manual_seed(0)
    model = build_model(name, num_classes=2, num_frames=frames, size=(side, side)).train()
    clips = torch.randn(batch, frames, side, side, 3).permute(0, 1, 4, 2, 3)  # channels last in memory
    if prepare:
        model = compute.prepare(model)
    else:
        clips = clips.contiguous()
    labels = torch.arange(batch) % 2
    optimizer = make_optimizer(model, 1e-4, 0.05) if prepare else torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        functional.cross_entropy(compute.logits(model, clips), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def transformer_pair(name: str, twin: str, limit: float, batch: int = 2) -> Pair:
    """A training step of ours and of the same network in `transformers`: same precision, batch and optimizer."""
    import transformers

    family = twin.removesuffix("ForVideoClassification")
    settings = {"image_size": 112, "num_frames": 16, "num_labels": 2}
    theirs = getattr(transformers, twin)(getattr(transformers, f"{family}Config")(**settings))
    clips, labels = torch.randn(batch, 16, 3, 112, 112), torch.arange(batch) % 2
    compute = Compute(CPU, bf16=True)

    def step_of(model: torch.nn.Module, logits: Callable[[Tensor], Tensor]) -> Step:
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

        def step() -> None:
            with compute.autocast():
                loss = functional.cross_entropy(logits(clips).float(), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()

        return step

    ours = build_model(name, num_classes=2, num_frames=16, size=(112, 112))
    return Pair(step_of(ours, ours), step_of(theirs, lambda x: theirs(x).logits), limit, bf16=True)


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


def scan_pair(peer: Callable[..., Tensor], limit: float, batch: int, length: int) -> Pair:
    """Forward and backward of the scan alone, for width 512: D = 1024, N = 16."""
    torch.manual_seed(0)
    u, raw, grad = (torch.randn(batch, length, 1024) for _ in range(3))
    b, c = torch.randn(2, batch, length, 16)
    a = -torch.arange(1.0, 17).repeat(1024, 1)
    given = [x.requires_grad_() for x in (u, functional.softplus(raw - 4), a, b.clone(), c.clone())]

    def step(scan: Callable[..., Tensor]) -> Step:
        return lambda: torch.autograd.backward(scan(*given), grad, inputs=given)

    return Pair(step(selective_scan), step(peer), limit, bf16=False)


# name -> how it is made, on demand: not all of them fit into memory together
ROWS: dict[str, Callable[[], Pair]] = {
    "s3d": lambda: family_pair("s3d", 5.0, 4),
    "single_frame": lambda: family_pair("single_frame", 1.8, 2),
    "late_fusion": lambda: family_pair("late_fusion", 1.8, 2),
    "early_fusion": lambda: family_pair("early_fusion", 1.8, 16),
    "cnn_lstm": lambda: family_pair("cnn_lstm", 1.8, 2),
    "cnn_mamba": lambda: family_pair("cnn_mamba", 1.8, 2),
    "vivit": lambda: transformer_pair("vivit", "VivitForVideoClassification", 1.0),
    "videomae": lambda: transformer_pair("videomae", "VideoMAEForVideoClassification", 1.0),
    "scan L=16": lambda: scan_pair(reference_scan, 5.0, 8, 16),
    "scan L=256": lambda: scan_pair(reference_scan, 10.0, 2, 256),
    "scan L=16, careful loop": lambda: scan_pair(careful_scan, 1.0, 8, 16),
    "scan L=256, careful loop": lambda: scan_pair(careful_scan, 1.0, 2, 256),
}


def seconds(step: Step) -> float:
    """Wall-clock time of one step."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def matmul_peak(dtype: torch.dtype, side: int = 2048) -> float:
    """FLOP/s of a large matrix product: the best of five."""
    left, right = (torch.randn(side, side).to(dtype) for _ in range(2))
    return 2 * side**3 / min(seconds(lambda: torch.mm(left, right)) for _ in range(5))


def measure(pair: Pair, rounds: int) -> dict[str, Any]:
    """Medians over interleaved rounds; one of each is thrown away first."""
    with FlopCounterMode(display=False) as counter:
        pair.ours()
    pair.theirs()
    ours, theirs, peaks = [], [], []
    for _ in range(rounds):
        theirs.append(seconds(pair.theirs))
        ours.append(seconds(pair.ours))
        peaks.append(matmul_peak(torch.bfloat16 if pair.bf16 else torch.float32))
    ratios = sorted(t / o for t, o in zip(theirs, ours, strict=True))
    rate = counter.get_total_flops() / statistics.median(ours)
    return {
        "ms": round(1000 * statistics.median(ours), 1),
        "peer_ms": round(1000 * statistics.median(theirs), 1),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_range": [round(ratios[0], 2), round(ratios[-1], 2)],
        "limit": pair.limit,
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
    torch.set_num_threads(threads)
    rows = {name: measure(make(), rounds) for name, make in ROWS.items() if only in name}
    if as_json:
        print(json.dumps({"threads": threads, "rounds": rounds, "rows": rows}, indent=2))
        return
    print(f"{threads} threads, {rounds} interleaved rounds, torch {torch.__version__}")
    print(f"{'':26}{'ms':>9}{'peer ms':>10}{'ratio':>8}{'promised':>10}{'GFLOP/s':>9}{'of peak':>9}   (ratios)")
    for name, row in rows.items():
        low, high = row["ratio_range"]
        print(
            f"{name:26}{row['ms']:>9}{row['peer_ms']:>10}{row['ratio']:>8}{row['limit']:>10}"
            f"{row['gflops_per_second']:>9}{row['share_of_peak']:>9.1%}   ({low} to {high})"
        )


if __name__ == "__main__":
    main()
