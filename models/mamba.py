"""Mamba blocks in plain PyTorch (Gu & Dao 2023, arXiv 2312.00752), with the parameter names of mamba-ssm."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.scan import selective_scan


class Mamba(nn.Module):
    """One mixer, causal in time: 1,694,720 parameters for width 512, state 16, conv 4, expand 2."""

    def __init__(self, width: int, *, state: int = 16, conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        inner, self.rank, self.state = expand * width, math.ceil(width / 16), state
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, conv, groups=inner, padding=conv - 1)
        self.x_proj = nn.Linear(inner, self.rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        self._init_steps()

    def _init_steps(self, smallest: float = 1e-3, largest: float = 0.1) -> None:
        """Step sizes Δ spread log-evenly over [smallest, largest]: the bias is softplus⁻¹ of them."""
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        low, high = math.log(smallest), math.log(largest)
        steps = (torch.rand(len(self.D)) * (high - low) + low).exp().clamp(min=1e-4)
        with torch.no_grad():
            self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, width] → [B, L, width]; step t sees steps 0 … t. Δ, A and the scan are in float32."""
        u, gate = self.in_proj(x).chunk(2, dim=-1)  # [B, L, inner]
        u = self.conv1d(u.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)  # the padding's tail is cut
        u = functional.silu(u)
        low_rank, b, c = self.x_proj(u).split([self.rank, self.state, self.state], dim=-1)
        delta = functional.linear(low_rank, self.dt_proj.weight).float() + self.dt_proj.bias.float()
        y = selective_scan(u, functional.softplus(delta), -self.A_log.float().exp(), b, c)
        y = y + u.float() * self.D.float()
        mixed: Tensor = self.out_proj((y * functional.silu(gate.float())).to(x.dtype))
        return mixed

    def undecayed(self) -> set[nn.Parameter]:
        """What weight decay would pull towards another dynamics."""
        return {self.A_log, self.D}


class MambaLayer(nn.Module):
    """x + mixer(norm(x)), as in mamba-ssm with RMSNorm. The sum stays in float32 under autocast."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.mixer = Mamba(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, width] → [B, L, width]."""
        residual: Tensor = x.float()
        mixed: Tensor = self.mixer(self.norm(residual))
        return residual + mixed
