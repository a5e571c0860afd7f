"""A net that is shown a smaller picture and how noisy that is."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Cond
from .unet import UNet


class Upsampler(nn.Module):
    """net(x (B, C, H, W), u (B,), cond) -> (B, C, H, W), for a small picture in cond.

    cond["low_res"]: (B, C, h, w), smaller or equal, enlarged to H x W and laid beside x
    as more channels (Saharia et al. 2023); cond["level"]: (B,), how noisy it is, as a
    schedule's `embed` tells time, laid beside them as a constant channel (Zhang et al.
    2018, FFDNet); "label" as in UNet, where classes is given. The rest is a UNet.
    Raises ValueError where low_res or level is missing or does not fit.
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
        self.channels = channels
        wide = 2 * channels + 1
        self.net = UNet(wide, width, multipliers, blocks, stem, dim, classes)

    def forward(self, x: Tensor, u: Tensor, cond: Cond | None = None) -> Tensor:
        """Return the net's output at x."""
        cond = cond or {}
        low, level = self._told(x, cond)
        rest = {k: v for k, v in cond.items() if k not in ("low_res", "level")}
        low = F.interpolate(low.to(x), x.shape[2:], mode="bilinear")
        plane = level.to(x).reshape(-1, 1, 1, 1).expand_as(x[:, :1])
        told = torch.cat([x, low, plane], dim=1)
        return self.net(told, u, rest or None)[:, : self.channels]

    def _told(self, x: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        if not {"low_res", "level"} <= set(cond):
            raise ValueError(f"needs 'low_res' and 'level', was told {sorted(cond)}")
        low, level = cond["low_res"], cond["level"]
        fits = low.ndim == 4 and low.shape[:2] == x.shape[:2]
        if not fits or level.shape != x.shape[:1]:
            raise ValueError(
                f"low_res {tuple(low.shape)} and level {tuple(level.shape)} do not fit "
                f"pictures {tuple(x.shape)}: one small picture and one number for each"
            )
        return low, level

    def null(self, cond: Cond) -> Cond:
        """Return cond with the null label; the small picture is kept."""
        return self.net.null(cond)
