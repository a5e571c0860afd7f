"""Steps of the reverse SDE, and two ways to add noise to any other step."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..process import q_step, score_from_x0
from .ode import half_log_snr, increments


def reverse_sde_step(denoise, schedule, x, t, s, state=None, noise=None):
    """Euler-Maruyama on dx = (f x - g^2 score) dt + g dw, back in time (Anderson 1982).

    No noise is added at the step that ends at 0. Raises ValueError where alpha = 0.
    """
    x0 = denoise(x, t)
    drift, variance = increments(schedule, x, t, s)
    alpha, sigma = schedule.at(t, x)
    x_s = x - drift * x + variance / sigma**2 * (alpha * x0 - x)
    return (x_s + variance**0.5 * noise() if s > 0 else x_s), x0, state


def corrected(step: Callable, corrections: int = 1, snr: float = 0.16) -> Callable:
    """Return a step followed by Langevin steps at the time reached.

    Predictor-corrector sampling (Song et al. 2021, Algorithms 2 and 4). The step size
    is 2 (snr |noise| / |score|)^2, the norms meant over the batch; each correction
    takes one more call. None is made at t = 0, where there is no score.
    """
    if corrections < 1 or not snr > 0:
        raise ValueError(f"needs corrections >= 1 and snr > 0: {corrections}, {snr}")

    def both(denoise, schedule, x, t, s, state=None, noise=None):
        x, x0, state = step(denoise, schedule, x, t, s, state, noise)
        for _ in range(corrections if s > 0 else 0):
            score, z = score_from_x0(schedule, x, denoise(x, s), s), noise()
            size = 2 * (snr * _mean_norm(z) / _mean_norm(score)) ** 2
            x = x + size * score + (2 * size).sqrt() * z
        return x, x0, state

    return both


def _mean_norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).mean()


def churned(
    step: Callable,
    amount: float,
    low: float = 0.05,
    high: float = 50.0,
    scale: float = 1.003,
) -> Callable:
    """Return a step that first goes back up in noise: sigma / alpha times 1 + amount.

    With `heun_step` on `EDMSchedule` this is Algorithm 2 of Karras et al. (2022);
    elsewhere the average is taken in other variables. Their amount is
    min(S_churn / N, sqrt(2) - 1), low and high are S_tmin and S_tmax in sigma / alpha,
    scale is S_noise. Times never rise above t_max.
    """
    if not 0 <= amount <= 1 or not 0 <= low < high:
        raise ValueError(f"needs 0 <= amount <= 1, low < high: {amount}, {low}, {high}")

    def both(denoise, schedule, x, t, s, state=None, noise=None):
        lam = half_log_snr(schedule, x, t)
        if amount > 0 and low <= math.exp(-lam) <= high:
            wanted = torch.tensor(2 * (lam - math.log1p(amount)), dtype=torch.float64)
            up = schedule.time_at(wanted).clamp(max=schedule.t_max)
            x, t = q_step(schedule, x, t, up, scale * noise()), up
        return step(denoise, schedule, x, t, s, state, noise)

    return both
