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
from typing import Any

import numpy as np
import torch
from scipy.special import hyp1f1
from torch import Tensor

from ..process import posterior_coefficients
from ..schedules import Schedule
from .ode import half_log_snr
from .posterior import ddim_step

Past = list[
    tuple[Any, Tensor]
]  # (where: half log-SNR, sigma, ..., answer), newest first
NOWHERE = torch.empty(0)  # of one common time the coefficients do not depend on x
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


@lru_cache(maxsize=4096)
def plan(
    schedule: Schedule, t: float, s: float, lams: tuple[float, ...], eta: float = 0.0
) -> tuple[float, list[float], float]:
    """Return (a, w, std): the mean of x_s is a x_t + sum w_j x0_hat(lams_j).

    lams[0] belongs to t; the others may lie on either side. Remembered, for batch after
    batch takes the same steps.
    """
    a, b, std = posterior_coefficients(schedule, NOWHERE, t, s, eta)
    lam_t, lam_s = lams[0], half_log_snr(schedule, NOWHERE, s)
    if math.isinf(lam_s) or math.isinf(lam_t):
        return a, [b] + [0.0] * (len(lams) - 1), std
    nodes = [lam - lam_t for lam in lams if math.isfinite(lam)]
    rate = 1 + eta**2  # noise makes the past fade twice as fast
    given = iter(shares(lam_s - lam_t, tuple(nodes), rate))
    return a, [b * next(given) if math.isfinite(lam) else 0.0 for lam in lams], std


def combined(x: Tensor, a: float, weights: list[float], past: Past) -> Tensor:
    """Return a x + the weighted answers."""
    total = a * x
    for weight, (_, answer) in zip(weights, past, strict=True):
        if weight:
            total.add_(answer, alpha=weight)
    return total


def dpmpp_step(denoise, schedule, x, t, s, state, noise, order: int, eta: float):
    """DPM-Solver++ of any order, with its state: the last answers (a Past)."""
    x0 = denoise(x, t)
    past = [(half_log_snr(schedule, x, t), x0), *(state or [])][:order]
    lams = tuple([lam for lam, _ in past])
    a, weights, std = plan(schedule, float(t), float(s), lams, eta)
    mean = combined(x, a, weights, past)
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

    One call a step. The correction adds to x what better weights of the last step say
    beyond those it had, so both updates are one sum. state: (the time before, the last
    answers, their weights in the last step).
    """
    x0 = denoise(x, t)
    before, past, used = state or (None, [], [])
    past = [(half_log_snr(schedule, x, t), x0), *past]
    lams = tuple([lam for lam, _ in past])
    a, weights, _ = plan(schedule, float(t), float(s), lams[:order])
    total = weights + [0.0] * (len(past) - len(weights))
    if state is not None:
        better = plan(schedule, before, float(t), (lams[1], lams[0], *lams[2:]))[1]
        places = (1, 0, *range(2, len(past)))  # the last step began at past[1]
        for i, weight in zip(places, better, strict=True):
            total[i] += a * (weight - (used[i - 1] if i else 0.0))
    x_s = combined(x, a, total, past)
    return x_s, x0, (float(t), past[:order], weights)


def deis_step(denoise, schedule, x, t, s, state=None, noise=None, order: int = 3):
    """DEIS, tAB in log(sigma / alpha) (Zhang and Chen 2023): a polynomial of eps."""
    x0, left, lam, sigma = _answers(denoise, schedule, x, t)
    past = [((lam, sigma), left), *(state or [])][:order]
    if math.isinf(lam) or math.isinf(half_log_snr(schedule, x, s)):
        x_s, _, _ = ddim_step(lambda x, t: x0, schedule, x, t, s)
        return x_s, x0, past if math.isfinite(lam) else []
    known = tuple([place for place, _ in past])
    return combined(x, *deis_plan(schedule, float(t), float(s), known), past), x0, past


@lru_cache(maxsize=4096)
def deis_plan(
    schedule: Schedule, t: float, s: float, known: tuple[tuple[float, float], ...]
) -> tuple[float, list[float]]:
    """Return (a, w): x_s is a x_t + sum w_j left_j; known: their (lam, sigma)."""
    (alpha_t, _), (alpha_s, sigma_s) = schedule.at(t, NOWHERE), schedule.at(s, NOWHERE)
    lam, h = known[0][0], half_log_snr(schedule, NOWHERE, s) - known[0][0]
    weights = h * polynomial_weights(h, tuple(node - lam for node, _ in known), -1.0)
    shares = zip(weights.tolist(), known, strict=True)
    return alpha_s / alpha_t, [
        -sigma_s * weight / sigma for weight, (_, sigma) in shares
    ]


def plms_step(denoise, schedule, x, t, s, state=None, noise=None):
    """PLMS, the multistep half of PNDM (Liu et al. 2022): Adams-Bashforth for eps_hat.

    The weights are those of even steps; DDIM's step then carries x on, which keeps the
    whole at second order. The first step takes a second call, as in the authors' code.
    state: the last answers, (sigma, sigma eps_hat) each.
    """
    x0, left, lam, sigma = _answers(denoise, schedule, x, t)
    if math.isinf(lam):
        return *ddim_step(lambda x, t: x0, schedule, x, t, s)[:2], None
    past = [(sigma, left), *(state or [])][:4]
    if state is None and s > 0:
        guess = _along(schedule, x, t, s, past)
        _, ahead, _, sigma_s = _answers(denoise, schedule, guess, s)
        both = [*past, (sigma_s, ahead)]
        return _along(schedule, x, t, s, both, (1, 1)), x0, past
    return _along(schedule, x, t, s, past, ADAMS[len(past) - 1]), x0, past


def _answers(denoise, schedule: Schedule, x: Tensor, t):
    """(x0_hat, sigma eps_hat, half log-SNR, sigma) at t."""
    x0, (alpha, sigma) = denoise(x, t), schedule.at(t, x)
    return x0, torch.sub(x, x0, alpha=alpha), half_log_snr(schedule, x, t), sigma


def _along(schedule: Schedule, x: Tensor, t, s, past: list, rule=(1,)):
    """DDIM's step where alpha_t > 0, with the mean of answers eps, weighted by rule."""
    sigmas = tuple([sigma for sigma, _ in past])
    return combined(x, *ddim_plan(schedule, float(t), float(s), sigmas, rule), past)


@lru_cache(maxsize=4096)
def ddim_plan(
    schedule: Schedule, t: float, s: float, sigmas: tuple[float, ...], rule: tuple
) -> tuple[float, list[float]]:
    """Return (a, w): x_s is a x_t + sum w_j left_j, the answers weighted by rule."""
    at_t, at_s = schedule.at(t, NOWHERE), schedule.at(s, NOWHERE)
    ratio = at_s[0] / at_t[0]
    total = (at_s[1] - ratio * at_t[1]) / sum(rule)
    pairs = zip(rule, sigmas, strict=True)
    return ratio, [weight * total / sigma for weight, sigma in pairs]
