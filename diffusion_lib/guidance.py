"""Wrappers that turn one denoise(x, t) into another. They compose in any order."""

from collections.abc import Callable

import torch
from torch import Tensor

from .denoiser import Cond, Denoiser

Denoise = Callable[[Tensor, Tensor], Tensor]


def given(denoiser: Denoiser, cond: Cond) -> Denoise:
    """Bind a condition: denoise(x, t) = denoiser(x, t, cond), each tensor (B, ...)."""
    return lambda x, t: denoiser(x, t, cond)


def classifier_free(denoiser: Denoiser, cond: Cond, scale: float) -> Denoise:
    """Guide without a classifier: x0 = x0_null + scale (x0_cond - x0_null).

    scale 0 ignores the condition, 1 obeys it, above 1 extrapolates (Ho and Salimans
    2022 write w = scale - 1). Label and text are dropped in the null call, other
    conditions kept. Both answers come from one call with a batch of 2 B.
    """
    null = denoiser.null(cond)
    both = {name: torch.cat([null[name], cond[name]]) for name in cond}

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        t = torch.as_tensor(t)
        t = torch.cat([t, t]) if t.ndim else t
        without, with_ = denoiser(torch.cat([x, x]), t, both).chunk(2)
        return torch.lerp(without, with_, scale)

    return denoise


def clip_x0(denoise: Denoise, low: float = -1.0, high: float = 1.0) -> Denoise:
    """Keep x0_hat in the pictures' range; not for latents, which have none."""
    if not low < high:
        raise ValueError(f"clip_x0 needs low < high, got {low} and {high}")
    return lambda x, t: denoise(x, t).clamp(low, high)
