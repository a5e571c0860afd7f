"""The blocks that the networks are made of."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

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

    kind: "sinusoidal" takes frequencies that rise geometrically from 0.2 to 20 (Vaswani
    et al. 2017, scaled to a u of order one); "fourier" draws them from N(0, 10^2), once
    (Tancik et al. 2020). In radians per unit of u.
    """

    omega: Tensor

    def __init__(self, dim: int, frequencies: int = 32, kind: str = "sinusoidal"):
        super().__init__()
        if kind not in ("sinusoidal", "fourier"):
            raise ValueError(f"time must be 'sinusoidal' or 'fourier', got {kind!r}")
        drawn = kind == "fourier"  # random, so they must travel with the weights
        if drawn:
            omega = 10 * torch.randn(frequencies)
        else:
            omega = torch.exp(torch.linspace(math.log(0.2), math.log(20), frequencies))
        self.register_buffer("omega", omega, persistent=drawn)
        self.mlp = nn.Sequential(
            nn.Linear(2 * frequencies, dim), nn.SiLU(), nn.Linear(dim, dim)
        )

    def waves(self, u: Tensor) -> Tensor:
        """Return the sines, then the cosines of u (B,), (B, 2 frequencies)."""
        if u.ndim != 1:
            raise ValueError(f"u must have shape (B,), got {tuple(u.shape)}")
        angle = u[:, None] * self.omega  # (B, frequencies)
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    def forward(self, u: Tensor) -> Tensor:
        """Return the embedding of u (B,), (B, dim)."""
        return self.mlp(self.waves(u))


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


class ConvNeXtBlock(nn.Module):
    """x + mlp(film(norm(depthwise(x)))): space and channels are mixed in turn.

    x: (B, channels, H, W), e: (B, dim) -> (B, out, H, W). Liu et al. (2022), with scale
    and shift from time; the last layer starts at zero, in place of their layer scale.
    """

    def __init__(self, channels: int, out: int, dim: int, expand: int = 4):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.film = nn.Linear(dim, 2 * channels)
        self.wide = nn.Linear(channels, expand * out)
        self.narrow = zero_(nn.Linear(expand * out, out))
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """Return (B, out, H, W)."""
        h = self.norm(self.depthwise(x).movedim(1, 3))  # (B, H, W, channels)
        h = modulate(h, self.film(e)[:, None, None, :])
        h = self.narrow(F.gelu(self.wide(h)))
        return self.skip(x) + h.movedim(3, 1)


def modulate(h: Tensor, film: Tensor) -> Tensor:
    """Return shift + h (1 + scale): FiLM on the last dimension (Perez et al. 2018)."""
    scale, shift = film.chunk(2, dim=-1)
    return torch.addcmul(shift, h, 1 + scale)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return v mixed by the softmax of q.k / sqrt(d), each (B, heads, d, N).

    Every position asks all N: 2 N^2 d multiplications. Vaswani et al. (2017).
    """
    weight = torch.softmax(q.transpose(-1, -2) @ k / q.shape[-2] ** 0.5, dim=-1)
    return v @ weight.transpose(-1, -2)


def attend_linearly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return v mixed by softmax(q).softmax(k), each (B, heads, d, N).

    q is normalised over d, k over the N positions, so the N x N weights q.k are
    positive, sum to one, and need not be formed: 2 N d^2 multiplications.
    Katharopoulos et al. (2020), in the form of Shen et al. (2021).
    """
    context = v @ k.softmax(dim=-1).transpose(-1, -2)  # (B, heads, d, d)
    return context @ q.softmax(dim=-2)


class Attention(nn.Module):
    """x + attention over all H W positions, (B, C, H, W) -> the same."""

    mix = staticmethod(attend)

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
        return x + self.out(self.mix(q, k, v).reshape(B, C, H, W))


class LinearAttention(Attention):
    """Attention whose cost grows with the positions, not with their square."""

    mix = staticmethod(attend_linearly)


class CrossAttention(nn.Module):
    """x + what every place learns from the words, (B, C, H, W) -> the same.

    The queries come from the places, the keys and values from words (B, L, width), of
    which mask (B, L) is true where there is one: Rombach et al. (2022), section 3.3.
    The weights are the output of .softmax, see `attention_maps`.
    """

    def __init__(self, channels: int, width: int, heads: int = 4, groups: int = 8):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{heads} heads must divide the {channels} channels")
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(width, channels)
        self.value = nn.Linear(width, channels)
        self.softmax = nn.Softmax(dim=-1)
        self.out = zero_(nn.Linear(channels, channels))

    def forward(self, x: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """Return x with every place having read the words, (B, C, H, W)."""
        q = self._heads(self.query(self.norm(x).flatten(2).transpose(1, 2)))
        k, v = self._heads(self.key(words)), self._heads(self.value(words))
        score = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5  # (B, heads, H W, L)
        score = score.masked_fill(~mask[:, None, None], -math.inf)
        weight = self.softmax(score.unflatten(2, x.shape[2:])).to(v)
        h = self.out((weight.flatten(2, 3) @ v).transpose(1, 2).flatten(2))
        return x + h.transpose(1, 2).reshape(x.shape)

    def _heads(self, h: Tensor) -> Tensor:
        """(B, N, C) -> (B, heads, N, C / heads)."""
        return h.unflatten(-1, (self.heads, -1)).transpose(1, 2)


@contextmanager
def attention_maps(net: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the weights of every cross-attention while the block runs.

    The list gains one tensor (B, heads, H, W, L) per layer and call of the net, in the
    order of use; over the L words each place's weights sum to one. Hooks on the layers'
    .softmax do it, and are gone afterwards. Guidance calls the net with a batch of 2 B,
    the nulls first.
    """
    maps: list[Tensor] = []
    hooks = [
        layer.softmax.register_forward_hook(
            lambda module, inputs, weight: maps.append(weight.detach())
        )
        for layer in net.modules()
        if isinstance(layer, CrossAttention)
    ]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()
