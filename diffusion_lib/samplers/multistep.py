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
from ..schedules import NOWHERE, Schedule
from .ode import half_log_snr
from .posterior import ddim_step

Past = list[tuple[float, Tensor]]  # (its time, an answer), newest first
Times = tuple[float, ...]  # of answers; a step begins at the first
ADAMS = ((1,), (3, -1), (23, -16, 5), (55, -59, 37, -9))  # over 1, 2, 12, 24


def polynomial_weights(h: float, nodes: tuple[float, ...], rate: float) -> np.ndarray:
    """Return w with sum w_j f(nodes_j) = integral_0^h exp(-rate (h - u)) f(u) du / h.

    Exact for polynomials f of degree under len(nodes).
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
def x0_plan(
    schedule: Schedule, times: Times, s: float, eta: float = 0.0
) -> tuple[float, list[float], float]:
    """Return (a, w, std): the mean of x_s is a x_t + sum w_j x0_hat(times_j).

    t is times[0]; the others may lie on either side. Remembered, like all plans, for
    batch after batch takes the same steps.
    """
    a, b, std = posterior_coefficients(schedule, NOWHERE, times[0], s, eta)
    lams, lam_s = _clock(schedule, times), half_log_snr(schedule, NOWHERE, s)
    if math.isinf(lam_s) or math.isinf(lams[0]):
        return a, [b] + [0.0] * (len(lams) - 1), std
    nodes = [lam - lams[0] for lam in lams if math.isfinite(lam)]
    rate = 1 + eta**2  # noise makes the past fade twice as fast
    given = iter(shares(lam_s - lams[0], tuple(nodes), rate))
    return a, [b * next(given) if math.isfinite(lam) else 0.0 for lam in lams], std


@lru_cache(maxsize=4096)
def deis_plan(
    schedule: Schedule, times: Times, s: float
) -> tuple[float, list[float]] | None:
    """Return (a, w): x_s is a x_t + sum w_j left_j; None where log-SNR is infinite."""
    lams, lam_s = _clock(schedule, times), half_log_snr(schedule, NOWHERE, s)
    if math.isinf(lam_s) or math.isinf(lams[0]):
        return None
    h, nodes = lam_s - lams[0], tuple(lam - lams[0] for lam in lams)
    weights = -h * polynomial_weights(h, nodes, -1.0)
    return _for_left(schedule, times, s, schedule.at(s, NOWHERE)[1] * weights)


@lru_cache(maxsize=4096)
def plms_plan(
    schedule: Schedule, times: Times, s: float, rule: tuple[int, ...]
) -> tuple[float, list[float]] | None:
    """Return (a, w) of DDIM's step with eps averaged by rule; None: no signal at t."""
    alpha, sigma = schedule.at(times[0], NOWHERE)
    if alpha == 0:
        return None
    alpha_s, sigma_s = schedule.at(s, NOWHERE)
    weights = (sigma_s - alpha_s / alpha * sigma) * np.array(rule) / sum(rule)
    return _for_left(schedule, times, s, weights)


def _clock(schedule: Schedule, times: Times) -> list[float]:
    """Half log-SNR at each time."""
    return [half_log_snr(schedule, NOWHERE, t) for t in times]


def _for_left(schedule: Schedule, times: Times, s: float, weights: np.ndarray):
    """(a, w) from weights of eps_hat; w belongs to left = sigma eps_hat."""
    sigmas = np.array([schedule.at(t, NOWHERE)[1] for t in times])
    ratio = schedule.at(s, NOWHERE)[0] / schedule.at(times[0], NOWHERE)[0]
    return ratio, (weights / sigmas).tolist()


def combined(x: Tensor, a: float, weights: list[float], past: Past) -> Tensor:
    """Return a x + the weighted answers."""
    total = x.mul(a)
    for weight, (_, answer) in zip(weights, past, strict=True):
        if weight:
            total.add_(answer, alpha=weight)
    return total


def times_of(past: Past) -> Times:
    """Return the times of the answers."""
    return tuple([t for t, _ in past])


def dpmpp_step(denoise, schedule, x, t, s, state, noise, order: int, eta: float):
    """DPM-Solver++ of any order, with its state: the last answers (a Past)."""
    x0 = denoise(x, t)
    past = [(float(t), x0), *(state or [])][:order]
    a, weights, std = x0_plan(schedule, times_of(past), float(s), eta)
    mean = combined(x, a, weights, past)
    return (mean + std * noise() if std > 0 else mean), x0, past[: order - 1]


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
    beyond those it had, so both updates are one sum. state: (the last answers, their
    weights in the last step).
    """
    x0 = denoise(x, t)
    past, used = state or ([], [])
    past = [(float(t), x0), *past]
    times = times_of(past)
    a, weights, _ = x0_plan(schedule, times[:order], float(s))
    total = weights + [0.0] * (len(past) - len(weights))
    if state is not None:  # the last step began at past[1]
        _, better, _ = x0_plan(schedule, (times[1], times[0], *times[2:]), times[0])
        places = (1, 0, *range(2, len(past)))
        for i, weight in zip(places, better, strict=True):
            total[i] += a * (weight - (used[i - 1] if i else 0.0))
    return combined(x, a, total, past), x0, (past[:order], weights)


def deis_step(denoise, schedule, x, t, s, state=None, noise=None, order: int = 3):
    """DEIS (Zhang and Chen 2023): a polynomial of eps in log(sigma / alpha).

    So it is in diffusers, too; the authors' is one in t or in sigma / alpha.
    state: the last answers, left = sigma eps_hat each.
    """
    x0 = denoise(x, t)
    past = _with_left(schedule, x, t, x0, state)[:order]
    planned = deis_plan(schedule, times_of(past), float(s))
    if planned is None:
        x_s, _, _ = ddim_step(lambda x, t: x0, schedule, x, t, s)
        return x_s, x0, past if schedule.at(t, x)[0] > 0 else None
    return combined(x, *planned, past), x0, past[: order - 1]


def plms_step(denoise, schedule, x, t, s, state=None, noise=None):
    """PLMS, the multistep half of PNDM (Liu et al. 2022): Adams-Bashforth for eps_hat.

    The weights are those of even steps; DDIM's step then carries x on, which keeps the
    whole at second order. The first step takes a second call, as in the code of latent
    diffusion (the authors' begins with three Runge-Kutta steps). state: as of
    `deis_step`. Needs about 5 steps or more on `recipes.sampling_times`, where 0.2% of
    fashion-unet's values then lie beyond 1.2 (6% with 3 steps), and about 70 on even
    times of its schedule, where 3 steps give values in the thousands.
    """
    x0 = denoise(x, t)
    past = _with_left(schedule, x, t, x0, state)[:4]
    planned = plms_plan(schedule, times_of(past), float(s), ADAMS[len(past) - 1])
    if planned is None:
        return *ddim_step(lambda x, t: x0, schedule, x, t, s)[:2], None
    x_s = combined(x, *planned, past)
    if state is None and s > 0:
        (ahead,) = _with_left(schedule, x_s, s, denoise(x_s, s))
        both = [*past, ahead]
        planned = plms_plan(schedule, times_of(both), float(s), (1, 1))
        x_s = combined(x, *planned, both)
    return x_s, x0, past[:3]


def _with_left(schedule: Schedule, x: Tensor, t, x0: Tensor, state=None) -> Past:
    """The state with one more answer: what alpha x0_hat leaves of x, sigma eps_hat."""
    t = float(t)
    alpha, _ = schedule.at(t, x)
    return [(t, torch.sub(x, x0, alpha=alpha)), *(state or [])]
