"""A diffusion transformer: pictures as sequences of patches."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Cond, attend, modulate, zero_
from .conditioning import Conditioned


class Transformer(Conditioned):
    """net(x (B, C, H, W), u (B,), {"label": (B,)} or None) -> (B, C, H, W).

    A small DiT (Peebles and Xie 2023): each patch of patch x patch pixels becomes a
    token, told where it lies by fixed sines; depth blocks of attention and perceptron,
    steered by time and label; each token becomes a patch again. Labels as in UNet.
    Raises ValueError for sides that patch does not divide, or a width that 4 or heads
    do not.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 192,
        depth: int = 7,
        heads: int = 6,
        patch: int = 4,
        dim: int = 128,
        classes: int | None = None,
        time: str = "sinusoidal",
    ):
        if min(depth, heads, patch) < 1 or width % heads or width % 4:
            raise ValueError(
                "width must be a multiple of heads and of 4; depth, heads, patch >= 1"
            )
        super().__init__(channels, patch, dim, classes, time)
        self.width = width
        self.enter = nn.Conv2d(channels, width, patch, stride=patch)
        self.blocks = nn.ModuleList(DiTBlock(width, heads, dim) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.film = zero_(nn.Linear(dim, 2 * width))
        self.leave = zero_(nn.Linear(width, channels * patch**2))

    def forward(self, x: Tensor, u: Tensor, cond: Cond | None = None) -> Tensor:
        """Return the net's output at x; cond["label"] (B,) int64, or None for null."""
        self.check(x, "a smaller patch")
        e = F.silu(self.embedding(u, cond))
        h = self.enter(x)  # (B, width, rows, columns)
        rows, columns = h.shape[2:]
        h = h.flatten(2).transpose(1, 2) + places(rows, columns, self.width).to(h)
        for block in self.blocks:
            h = block(h, e)
        h = self.leave(modulate(self.norm(h), self.film(e)[:, None]))
        h = h.transpose(1, 2).unflatten(2, (rows, columns))
        return F.pixel_shuffle(h, self.factor)


class DiTBlock(nn.Module):
    """h (B, N, width), e (B, dim) -> like h: attention, then a perceptron.

    Time sets the scale and shift after each norm, and a gate before each sum; the gates
    start at zero, so that the block starts as the identity (adaLN-zero).
    """

    def __init__(self, width: int, heads: int, dim: int, expand: int = 4):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, expand * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(expand * width, width),
        )
        self.film = zero_(nn.Linear(dim, 6 * width))

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """Return (B, N, width)."""
        film = self.film(e)[:, None]  # (B, 1, 6 width)
        first, gate, second, last = film.split(
            [h.shape[-1] * n for n in (2, 1, 2, 1)], -1
        )
        h = h + gate * self.attention(modulate(self.norm(h), first))
        return h + last * self.mlp(modulate(self.norm(h), second))

    def attention(self, h: Tensor) -> Tensor:
        """Return every token's mixture of all, (B, N, width)."""
        qkv = self.qkv(h).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 4, 1)  # each (B, heads, width / heads, N)
        return self.out(attend(q, k, v).flatten(1, 2).transpose(1, 2))


def places(rows: int, columns: int, width: int) -> Tensor:
    """Return what marks each patch's place, (rows * columns, width): sines of both."""
    omega = torch.exp(-math.log(1e4) * torch.arange(width // 4) / (width // 4))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angle = torch.stack([y.flatten(), x.flatten()], dim=1)[..., None] * omega
    return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(1)
