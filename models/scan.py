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

SAMPLES, CHUNK = 4, 16  # at a time: few enough for a cache (D = 1024, N = 16: 4 MiB), enough for threads
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
    """SAMPLES samples and CHUNK steps at a time, in the cache. Decays and states are kept for the backward pass if
    the sequence is one chunk, else made anew there."""
    keep = torch.is_grad_enabled() and u.shape[1] <= CHUNK
    y: Tensor = _BlockedScan.apply(u, delta, a, b, c, keep)  # type: ignore[no-untyped-call]
    return y


class _BlockedScan(torch.autograd.Function):
    """Between the passes the state at the start of each chunk is kept, [B, chunks, N, D], and where `keep` is true
    each block's decays and states.

    Inside, D is the last dimension and exp is a power of two: both are what a CPU's vector units like.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, keep: bool) -> Tensor:
        rate = (a.t() * LOG2_E).contiguous()  # [N, D]
        given = delta * u
        y = torch.empty_like(u, memory_format=torch.contiguous_format)
        chunks = _slices(u.shape[1], CHUNK)
        starts = u.new_zeros(len(u), len(chunks), *rate.shape)
        kept: list[Tensor] = []
        decays, states = _buffers(2, u, rate)
        for samples in _slices(len(u), SAMPLES):
            for number, steps in enumerate(chunks):
                here = samples, steps
                if keep:
                    decays, states = _buffers(2, u, rate)
                decay, h = _run(decays, states, starts[samples, number], delta[here], given[here], rate, b[here])
                y[here] = torch.einsum("bln,blnd->bld", c[here], h)
                if number + 1 < len(chunks):
                    starts[samples, number + 1] = h[:, -1]
                if keep:
                    kept += decay, h
        ctx.save_for_backward(u, delta, rate, b, c, starts, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, rate, b, c, starts, *kept = ctx.saved_tensors
        dy, given = dy.contiguous(), delta * u
        d_given, d_delta, d_rate = torch.empty_like(given), torch.empty_like(given), torch.zeros_like(rate)
        d_b, d_c = torch.empty_like(b), torch.empty_like(c)
        decays, states, grads, slopes = _buffers(4, u, rate)
        for samples in reversed(_slices(len(u), SAMPLES)):
            later = torch.zeros_like(starts[samples, 0])  # what the next chunk asks of this one's last state
            for number, steps in reversed(list(enumerate(_slices(u.shape[1], CHUNK)))):
                here, start = (samples, steps), starts[samples, number]
                if kept:
                    h, decay = kept.pop(), kept.pop()
                else:
                    decay, h = _run(decays, states, start, delta[here], given[here], rate, b[here])
                g, slope = (buffer[: h.shape[0], : h.shape[1]] for buffer in (grads, slopes))
                torch.mul(c[here][..., None], dy[here][:, :, None], out=g)
                g[:, -1] += later
                for t in range(g.shape[1] - 1, 0, -1):
                    g[:, t - 1].addcmul_(decay[:, t], g[:, t])
                later = decay[:, 0] * g[:, 0]
                d_c[here] = torch.einsum("bld,blnd->bln", dy[here], h)
                d_b[here] = torch.einsum("bld,blnd->bln", given[here], g)
                d_given[here] = torch.einsum("bln,blnd->bld", b[here], g)
                torch.mul(decay, g, out=slope)  # by the exponent Δ·A
                slope[:, 1:] *= h[:, :-1]
                slope[:, 0] *= start
                d_delta[here] = torch.mul(slope, rate, out=g).sum(2)
                d_rate += slope.mul_(delta[here][:, :, None]).sum((0, 1))
        d_delta = (d_delta / LOG2_E).addcmul_(d_given, u)
        return d_given * delta, d_delta, d_rate.t(), d_b, d_c, None


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _buffers(count: int, u: Tensor, rate: Tensor) -> list[Tensor]:
    """Memory for a block's decays, states and their gradients, each [SAMPLES, CHUNK, N, D] or less."""
    block = min(SAMPLES, len(u)), min(CHUNK, u.shape[1])
    return list(u.new_empty(count, *block, *rate.shape))


def _run(
    decay: Tensor, h: Tensor, start: Tensor, delta: Tensor, given: Tensor, rate: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """Decays and states of a block, both [B, steps, N, D], from the state before it [B, N, D]."""
    decay, h = (buffer[: delta.shape[0], : delta.shape[1]] for buffer in (decay, h))
    torch.mul(delta[:, :, None], rate, out=decay).exp2_()
    torch.mul(b[..., None], given[:, :, None], out=h)
    h[:, 0].addcmul_(decay[:, 0], start)
    for t in range(1, h.shape[1]):
        h[:, t].addcmul_(decay[:, t], h[:, t - 1])
    return decay, h
