"""Wrappers that turn one denoise(x, t) into another. They compose in any order."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .denoiser import Cond, Denoiser
from .samplers import Denoise
from .schedules import Schedule


def given(denoiser: Denoiser, cond: Cond | None) -> Denoise:
    """Bind a condition: denoise(x, t) = denoiser(x, t, cond), each tensor (B, ...)."""
    return lambda x, t: denoiser(x, t, cond)


def classifier_free(
    denoiser: Denoiser, cond: Cond, scale: float, rescale: float = 0.0
) -> Denoise:
    """Guide without a classifier: x0 = x0_null + scale (x0_cond - x0_null).

    scale 0 ignores the condition, 1 obeys it, above 1 extrapolates (Ho and Salimans
    2022 write w = scale - 1). Label and text are dropped in the null call, other
    conditions kept. Both answers come from one call with a batch of 2 B. rescale:
    the share, 0 to 1, in which each x0's deviation is brought back to x0_cond's (after
    Lin et al. 2024, section 3.4, who rescale what the network says).
    """
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale is a share from 0 to 1, got {rescale}")
    null = denoiser.null(cond)
    both = {name: torch.cat([null[name], cond[name]]) for name in cond}

    def denoise(x: Tensor, t: Tensor | float) -> Tensor:
        t = torch.as_tensor(t)
        t = torch.cat([t, t]) if t.ndim else t
        without, with_ = denoiser(torch.cat([x, x]), t, both).chunk(2)
        x0 = torch.lerp(without, with_, scale)
        return torch.lerp(x0, x0 * (_std(with_) / _std(x0)), rescale) if rescale else x0

    return denoise


def _std(x: Tensor) -> Tensor:
    """The deviation of each example's values, to broadcast against x (B, ...)."""
    return x.flatten(1).std(1).reshape(-1, *(1,) * (x.ndim - 1))


def classifier_guided(
    denoise: Denoise,
    schedule: Schedule,
    log_prob: Callable[[Tensor, Tensor | float], Tensor],
    scale: float = 1.0,
) -> Denoise:
    """Guide by a classifier of noisy pictures (Dhariwal and Nichol 2021).

    log_prob(x_t (B, ...), t) -> log p(y | x_t), (B,), of what is wanted. Its gradient,
    scale times, joins the score: sigma^2 / alpha times it joins x0. Where alpha = 0
    x_t says nothing of y, and denoise's answer is returned as it is.
    """

    def guided(x: Tensor, t: Tensor | float) -> Tensor:
        x0, (alpha, sigma) = denoise(x, t), schedule(t, x)
        if not bool((alpha > 0).any()):
            return x0
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(log_prob(at, t).sum(), at)
        return x0 + torch.where(alpha > 0, scale * sigma**2 / alpha, 0.0) * slope

    return guided


def label_log_prob(
    classifier: Callable[[Tensor, Tensor], Tensor], schedule: Schedule, label: Tensor
) -> Callable[[Tensor, Tensor | float], Tensor]:
    """Return log_prob(x_t, t) = log p(label | x_t), (B,), for `classifier_guided`.

    classifier(x, u (B,)) -> logits (B, classes), fed as a Denoiser feeds its net: x at
    unit variance, u = schedule.embed(t). label: (B,) int64.
    """

    def log_prob(x: Tensor, t: Tensor | float) -> Tensor:
        alpha, sigma = schedule.at(t, x)
        unit = x / (alpha**2 + sigma**2) ** 0.5
        logits = classifier(unit, schedule.embed_at(t, x))
        return -F.cross_entropy(logits, label.to(x.device), reduction="none")

    return log_prob


def extrapolated(good: Denoise, bad: Denoise, scale: float) -> Denoise:
    """Return bad + scale (good - bad): with a worse model, autoguidance.

    Karras et al. (2024). With a model that was not told the condition it is
    classifier-free guidance by two networks. scale as in `classifier_free`.
    """
    return lambda x, t: torch.lerp(bad(x, t), good(x, t), scale)


def within(
    inside: Denoise,
    outside: Denoise,
    schedule: Schedule,
    low: float = 0.0,
    high: float = math.inf,
) -> Denoise:
    """Return inside where low <= sigma / alpha <= high, else outside: one common t.

    With a guided inside this is guidance in an interval (Kynkaanniemi et al. 2024).
    """
    if not low < high:
        raise ValueError(f"within needs low < high, got {low} and {high}")

    def denoise(x: Tensor, t: Tensor | float) -> Tensor:
        alpha, sigma = schedule.at(t, x)
        ratio = sigma / alpha if alpha > 0 else math.inf
        return (inside if low <= ratio <= high else outside)(x, t)

    return denoise


def inpaint(denoise: Denoise, known: Tensor, mask: Tensor) -> Denoise:
    """Put what is known of x_0 into each answer where mask is true.

    known, mask: (B, ...) or what broadcasts to it. The result has the known part; the
    rest is not a draw of the posterior, for x_t is not told what x_0 was (the chapter
    on inverse problems measures the bias).
    """
    return lambda x, t: torch.where(
        mask.to(x.device).bool(), known.to(x), denoise(x, t)
    )


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

    def thresholded(x: Tensor, t: Tensor | float) -> Tensor:
        x0 = denoise(x, t)
        q = x0.flatten(1).float().abs().quantile(share, dim=1).clamp(min=1).to(x0)
        q = q.reshape(-1, *(1,) * (x0.ndim - 1))
        return x0.clamp(-q, q) / q

    return thresholded
