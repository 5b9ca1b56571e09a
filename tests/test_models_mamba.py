"""The selective scan against its definition, and the Mamba block around it."""

import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models import scan
from models.mamba import Mamba

FORMS = {"blocked": scan.blocked_scan, "doubling": scan.doubling_scan}


def by_definition(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Step by step, in double precision."""
    u, delta, a, b, c = (tensor.double() for tensor in (u, delta, a, b, c))
    h = u.new_zeros(len(u), *a.shape)
    outputs = []
    for t in range(u.shape[1]):
        h = (delta[:, t, :, None] * a).exp() * h + (delta[:, t] * u[:, t])[..., None] * b[:, t, None]
        outputs.append((h * c[:, t, None]).sum(-1))
    return torch.stack(outputs, 1).float()


def inputs(length: int, step: float = 0.0) -> list[Tensor]:
    """u, Δ, A, B, C for 6 channels and 4 states, of one sample more than the blocked form takes at a time; `step`
    moves Δ."""
    draw = torch.Generator().manual_seed(length)
    u, raw = (torch.randn(scan.SAMPLES + 1, length, 6, generator=draw) for _ in range(2))
    b, c = (torch.randn(scan.SAMPLES + 1, length, 4, generator=draw) for _ in range(2))
    a = -torch.arange(1.0, 5).repeat(6, 1)
    return [tensor.requires_grad_() for tensor in (u, functional.softplus(raw + step).detach(), a, b, c)]


def relative_errors(form: str, given: list[Tensor]) -> list[float]:
    """Of the output and of the five gradients."""
    results = []
    for function in (by_definition, FORMS[form]):
        y = function(*given)
        weights = torch.linspace(-1, 1, y.numel()).view_as(y)
        results.append([y, *torch.autograd.grad((y * weights).sum(), given, materialize_grads=True)])
    return [((x - exact).norm() / exact.norm().clamp(min=1e-9)).item() for exact, x in zip(*results, strict=True)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 64, 100])
def test_every_form_of_the_scan_is_the_scan_and_so_are_its_gradients(form: str, length: int) -> None:
    assert max(relative_errors(form, inputs(length))) < 1e-5


@pytest.mark.parametrize("length", [16, 17])
def test_the_gradients_of_one_pass_can_be_asked_for_twice(length: int) -> None:
    given = inputs(length)
    total = scan.blocked_scan(*given).sum()
    once, twice = (torch.autograd.grad(total, given, retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, once, twice))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("step", [-12.0, 60.0])
def test_tiny_and_huge_steps_are_no_danger(form: str, step: float) -> None:
    given = inputs(40, step)
    y = FORMS[form](*given)
    y.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(y, by_definition(*given), rtol=1e-4, atol=1e-6)
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in given)


def test_under_autocast_the_scan_stays_in_full_precision() -> None:
    given = inputs(16)
    with torch.autocast("cpu", torch.bfloat16):
        y = scan.selective_scan(*given)
    assert y.dtype == torch.float32 and torch.equal(y, scan.selective_scan(*given))


@pytest.fixture
def mamba_ssm(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A mamba-ssm without its CUDA part, whose scan is the definition with time last."""

    def selective_scan_fn(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        u, delta, b, c = (tensor.transpose(1, 2) for tensor in (u, delta, b, c))
        return by_definition(u, delta, a, b, c).transpose(1, 2)

    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(module, "selective_scan_fn", selective_scan_fn, raising=False)
    scan.find_kernel.cache_clear()
    yield module
    scan.find_kernel.cache_clear()


def test_the_kernel_of_mamba_ssm_is_called_with_time_last(
    mamba_ssm: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", ModuleType("selective_scan_cuda"))
    kernel = scan.find_kernel()
    assert kernel is mamba_ssm.selective_scan_fn
    given = inputs(16)
    torch.testing.assert_close(scan._kernel_scan(kernel, *given), by_definition(*given))


@pytest.mark.usefixtures("mamba_ssm")
def test_a_mamba_ssm_without_its_kernel_is_done_without_and_the_log_says_why_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert scan.find_kernel() is None and scan.find_kernel() is None
    (line,) = caplog.messages
    assert "mamba-ssm cannot be used" in line and "No module named 'selective_scan_cuda'" in line


def test_a_block_is_causal() -> None:
    torch.manual_seed(0)
    block = Mamba(32)
    x = torch.randn(2, 12, 32)
    later = x.clone()
    later[:, 7:] = torch.randn(2, 5, 32)
    torch.testing.assert_close(block(x)[:, :7], block(later)[:, :7])
    assert not torch.allclose(block(x)[:, 7:], block(later)[:, 7:])


def test_a_block_has_mamba_ssms_names_and_starting_values() -> None:
    block = Mamba(512)
    assert {name.partition(".")[0] for name in block.state_dict()} == {
        "in_proj", "conv1d", "x_proj", "dt_proj", "A_log", "D", "out_proj",
    }  # fmt: skip
    assert sum(p.numel() for p in block.parameters()) == 1_694_720
    steps = functional.softplus(block.dt_proj.bias)
    assert 0.999e-3 < steps.min() < 2e-3 and 0.05 < steps.max() < 0.1001
    torch.testing.assert_close(block.A_log[5].exp(), torch.arange(1.0, 17))
    assert block.undecayed() == {block.A_log, block.D}
