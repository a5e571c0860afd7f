"""Networks of the library diffusers, called as ours are."""

from typing import Any

from torch import Tensor, nn

from .blocks import Cond

ARGUMENTS = {"label": "class_labels", "text": "encoder_hidden_states"}


class FromDiffusers(nn.Module):
    """net(x (B, C, H, W), u (B,), cond) -> (B, C, H, W), asked of a net of diffusers.

    net: a UNet2DModel, a UNet2DConditionModel, or what else is called with pictures and
    a timestep and answers in `.sample`. T: steps of the chain it was trained on, which
    diffusers counts from 0: our time t is its t - 1. cond: {"label": (B,)}, {"text":
    (B, L, D)}, the vectors of a text encoder, or both. nulls: what stands for "not
    said", of the same names, each (1, ...). Raises ValueError for other conditions.
    """

    def __init__(self, net: Any, T: int = 1000, nulls: Cond | None = None):
        super().__init__()
        self.net, self.T, self.nulls = net, T, nulls or {}
        self.channels = net.config.in_channels

    def forward(self, x: Tensor, u: Tensor, cond: Cond | None = None) -> Tensor:
        """Return the net's answer at x, (B, C, H, W)."""
        cond = cond or {}
        if unknown := set(cond) - set(ARGUMENTS):
            raise ValueError(f"unknown conditions {sorted(unknown)}: {[*ARGUMENTS]}")
        told = {ARGUMENTS[name]: value for name, value in cond.items()}
        return self.net(x, self.T * u - 1, **told).sample

    def null(self, cond: Cond) -> Cond:
        """Return cond with what has a null replaced by it."""
        if not set(self.nulls) & set(cond):
            raise ValueError("no nulls: give the constructor nulls={name: (1, ...)}")
        null = {k: v.expand_as(cond[k]) for k, v in self.nulls.items() if k in cond}
        return {**cond, **null}
