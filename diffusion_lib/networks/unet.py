"""A U-Net with most of its weight at low resolution, where convolutions are fast."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import (
    Attention,
    Cond,
    ConvNeXtBlock,
    CrossAttention,
    LinearAttention,
    ResBlock,
    zero_,
)
from .conditioning import Conditioned

BLOCKS = {"ResBlock": ResBlock, "ConvNeXtBlock": ConvNeXtBlock}
ATTENTION = {"full": Attention, "linear": LinearAttention, "none": None}


class UNet(Conditioned):
    """net(x (B, C, H, W), u (B,), cond or None) -> (B, C, H, W).

    cond: {"label": (B,)}, {"text": tokens (B, L)}, or both, of what it was built for. A
    thin convolution at full resolution, then width * multipliers[i] channels at 1/2,
    1/4, ... of it; attention at the lowest; skips between equals (Ronneberger et al.
    2015). 28 x 28 pictures are worked on at 14 x 14 and 7 x 7. classes: number of
    labels, or None; one more, the null label, stands for "not said". block: the name of
    the blocks' class; attention: "full", "linear" or "none"; skips=False cuts every
    connection that passes the lowest level by; time: kind of TimeEmbedding; text:
    options of a TextEncoder, whose words every level reads by cross-attention, or None;
    stride: 1 leaves the first level at full resolution, for latents of few places.
    Raises ValueError for sides that stride 2^(levels - 1) does not divide, labels or
    tokens out of range, or unknown names.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 64,
        multipliers: tuple[int, ...] = (1, 2),
        blocks: int = 2,
        stem: int = 16,
        dim: int = 128,
        classes: int | None = None,
        block: str = "ResBlock",
        attention: str = "full",
        skips: bool = True,
        time: str = "sinusoidal",
        text: dict[str, Any] | None = None,
        stride: int = 2,
    ):
        if width % 8 or stem % 4 or blocks < 1 or not multipliers or stride < 1:
            raise ValueError("width must be a multiple of 8, stem of 4; blocks >= 1")
        if block not in BLOCKS or attention not in ATTENTION:
            raise ValueError(
                f"no block {block!r} or no attention {attention!r}: there are "
                f"{list(BLOCKS)} and {list(ATTENTION)}"
            )
        factor = stride * 2 ** (len(multipliers) - 1)
        super().__init__(channels, factor, dim, classes, time, text)
        widths = [width * m for m in multipliers]
        self.stride, self.skips = stride, skips
        read = self.text.width if self.text else None
        kinds = BLOCKS[block], ATTENTION[attention]
        parts = _Parts(widths, blocks, dim, *kinds, skips, read)
        self.stem = nn.Conv2d(channels, stem, 3, padding=1)
        self.enter = nn.Conv2d(stem, widths[0], 2 + stride, stride, padding=1)
        self.down = nn.ModuleList(_Down(parts, i) for i in levels(widths))
        self.up = nn.ModuleList(_Up(parts, i) for i in reversed(levels(widths)))
        self.skip_widths = [stem, *(w for w in widths for _ in range(blocks))]
        self.leave = nn.Conv2d(widths[0], stride**2 * (2 - skips) * stem, 1)
        self.norm = nn.GroupNorm(8, 2 * stem)
        self.out = zero_(nn.Conv2d(2 * stem, channels, 3, padding=1))

    def forward(self, x: Tensor, u: Tensor, cond: Cond | None = None) -> Tensor:
        """Return the net's output at x; a label or text not given is the null."""
        return self.decode(*self.encode(x, u, cond))

    def encode(self, x: Tensor, u: Tensor, cond: Cond | None = None) -> tuple:
        """Return all skips, highest resolution first, and what the blocks are told.

        The skips have self.skip_widths channels; the lowest is what goes on.
        """
        self.check(x, "fewer multipliers")
        e, told = F.silu(self.embedding(u, cond)), self.read(u, cond)
        skips = [self.stem(x)]
        h = self.enter(skips[0])
        for level in self.down:
            h = level(h, e, skips, *told)
        return skips, e, told

    def decode(self, skips: list[Tensor], e: Tensor, told: tuple) -> Tensor:
        """Return the net's output from what encode returns, (B, C, H, W)."""
        full, *skips, h = skips
        for level in self.up:
            h = level(h, e, skips, *told)
        h = F.pixel_shuffle(self.leave(h), self.stride)
        if self.skips:
            h = torch.cat([h, full], dim=1)
        return self.out(F.silu(self.norm(h)))


def levels(widths: list[int]) -> range:
    """Return the levels' numbers, highest resolution first."""
    return range(len(widths))


class _Parts(NamedTuple):
    """What all levels are built from."""

    widths: list[int]
    blocks: int
    dim: int
    block: type[nn.Module]
    attention: type[nn.Module] | None
    skips: bool
    read: int | None

    def listen(self, i: int) -> Any:
        """Return the attention of level i to the words, if there are any."""
        return CrossAttention(self.widths[i], self.read) if self.read else None

    def attend(self, i: int) -> nn.Module:
        """Return the attention of level i: only the lowest has one."""
        if self.attention is None or i < len(self.widths) - 1:
            return nn.Identity()
        return self.attention(self.widths[i])


class _Down(nn.Module):
    """Blocks at one level, each leaving a skip; all but the first level halve first."""

    def __init__(self, parts: _Parts, i: int):
        super().__init__()
        c, before = parts.widths[i], parts.widths[max(i - 1, 0)]
        self.shrink = nn.Conv2d(before, c, 3, stride=2, padding=1) if i else None
        self.blocks = nn.ModuleList(
            parts.block(c, c, parts.dim) for _ in range(parts.blocks)
        )
        self.attention, self.listen = parts.attend(i), parts.listen(i)

    def forward(
        self, h: Tensor, e: Tensor, skips: list[Tensor], *told: Tensor
    ) -> Tensor:
        if self.shrink is not None:
            h = self.shrink(h)
        for block in self.blocks:
            h = block(h, e)
            skips.append(h)
        h = self.attention(h)
        if told:
            h = self.listen(h, *told)
        skips[-1] = h
        return h


class _Up(nn.Module):
    """Blocks at one level, each taking a skip; all but the last level double after."""

    def __init__(self, parts: _Parts, i: int):
        super().__init__()
        c, after = parts.widths[i], parts.widths[max(i - 1, 0)]
        lowest, self.skips = i == len(parts.widths) - 1, parts.skips
        self.blocks = nn.ModuleList(
            parts.block(2 * c if parts.skips else c, c, parts.dim)
            for _ in range(parts.blocks - lowest)
        )
        self.attention, self.listen = parts.attend(i), parts.listen(i)
        self.grow = nn.Conv2d(c, after, 3, padding=1) if i else None

    def forward(
        self, h: Tensor, e: Tensor, skips: list[Tensor], *told: Tensor
    ) -> Tensor:
        for block in self.blocks:
            h = block(torch.cat([h, skips.pop()], dim=1) if self.skips else h, e)
        h = self.attention(h)
        if told:
            h = self.listen(h, *told)
        if self.grow is not None:
            h = self.grow(F.interpolate(h, scale_factor=2.0))
        return h
