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


def dynamic_threshold(denoise: Denoise, share: float = 0.995) -> Denoise:
    """Shrink each x0_hat whose values leave [-1, 1] until that share of them is inside.

    Dynamic thresholding (Saharia et al. 2022): clamp to [-q, q] and divide by q, the
    quantile of |x0_hat| over each picture, where q > 1. For pictures, not latents.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")

    def thresholded(x: Tensor, t: Tensor) -> Tensor:
        x0 = denoise(x, t)
        q = x0.flatten(1).float().abs().quantile(share, dim=1).clamp(min=1).to(x0)
        q = q.reshape(-1, *(1,) * (x0.ndim - 1))
        return x0.clamp(-q, q) / q

    return thresholded
