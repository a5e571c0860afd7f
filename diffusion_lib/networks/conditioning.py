"""What the picture networks are told: time, label, caption, and pictures that fit."""

from typing import Any

import torch
from torch import Tensor, nn

from .blocks import Cond, TimeEmbedding
from .text import PAD, TextEncoder, no_words


class Conditioned(nn.Module):
    """The part that UNet and Transformer share: embedding(u, cond) -> (B, dim).

    channels: of the pictures; factor: what must divide their sides; classes: number of
    labels, or None; one more, the null label, stands for "not said"; time: kind of
    TimeEmbedding; text: options of the TextEncoder that reads captions, or None; the
    empty caption is its "not said". Raises ValueError for classes below 1.
    """

    classes: Any  # an int, or None

    def __init__(
        self,
        channels: int,
        factor: int,
        dim: int,
        classes: int | None,
        time: str,
        text: dict[str, Any] | None = None,
    ):
        super().__init__()
        if classes is not None and classes < 1:
            raise ValueError(f"classes must be None or at least 1, got {classes}")
        self.channels, self.factor, self.classes = channels, factor, classes
        self.time = TimeEmbedding(dim, kind=time)
        self.label = None if classes is None else nn.Embedding(classes + 1, dim)
        self.text = None if text is None else TextEncoder(**text)

    def embedding(self, u: Tensor, cond: Cond | None = None) -> Tensor:
        """Return what the blocks are told, (B, dim): the time, plus the label."""
        e, cond = self.time(u), cond or {}
        self._check_names(cond)
        if self.label is None:
            return e
        label = cond.get("label")
        if label is None:
            label = torch.full((len(u),), self.classes)
        label = torch.as_tensor(label).to(u.device)
        if label.shape != u.shape or label.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"labels must be {len(u)} int64 numbers, one per picture, got "
                f"{tuple(label.shape)} of {label.dtype}"
            )
        if not bool(((label >= 0) & (label <= self.classes)).all()):
            raise ValueError(
                f"labels must be 0 to {self.classes - 1}, or {self.classes} for null"
            )
        return e + self.label(label)

    def _check_names(self, cond: Cond) -> None:
        known = [n for n in ("label", "text") if getattr(self, n) is not None]
        if cond and not known:
            raise ValueError("this net was built without classes: cond must be None")
        if unknown := set(cond) - set(known):
            names = ", ".join(map(repr, known))
            raise ValueError(f"unknown conditions {sorted(unknown)}: only {names}")

    def read(self, u: Tensor, cond: Cond | None = None) -> tuple[Tensor, ...]:
        """Return the captions' vectors (B, L, width) and which are words (B, L).

        Nothing, (), for a net without text.
        """
        if self.text is None:
            return ()
        tokens = (cond or {}).get("text")
        if tokens is None:
            tokens = no_words(torch.zeros(len(u), 1, dtype=torch.int64))
        if len(tokens) != len(u):
            raise ValueError(f"{len(tokens)} captions were given for {len(u)} pictures")
        tokens = tokens.to(u.device)
        return self.text(tokens), tokens != PAD

    def null(self, cond: Cond) -> Cond:
        """Return cond with every label and caption replaced by their null."""
        nulls = {}
        if self.label is not None and "label" in cond:
            nulls["label"] = torch.full_like(cond["label"], self.classes)
        if self.text is not None and "text" in cond:
            nulls["text"] = no_words(cond["text"])
        if not nulls:
            raise ValueError("this net knows no label or text that could be dropped")
        return {**cond, **nulls}

    def check(self, x: Tensor, remedy: str) -> None:
        """Raise ValueError for an x of other channels, or sides that do not divide."""
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"expected pictures (B, {self.channels}, H, W), got {tuple(x.shape)}"
            )
        if any(side % self.factor or side == 0 for side in x.shape[2:]):
            raise ValueError(
                f"sides {tuple(x.shape[2:])} must be multiples of {self.factor}: "
                f"resize the pictures, or use {remedy}"
            )
