"""The selective scan of Mamba: h[t] = exp(Δ[t]·A)·h[t-1] + Δ[t]·B[t]·u[t],  y[t] = C[t]·h[t] (Gu & Dao 2023, arXiv
2312.00752, algorithm 2). Three forms that agree: a CUDA kernel, a blocked one for eager CPU, and a traceable one.

All take u, Δ [B, L, D], A [D, N] (negative), B, C [B, L, N] in float32 and return y [B, L, D].
"""

import functools
import importlib.util
import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.precision import full_precision

CHUNK = 16  # steps at a time: decays and states of one sample (D = 1024, N = 16) then fit a core's cache
LOG2_E = math.log2(math.e)


def selective_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """y [B, L, D] by the fastest form at hand. float32 in, float32 out, whatever autocast says."""
    with full_precision(u.device):
        u, delta, a, b, c = (tensor.float() for tensor in (u, delta, a, b, c))
        if torch.compiler.is_compiling():  # so it is under torch.compile and torch.export
            return doubling_scan(u, delta, a, b, c)
        if u.is_cuda and (kernel := find_kernel()) is not None:
            return _kernel_scan(kernel, u, delta, a, b, c)
        if u.device.type == "cpu":
            return blocked_scan(u, delta, a, b, c)
        return doubling_scan(u, delta, a, b, c)


@functools.cache
def find_kernel() -> Callable[..., Tensor] | None:
    """mamba-ssm's scan, or None. Where it is installed and of no use (its CUDA part is built only on demand), the
    log says why, once."""
    if importlib.util.find_spec("mamba_ssm") is None:
        return None
    try:
        importlib.import_module("selective_scan_cuda")
        interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except (ImportError, OSError, RuntimeError) as error:  # not built, built for another torch, no compiler
        logging.getLogger(__name__).warning("mamba-ssm cannot be used, Mamba takes longer without: %s", error)
        return None
    kernel: Callable[..., Tensor] = interface.selective_scan_fn
    return kernel


def _kernel_scan(
    kernel: Callable[..., Tensor], u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor
) -> Tensor:
    rows = (tensor.transpose(1, 2).contiguous() for tensor in (u, delta, b, c))  # the kernel has time last
    u, delta, b, c = rows
    return kernel(u, delta, a.contiguous(), b, c).transpose(1, 2)


def doubling_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """All steps at once in log₂ L rounds (Hillis & Steele 1986): round k joins what is 2^k steps apart.

    Decays are at most 1, so their products go to 0 and never overflow. Plain tensor code: it can be traced.
    """
    decay = torch.exp(delta[..., None] * a)  # [B, L, D, N]
    state = (delta * u)[..., None] * b[:, :, None]
    length, reach = u.shape[1], 1
    while reach < length:
        earlier = functional.pad(state[:, :-reach], (0, 0, 0, 0, reach, 0))
        state = state + decay * earlier
        decay = decay * functional.pad(decay[:, :-reach], (0, 0, 0, 0, reach, 0))
        reach *= 2
    return (state @ c[..., None]).squeeze(-1)


def blocked_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """One sample and CHUNK steps at a time, in the cache; the backward pass makes the states anew."""
    y: Tensor = _BlockedScan.apply(u, delta, a, b, c)  # type: ignore[no-untyped-call]
    return y


class _BlockedScan(torch.autograd.Function):
    """Between the passes only the state at the start of each chunk is kept, [B, chunks, N, D].

    Inside, D is the last dimension and exp is a power of two: both are what a CPU's vector units like.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        rate = (a.t() * LOG2_E).contiguous()  # [N, D]
        given = delta * u
        y = torch.empty_like(u, memory_format=torch.contiguous_format)
        chunks = _chunks(u.shape[1])
        starts = u.new_zeros(len(u), len(chunks), *rate.shape)
        decay, states = _buffers(u, rate)
        for sample in range(len(u)):
            for number, steps in enumerate(chunks):
                here = sample, steps
                h = states[: steps.stop - steps.start + 1]
                h[0] = starts[sample, number]
                _fill(decay, h, delta[here], given[here], rate, b[here])
                torch.bmm(c[here][:, None], h[1:], out=y[here][:, None])
                if number + 1 < len(chunks):
                    starts[sample, number + 1] = h[-1]
        ctx.save_for_backward(u, delta, rate, b, c, starts)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        u, delta, rate, b, c, starts = ctx.saved_tensors
        dy, given = dy.contiguous(), delta * u
        d_given, d_delta, d_rate = torch.empty_like(given), torch.empty_like(given), torch.zeros_like(rate)
        d_b, d_c = torch.empty_like(b), torch.empty_like(c)
        decay, states = _buffers(u, rate)
        grads = torch.empty_like(decay)
        for sample in range(len(u)):
            later = torch.zeros_like(rate)  # what the next chunk's first step asks of this one's last state
            for number, steps in reversed(list(enumerate(_chunks(u.shape[1])))):
                here, count = (sample, steps), steps.stop - steps.start
                h, power, g = states[: count + 1], decay[:count], grads[:count]
                h[0] = starts[sample, number]
                _fill(power, h, delta[here], given[here], rate, b[here])
                torch.mul(c[here][:, :, None], dy[here][:, None], out=g)
                g[-1] += later
                for t in range(count - 1, 0, -1):
                    g[t - 1].addcmul_(power[t], g[t])
                later = power[0] * g[0]
                torch.bmm(dy[here][:, None], h[1:].transpose(1, 2), out=d_c[here][:, None])
                torch.bmm(given[here][:, None], g.transpose(1, 2), out=d_b[here][:, None])
                torch.bmm(b[here][:, None], g, out=d_given[here][:, None])
                slope = power.mul_(h[:-1]).mul_(g)  # by the exponent Δ·A, [steps, N, D]
                torch.sum(torch.mul(slope, rate, out=g), 1, out=d_delta[here])
                d_rate += torch.mul(slope, delta[here][:, None], out=g).sum(0)
        d_delta = (d_delta / LOG2_E).addcmul_(d_given, u)
        return d_given * delta, d_delta, d_rate.t(), d_b, d_c


def _chunks(length: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK)]


def _buffers(u: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """For decays [steps, N, D] and states [steps + 1, N, D]."""
    steps = min(CHUNK, u.shape[1])
    return u.new_empty(steps, *rate.shape), u.new_empty(steps + 1, *rate.shape)


def _fill(decay: Tensor, h: Tensor, delta: Tensor, given: Tensor, rate: Tensor, b: Tensor) -> None:
    """Decays [steps, N, D], and states h[1:] from the state h[0] before them."""
    decay = decay[: len(delta)]
    torch.mul(delta[:, None], rate, out=decay).exp2_()
    torch.mul(b[:, :, None], given[:, None], out=h[1:])
    for t in range(len(delta)):
        h[t + 1].addcmul_(decay[t], h[t])
