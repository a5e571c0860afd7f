"""What the picture networks are told: the time, a label, and pictures that fit."""

import torch
from torch import Tensor, nn

from .blocks import Cond, TimeEmbedding


class Conditioned(nn.Module):
    """The part that UNet and Transformer share: embedding(u, cond) -> (B, dim).

    channels: of the pictures; factor: what must divide their sides; classes: number of
    labels, or None; one more, the null label, stands for "not said"; time: kind of
    TimeEmbedding. Raises ValueError for classes below 1.
    """

    def __init__(
        self, channels: int, factor: int, dim: int, classes: int | None, time: str
    ):
        super().__init__()
        if classes is not None and classes < 1:
            raise ValueError(f"classes must be None or at least 1, got {classes}")
        self.channels, self.factor, self.classes = channels, factor, classes
        self.time = TimeEmbedding(dim, kind=time)
        self.label = None if classes is None else nn.Embedding(classes + 1, dim)

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
