"""The blocks that the networks are made of."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Cond = dict[str, Tensor]  # what a net is told besides x and time, each (B, ...)


def zero_(layer: nn.Module) -> nn.Module:
    """Zero a layer's weight and bias: its branch starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class TimeEmbedding(nn.Module):
    """u (B,) -> (B, dim): sines and cosines of u, then a small perceptron.

    The frequencies rise geometrically from 0.2 to 20 (Vaswani et al. 2017, scaled to
    a u of order one).
    """

    def __init__(self, dim: int, frequencies: int = 32):
        super().__init__()
        omega = torch.exp(torch.linspace(math.log(0.2), math.log(20), frequencies))
        self.register_buffer("omega", omega, persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(2 * frequencies, dim), nn.SiLU(), nn.Linear(dim, dim)
        )

    def forward(self, u: Tensor) -> Tensor:
        """Return the embedding of u (B,), (B, dim)."""
        if u.ndim != 1:
            raise ValueError(f"u must have shape (B,), got {tuple(u.shape)}")
        angle = u[:, None] * self.omega  # (B, frequencies)
        return self.mlp(torch.cat([angle.sin(), angle.cos()], dim=1))


class ResBlock(nn.Module):
    """x + conv(film(conv(x))): group norm, SiLU, and a scale and shift from time.

    x: (B, channels, H, W), e: (B, dim) -> (B, out, H, W). He et al. (2016), Perez et
    al. (2018), Wu and He (2018). The last convolution starts at zero.
    """

    def __init__(self, channels: int, out: int, dim: int, groups: int = 8):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.film = nn.Linear(dim, 2 * out)
        self.norm2 = nn.GroupNorm(groups, out)
        self.conv2 = zero_(nn.Conv2d(out, out, 3, padding=1))
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Return (B, out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.film(e)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        return self.skip(x) + self.conv2(F.silu(h))


class Attention(nn.Module):
    """x + attention over all H W positions, (B, C, H, W) -> the same."""

    def __init__(self, channels: int, heads: int = 4, groups: int = 8):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{heads} heads must divide the {channels} channels")
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return x with every position having looked at all others."""
        B, C, H, W = x.shape
        qkv = self.qkv(self.norm(x)).reshape(B, 3, self.heads, -1, H * W)
        q, k, v = qkv.unbind(1)  # each (B, heads, C / heads, H W)
        weight = torch.softmax(q.transpose(-1, -2) @ k / q.shape[-2] ** 0.5, dim=-1)
        h = v @ weight.transpose(-1, -2)
        return x + self.out(h.reshape(B, C, H, W))
