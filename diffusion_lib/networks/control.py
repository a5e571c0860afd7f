"""A copy of a U-Net's encoder that adds to the skips of a frozen one: ControlNet."""

from typing import Any

import torch
from torch import Tensor, nn

from .blocks import Cond, zero_
from .unet import UNet


class Control(nn.Module):
    """control(x (B, C, H, W), u (B,), cond) -> what to add to each skip of a UNet.

    cond["hint"] (B, 1, H, W) is one more channel for a copy of the encoder of a UNet
    with the options unet; each of its skips goes through a 1x1 convolution that starts
    at zero, so that at first nothing is added. Zhang et al. (2023).
    Raises ValueError for a hint that is missing or does not fit x.
    """

    def __init__(self, unet: dict[str, Any]):
        super().__init__()
        channels = unet.get("channels", 1)
        self.encoder = UNet(**{**unet, "channels": channels + 1})
        for name in ("up", "leave", "norm", "out"):  # the decoder is not needed
            delattr(self.encoder, name)
        widths = self.encoder.skip_widths
        self.zeros = nn.ModuleList(zero_(nn.Conv2d(c, c, 1)) for c in widths)

    def forward(self, x: Tensor, u: Tensor, cond: Cond) -> list[Tensor]:
        """Return what to add, highest resolution first."""
        hint = cond.get("hint")
        if hint is None or hint.shape != x[:, :1].shape:
            shape = None if hint is None else tuple(hint.shape)
            raise ValueError(f"need a 'hint' {tuple(x[:, :1].shape)}, got {shape}")
        seen = torch.cat([x, hint.to(x)], dim=1)
        skips, _, _ = self.encoder.encode(seen, u, without_hint(cond))
        return [zero(h) for zero, h in zip(self.zeros, skips, strict=True)]

    @torch.no_grad()
    def copy_encoder(self, base: UNet) -> None:
        """Take base's weights for the encoder; the hint's own start at zero."""
        known = base.state_dict()
        for name, weight in self.encoder.state_dict().items():
            if name == "stem.weight":
                weight.zero_()[:, : base.channels] = known[name]
            else:
                weight.copy_(known[name])


class Controlled(nn.Module):
    """A UNet whose skips a Control adds to; without a hint it is the UNet itself.

    strength: of what is added; 0 for nothing.
    """

    def __init__(self, base: UNet, control: Control, strength: float = 1.0):
        super().__init__()
        self.base, self.control, self.strength = base, control, strength
        self.channels, self.classes = base.channels, base.classes

    def forward(self, x: Tensor, u: Tensor, cond: Cond | None = None) -> Tensor:
        """Return the net's output at x, (B, C, H, W)."""
        cond = cond or {}
        skips, e, told = self.base.encode(x, u, without_hint(cond))
        if "hint" in cond:
            added = self.control(x, u, cond)
            both = zip(skips, added, strict=True)
            skips = [skip + self.strength * more for skip, more in both]
        return self.base.decode(skips, e, told)

    def null(self, cond: Cond) -> Cond:
        """Return cond with the null label or caption; the hint is kept."""
        return self.base.null(cond)


def without_hint(cond: Cond) -> Cond | None:
    """Return the conditions that a UNet knows, or None if there is none."""
    return {name: value for name, value in cond.items() if name != "hint"} or None
