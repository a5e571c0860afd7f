"""A U-Net with most of its weight at low resolution, where convolutions are fast."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Attention, Cond, ResBlock, TimeEmbedding, zero_


class UNet(nn.Module):
    """net(x (B, C, H, W), u (B,), {"label": (B,)} or None) -> (B, C, H, W).

    A thin convolution at full resolution, then width * multipliers[i] channels at 1/2,
    1/4, ... of it; attention at the lowest; skips between equals (Ronneberger et al.
    2015). 28 x 28 pictures are worked on at 14 x 14 and 7 x 7. classes: number of
    labels, or None; one more, the null label, stands for "not said".
    Raises ValueError for sides that 2^levels does not divide, or labels out of range.
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
    ):
        super().__init__()
        if width % 8 or stem % 4 or blocks < 1 or not multipliers:
            raise ValueError("width must be a multiple of 8, stem of 4; blocks >= 1")
        if classes is not None and classes < 1:
            raise ValueError(f"classes must be None or at least 1, got {classes}")
        widths = [width * m for m in multipliers]
        self.channels, self.classes, self.factor = channels, classes, 2 ** len(widths)
        self.time = TimeEmbedding(dim)
        self.label = None if classes is None else nn.Embedding(classes + 1, dim)
        self.stem = nn.Conv2d(channels, stem, 3, padding=1)
        self.enter = nn.Conv2d(stem, widths[0], 4, stride=2, padding=1)
        self.down = nn.ModuleList(_Down(widths, i, blocks, dim) for i in levels(widths))
        self.up = nn.ModuleList(
            _Up(widths, i, blocks, dim) for i in reversed(levels(widths))
        )
        self.leave = nn.Conv2d(widths[0], 4 * stem, 1)
        self.norm = nn.GroupNorm(8, 2 * stem)
        self.out = zero_(nn.Conv2d(2 * stem, channels, 3, padding=1))

    def forward(self, x: Tensor, u: Tensor, cond: Cond | None = None) -> Tensor:
        """Return the net's output at x; cond["label"] (B,) int64, or None for null."""
        self._check(x)
        e = F.silu(self.embedding(u, cond))
        full = self.stem(x)
        h, skips = self.enter(full), []
        for level in self.down:
            h = level(h, e, skips)
        skips.pop()  # the lowest skip is h itself
        for level in self.up:
            h = level(h, e, skips)
        h = torch.cat([F.pixel_shuffle(self.leave(h), 2), full], dim=1)
        return self.out(F.silu(self.norm(h)))

    def embedding(self, u: Tensor, cond: Cond | None = None) -> Tensor:
        """Return what the blocks are told, (B, dim): the time, plus the label."""
        e = self.time(u)
        if self.label is None:
            if cond:
                raise ValueError(
                    "this net was built without classes: cond must be None"
                )
            return e
        cond = cond or {}
        if unknown := set(cond) - {"label"}:
            raise ValueError(f"unknown conditions {sorted(unknown)}: only 'label'")
        label = cond.get("label")
        if label is None:
            label = torch.full((len(u),), self.classes)
        label = torch.as_tensor(label).to(u.device)
        if label.shape != u.shape or label.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"labels must be {len(u)} integers, one per picture")
        if not bool(((label >= 0) & (label <= self.classes)).all()):
            raise ValueError(
                f"labels must be 0 to {self.classes - 1}, or {self.classes} for null"
            )
        return e + self.label(label)

    def null(self, cond: Cond) -> Cond:
        """Return cond with every label replaced by the null label."""
        if self.classes is None or "label" not in cond:
            raise ValueError("this net knows no label that could be dropped")
        return {**cond, "label": torch.full_like(cond["label"], self.classes)}

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"expected pictures (B, {self.channels}, H, W), got {tuple(x.shape)}"
            )
        if any(side % self.factor or side == 0 for side in x.shape[2:]):
            raise ValueError(
                f"sides {tuple(x.shape[2:])} must be multiples of {self.factor}: "
                "resize the pictures, or use fewer multipliers"
            )


def levels(widths: list[int]) -> range:
    """Return the levels' numbers, highest resolution first."""
    return range(len(widths))


class _Down(nn.Module):
    """Blocks at one level, each leaving a skip; all but the first level halve first."""

    def __init__(self, widths: list[int], i: int, blocks: int, dim: int):
        super().__init__()
        c, lowest = widths[i], i == len(widths) - 1
        before = widths[max(i - 1, 0)]
        self.shrink = nn.Conv2d(before, c, 3, stride=2, padding=1) if i else None
        self.blocks = nn.ModuleList(ResBlock(c, c, dim) for _ in range(blocks))
        self.attention = Attention(c) if lowest else nn.Identity()

    def forward(self, h: Tensor, e: Tensor, skips: list[Tensor]) -> Tensor:
        if self.shrink is not None:
            h = self.shrink(h)
        for block in self.blocks:
            h = block(h, e)
            skips.append(h)
        skips[-1] = h = self.attention(h)
        return h


class _Up(nn.Module):
    """Blocks at one level, each taking a skip; all but the last level double after."""

    def __init__(self, widths: list[int], i: int, blocks: int, dim: int):
        super().__init__()
        c, lowest = widths[i], i == len(widths) - 1
        self.blocks = nn.ModuleList(
            ResBlock(2 * c, c, dim) for _ in range(blocks - lowest)
        )
        self.attention = Attention(c) if lowest else nn.Identity()
        after = widths[max(i - 1, 0)]
        self.grow = nn.Conv2d(c, after, 3, padding=1) if i else None

    def forward(self, h: Tensor, e: Tensor, skips: list[Tensor]) -> Tensor:
        for block in self.blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), e)
        h = self.attention(h)
        if self.grow is not None:
            h = self.grow(F.interpolate(h, scale_factor=2.0))
        return h
