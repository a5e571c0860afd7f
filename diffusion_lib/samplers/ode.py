"""Steps of the probability-flow ODE that remember nothing.

In y = x / alpha and rho = sigma / alpha the ODE is dy / drho = eps_hat: Euler's step
there is DDIM. Each is a DDIM step where a time has no signal (alpha = 0) or no noise
(s = 0), for log-SNR is infinite there.
"""

import math

import torch
from torch import Tensor

from ..schedules import Schedule
from .posterior import ddim_step


def half_log_snr(schedule: Schedule, x: Tensor, t: Tensor | float) -> float:
    """Return log(alpha / sigma) at one time, -inf without signal, inf without noise."""
    alpha, sigma = schedule.at(t, x)
    if sigma == 0:
        return math.inf
    return math.log(alpha / sigma) if alpha > 0 else -math.inf


def increments(schedule: Schedule, x: Tensor, t, s) -> tuple[float, float]:
    """Return f dt and g^2 dt from s to t, of dx = f x dt + g dw.

    f = d log(alpha) / dt and g^2 = d sigma^2 / dt - 2 f sigma^2. Raises ValueError at a
    time without signal, where f is infinite.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.at(t, x), schedule.at(s, x)
    if alpha_t == 0 or alpha_s == 0:
        raise ValueError(
            "the drift of the SDE is infinite where alpha = 0: start below that time, "
            "or take ddim_step, which needs no drift"
        )
    drift = math.log(alpha_t / alpha_s)
    return drift, sigma_t**2 - sigma_s**2 - 2 * drift * sigma_t**2


def euler_step(denoise, schedule, x, t, s, state=None, noise=None):
    """Euler's step of dx = (f x - g^2 score / 2) dt, as a textbook would take it.

    It stands here to be compared: it treats the linear part, which DDIM solves exactly,
    as unknown. Raises ValueError where alpha = 0.
    """
    x0 = denoise(x, t)
    drift, variance = increments(schedule, x, t, s)
    alpha, sigma = schedule.at(t, x)
    score = (alpha * x0 - x) / sigma**2
    return x - drift * x + variance / 2 * score, x0, state


def heun_step(denoise, schedule, x, t, s, state=None, noise=None):
    """Trapezoid rule on dx = x0 dalpha + eps dsigma (Karras et al. 2022).

    Their Algorithm 1 where alpha = 1. Second order, two calls a step; a first-order
    step where s = 0.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.at(t, x), schedule.at(s, x)
    x0 = denoise(x, t)
    eps = (x - alpha_t * x0) / sigma_t
    x_s = alpha_s * x0 + sigma_s * eps
    if s > 0:
        x0_s = denoise(x_s, s)
        eps_s = (x_s - alpha_s * x0_s) / sigma_s
        x_s = x + (alpha_s - alpha_t) / 2 * (x0 + x0_s)
        x_s = x_s + (sigma_s - sigma_t) / 2 * (eps + eps_s)
    return x_s, x0, state


def dpm_solver_2_step(denoise, schedule, x, t, s, state=None, noise=None):
    """DPM-Solver-2 (Lu et al. 2022): the step's eps is that of its middle in log-SNR.

    Second order, two calls a step; a DDIM step where log-SNR is infinite.
    """
    lam_t, lam_s = half_log_snr(schedule, x, t), half_log_snr(schedule, x, s)
    if math.isinf(lam_t) or math.isinf(lam_s):
        return ddim_step(denoise, schedule, x, t, s, state)
    middle = schedule.time_at(torch.tensor(lam_t + lam_s, dtype=torch.float64))
    x_middle, x0, _ = ddim_step(denoise, schedule, x, t, middle)
    alpha, sigma = schedule.at(middle, x)
    eps = (x_middle - alpha * denoise(x_middle, middle)) / sigma
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.at(t, x), schedule.at(s, x)
    return alpha_s / alpha_t * (x - sigma_t * eps) + sigma_s * eps, x0, state
