"""Steps that remember earlier answers: exponential Adams methods in half log-SNR.

With lam = log(alpha / sigma), the probability-flow ODE from lam_t to lam_s is solved by

    x_s = sigma_s / sigma_t x_t + sigma_s integral of exp(lam) x0_hat(lam)
        = alpha_s / alpha_t x_t - alpha_s integral of exp(-lam) eps_hat(lam)

where only the answers are unknown. A polynomial through the last ones takes their
place: of x0_hat in DPM-Solver++ and UniPC, of eps_hat in DEIS. With one answer both are
DDIM. A time at which log-SNR is infinite (no signal, no noise) is left out.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from scipy.special import hyp1f1
from torch import Tensor

from ..process import posterior_coefficients
from ..schedules import Schedule
from .ode import half_log_snr
from .posterior import ddim_step

Past = list[tuple[float, Tensor]]  # (half log-SNR, answer there), newest first
ADAMS = ((1,), (3, -1), (23, -16, 5), (55, -59, 37, -9))  # over 1, 2, 12, 24


@lru_cache(maxsize=1024)
def polynomial_weights(h: float, nodes: tuple[float, ...], rate: float) -> np.ndarray:
    """Return w with sum w_j f(nodes_j) = integral_0^h exp(-rate (h - u)) f(u) du / h.

    Exact for polynomials f of degree under len(nodes). Remembered, for batch after
    batch takes the same steps.
    """
    k = np.arange(len(nodes))
    moments = hyp1f1(1, k + 2, -rate * h) / (k + 1)  # of (u / h)^k
    powers = np.vander(np.array(nodes) / h, increasing=True)
    return np.linalg.solve(powers.T, moments)


def shares(h: float, nodes: tuple[float, ...], rate: float = 1.0) -> list[float]:
    """Return each answer's share in a step of x0_hat; they sum to 1; nodes[0] = 0.

    Of two answers the second gets h / (2 nodes[1]), as the papers on DPM-Solver++ and
    UniPC have it, which is the polynomial's weight up to a factor 1 + O(h).
    """
    if len(nodes) == 1:
        return [1.0]
    if len(nodes) == 2:
        second = h / (2 * nodes[1])
        return [1 - second, second]
    weights = polynomial_weights(h, nodes, rate)
    return list(weights / weights.sum())


def advance(
    schedule: Schedule, x: Tensor, t, s, past: Past, eta: float = 0.0
) -> tuple[Tensor, float]:
    """Return the mean of x_s, and the deviation of its noise, from answers x0_hat.

    past[0] was given at t; the others may lie on either side.
    """
    a, b, std = posterior_coefficients(schedule, x, t, s, eta)
    lam_t, lam_s = past[0][0], half_log_snr(schedule, x, s)
    if math.isinf(lam_s) or math.isinf(lam_t):
        past = past[:1]
    finite = [(lam - lam_t, x0) for lam, x0 in past if math.isfinite(lam)] or past
    rate = 1 + eta**2  # noise makes the past fade twice as fast
    weights = shares(lam_s - lam_t, tuple(node for node, _ in finite), rate)
    mean = a * x
    for weight, (_, x0) in zip(weights, finite, strict=True):
        mean.add_(x0, alpha=b * weight)
    return mean, std


def dpmpp_step(denoise, schedule, x, t, s, state, noise, order: int, eta: float):
    """DPM-Solver++ of any order, with its state: the last answers (a Past)."""
    x0 = denoise(x, t)
    past = [(half_log_snr(schedule, x, t), x0), *(state or [])][:order]
    mean, std = advance(schedule, x, t, s, past, eta)
    return (mean + std * noise() if std > 0 else mean), x0, past


def dpmpp_2m_step(denoise, schedule, x, t, s, state=None, noise=None, eta: float = 0.0):
    """DPM-Solver++(2M) (Lu et al. 2022): second order, one call a step.

    eta = 1 is SDE-DPM-Solver++(2M). First order at both ends.
    """
    return dpmpp_step(denoise, schedule, x, t, s, state, noise, 2, eta)


def dpmpp_3m_step(denoise, schedule, x, t, s, state=None, noise=None, eta: float = 0.0):
    """DPM-Solver++(3M): third order, one call a step. eta as in `dpmpp_2m_step`.

    The weights are those of the parabola through the last three answers. The published
    code gives the second difference half of its weight, and is of second order.
    """
    return dpmpp_step(denoise, schedule, x, t, s, state, noise, 3, eta)


def unipc_step(denoise, schedule, x, t, s, state=None, noise=None, order: int = 2):
    """UniPC (Zhao et al. 2023, B_2): each answer also corrects the step that led to it.

    One call a step. state: (the corrected x before, its time, the last answers).
    """
    x0 = denoise(x, t)
    new, past = (half_log_snr(schedule, x, t), x0), []
    if state is not None:
        before, t_before, past = state
        x, _ = advance(schedule, before, t_before, t, [past[0], new, *past[1:]])
    past = [new, *past][:order]
    return advance(schedule, x, t, s, past)[0], x0, (x, t, past)


def deis_step(denoise, schedule, x, t, s, state=None, noise=None, order: int = 3):
    """DEIS, tAB in log(sigma / alpha) (Zhang and Chen 2023): a polynomial of eps."""
    x0, left, sigma, lam = _answers(denoise, schedule, x, t)
    past = [(lam, sigma, left), *(state or [])][:order]
    h = half_log_snr(schedule, x, s) - lam
    if math.isinf(lam) or math.isinf(h):
        x_s, _, _ = ddim_step(lambda x, t: x0, schedule, x, t, s)
        return x_s, x0, past if math.isfinite(lam) else []
    (alpha_t, _), (alpha_s, sigma_s) = schedule.at(t, x), schedule.at(s, x)
    nodes = tuple(node - lam for node, _, _ in past)
    weights = h * polynomial_weights(h, nodes, -1.0)
    x_s = alpha_s / alpha_t * x
    for weight, (_, sigma, left) in zip(weights, past, strict=True):
        x_s.add_(left, alpha=-sigma_s * weight / sigma)
    return x_s, x0, past


def plms_step(denoise, schedule, x, t, s, state=None, noise=None):
    """PLMS, the multistep half of PNDM (Liu et al. 2022): Adams-Bashforth for eps_hat.

    The weights are those of even steps; DDIM's step then carries x on, which keeps the
    whole at second order. The first step takes a second call, as in the authors' code.
    state: the last answers, (sigma eps_hat, sigma) each.
    """
    x0, *new, lam = _answers(denoise, schedule, x, t)
    if math.isinf(lam):
        return *ddim_step(lambda x, t: x0, schedule, x, t, s)[:2], None
    past = [new, *(state or [])][:4]
    if state is None and s > 0:
        guess = _along(schedule, x, t, s, [new])
        _, *ahead, _ = _answers(denoise, schedule, guess, s)
        return _along(schedule, x, t, s, [new, ahead], (1, 1)), x0, past
    return _along(schedule, x, t, s, past, ADAMS[len(past) - 1]), x0, past


def _answers(denoise, schedule: Schedule, x: Tensor, t):
    """(x0_hat, sigma eps_hat, sigma, half log-SNR) at t."""
    x0, (alpha, sigma) = denoise(x, t), schedule.at(t, x)
    return x0, torch.sub(x, x0, alpha=alpha), sigma, half_log_snr(schedule, x, t)


def _along(schedule: Schedule, x: Tensor, t, s, past: list, rule=(1,)):
    """DDIM's step where alpha_t > 0, with the mean of answers eps, weighted by rule."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.at(t, x), schedule.at(s, x)
    x_s = alpha_s / alpha_t * x
    total = (sigma_s - alpha_s / alpha_t * sigma_t) / sum(rule)
    for weight, (left, sigma) in zip(rule, past, strict=True):
        x_s.add_(left, alpha=weight * total / sigma)
    return x_s
