"""Likelihood: the evidence lower bound of a chain term by term, and the ODE's density.

All in nats per example, in float64 around the network's answers; bits_per_dim converts.
A term is an expectation over x_t: one draw of it is taken for each example.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from .process import (
    Variance,
    check_alike,
    check_data,
    posterior_coefficients,
    q_sample,
    reverse_variance,
)
from .samplers import Denoise
from .schedules import Schedule

Nats = TypeVar("Nats", Tensor, float)


def bits_per_dim(nats: Nats, D: int) -> Nats:
    """Return nats / (D ln 2): nats of a whole example in bits for each of D numbers."""
    if D < 1:
        raise ValueError(f"D counts the numbers of an example: got {D}")
    return nats / (D * math.log(2))


def prior_kl(schedule: Schedule, x0: Tensor, std: float | None = None) -> Tensor:
    """Return L_T = KL(q(x_T | x_0) || N(0, std^2 I)) in nats, (B,), for x0 (B, ...).

    std: of the sampler's start; default that of schedule.noise, sigma at t_max. The
    papers' N(0, I) is std=1; the two differ where alpha at t_max is not near 0.
    """
    check_data(x0)
    x0 = x0.double()
    alpha, sigma = schedule.at(schedule.t_max, x0)
    ratio = (sigma / (sigma if std is None else std)) ** 2
    square = (alpha * x0).square() * (ratio / sigma**2)
    return 0.5 * (square + ratio - 1 - math.log(ratio)).flatten(1).sum(1)


def kl_term(
    schedule: Schedule,
    x0: Tensor,
    x0_hat: Tensor,
    t: Tensor | float,
    s: Tensor | float,
    variance: Variance = "beta_tilde",
) -> Tensor:
    """Return KL(q(x_s | x_t, x_0) || p(x_s | x_t)) in nats, (B,), for 0 < s < t.

    p is the step of `ddpm_step`: the posterior's mean with x0_hat (B, ...) in the place
    of x_0, and the given variance. Ho et al. (2020), L_{t-1} in eq. 5. Raises
    ValueError at s = 0, for shapes that differ, or for NaN.
    """
    check_alike(x0, x0_hat)
    x0, x0_hat = x0.double(), x0_hat.double()
    _, b, std = posterior_coefficients(schedule, x0, t, s)
    if bool((torch.as_tensor(std) == 0).any()):
        raise ValueError("at s = 0 q(x_s | x_t, x_0) is a point: use decoder_nll")
    var = reverse_variance(variance, schedule, x0, t, s)
    ratio = torch.as_tensor(std**2 / var, dtype=torch.float64)
    nats = b**2 / var * (x0 - x0_hat).square() + ratio - 1 - ratio.log()
    return 0.5 * nats.flatten(1).sum(1)


def decoder_nll(
    x0: Tensor, mean: Tensor, std: Tensor | float, levels: int | None = 256
) -> Tensor:
    """Return L_0 = -log p(x_0 | x_1) in nats, (B,), of a Gaussian read out in levels.

    x0, mean: (B, ...); x0 on `levels` even values from -1 to 1: each owns the Gaussian
    within half a step of it, the two ends all beyond. Ho et al. (2020), eq. 13. With
    levels None it is the density of a continuous x0. Raises ValueError for an x0 off
    the levels, shapes that differ, or NaN.
    """
    check_alike(x0, mean)
    x0, mean = x0.double(), mean.double()
    std = torch.as_tensor(std, dtype=torch.float64)
    if levels is None:
        z = (x0 - mean) / std
        return (0.5 * z**2 + std.log() + 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)
    index = (x0 + 1) / 2 * (levels - 1)
    if bool(((index - index.round()).abs() > 1e-2).any() | (x0.abs() > 1.001).any()):
        raise ValueError(
            f"x0 must lie on {levels} even levels from -1 to 1, as k / 127.5 - 1 does "
            "for 256; give levels=None for continuous data"
        )
    index, half = index.round(), 1 / (levels - 1)
    low, high = (x0 - half - mean) / std, (x0 + half - mean) / std
    low = torch.where(index == 0, -math.inf, low)
    high = torch.where(index == levels - 1, math.inf, high)
    return -_log_normal_mass(low, high).flatten(1).sum(1)


def _log_normal_mass(low: Tensor, high: Tensor) -> Tensor:
    """log(Phi(high) - Phi(low)), taken in the tail where both are small numbers."""
    mirror = low + high > 0
    low, high = torch.where(mirror, -high, low), torch.where(mirror, -low, high)
    top = torch.special.log_ndtr(high)
    return top + torch.log(-torch.expm1(torch.special.log_ndtr(low) - top))


@torch.no_grad()
def step_nats(
    denoise: Denoise,
    schedule: Schedule,
    x0: Tensor,
    t: Tensor | float,
    s: Tensor | float,
    variance: Variance = "beta_tilde",
    levels: int | None = 256,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return what the step from t to s costs, (B,) nats, at one draw of x_t.

    kl_term where s > 0, decoder_nll where s = 0; t and s are () or (B,). A variance
    that is 0 at s = 0, as "beta_tilde" is, gives way to "beta" there, as in Ho et al.
    """
    eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype).to(x0.device)
    x0_hat = denoise(q_sample(schedule, x0, t, eps), t)
    last = (torch.as_tensor(s) == 0).to(x0.device).expand(len(x0))
    nats = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    for rows, is_last in ((last, True), (~last, False)):
        if not bool(rows.any()):
            continue
        t_rows, s_rows = _rows(t, rows), _rows(s, rows)
        part, part_hat = x0[rows].double(), x0_hat[rows]
        if is_last:
            var = reverse_variance(variance, schedule, part, t_rows, s_rows)
            if not bool(torch.as_tensor(var).any()):
                var = reverse_variance("beta", schedule, part, t_rows, s_rows)
            nats[rows] = decoder_nll(part, part_hat, var**0.5, levels)
        else:
            nats[rows] = kl_term(schedule, part, part_hat, t_rows, s_rows, variance)
    return nats


def _rows(t: Tensor | float, rows: Tensor) -> Tensor | float:
    return t[rows.to(t.device)] if isinstance(t, Tensor) and t.ndim else t


def elbo(
    denoise: Denoise,
    schedule: Schedule,
    x0: Tensor,
    times: Tensor | int | None = None,
    variance: Variance = "beta_tilde",
    levels: int | None = 256,
    prior_std: float | None = None,
    draws: int | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Return the negative bound, -log p(x_0) <= total in expectation, term by term.

    In nats: {"prior": (B,), "steps": (B, n), "total": (B,)}, steps from t_max down, the
    last of them the decoder. The model whose bound it is samples by `ddpm_step` on the
    same times (n or a grid; default: every row of a discrete schedule) and variance:
    each number of steps is a model of its own. n network calls for each example; with
    `draws` fewer: that many of `step_groups`, and an unbiased estimate of their sums.
    """
    if times is None:
        times = getattr(schedule, "T", None)
        if times is None:
            raise ValueError("a continuous schedule needs times: how many steps?")
    grid = schedule.times(times) if isinstance(times, int) else schedule.checked(times)
    if not (grid.ndim == 1 and grid[0] == schedule.t_max and grid[-1] == 0):
        raise ValueError("times must fall from t_max to 0: the bound covers all steps")
    steps = []
    for first, size in step_groups(len(grid) - 1, draws):
        row = torch.tensor(first)
        if size > 1:
            row = first + torch.randint(size, (len(x0),), generator=generator)
        pair = grid[row], grid[row + 1]
        nats = step_nats(denoise, schedule, x0, *pair, variance, levels, generator)
        steps.append(size * nats)
    prior = prior_kl(schedule, x0, prior_std)
    return {"prior": prior, "steps": torch.stack(steps, 1), "total": prior + sum(steps)}


def step_groups(n: int, draws: int | None = None) -> list[tuple[int, int]]:
    """Return (first, size) of groups of n steps, counted from the noise's end.

    One step each with draws None; else `draws` groups whose sizes fall towards the
    data, where the steps differ most, down to single steps.
    """
    if draws is None:
        return [(i, 1) for i in range(n)]
    if not 1 <= draws <= n:
        raise ValueError(f"draws must be between 1 and the {n} steps: got {draws}")
    ends = [round(n ** (i / draws)) for i in range(1, draws + 1)]  # from the data's end
    for i in reversed(range(draws - 1)):  # no group is empty
        ends[i] = min(max(ends[i], i + 1), ends[i + 1] - 1)
    starts = [0, *ends[:-1]]
    return [(n - b, b - a) for a, b in zip(starts, ends, strict=True)][::-1]


def optimal_variance(mse: Callable[[Tensor], Tensor]) -> Variance:
    """Return the isotropic variance that makes the bound tightest, for given errors.

    mse: t () or (B,), float64 -> E (x_0 - x0_hat)^2 per number at t. The variance is
    beta_tilde plus what the doubt about x_0 adds, b^2 mse (Bao et al. 2022, for the
    exact denoiser).
    """

    def variance(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
        like = torch.empty(torch.as_tensor(t).shape, dtype=torch.float64)
        _, b, std = posterior_coefficients(schedule, like, t, s)
        return std**2 + b**2 * mse(t)

    return variance


def ode_log_likelihood(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    steps: int = 50,
    log_snr: tuple[float, float] = (10.0, -9.0),
    probes: int | None = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return log p(x) in nats, (B,), by the probability-flow ODE from x to the noise.

    x: (B, ...), taken as x_t at the first log-SNR; the ODE runs to the second (or to
    t_max), where x_t is taken as N(0, sigma^2). Four network calls a step (Runge-Kutta,
    order 4, uniform in log-SNR), each with `probes` gradients: random signs estimate
    the divergence without bias (Hutchinson; Grathwohl et al. 2019); None takes it
    exactly, with a gradient for every number of x. Song et al. (2021), eq. 39.
    """
    # In y = x / alpha and rho = log(sigma / alpha) the ODE is dy / drho = y - x0_hat.
    first = -log_snr[0] / 2
    last = min(-log_snr[1] / 2, -float(schedule.log_snr(schedule.t_max)) / 2)
    grid = torch.linspace(first, last, steps + 1, dtype=torch.float64).tolist()
    alpha, _ = schedule.at(schedule.time_at(torch.tensor(-2 * first)), x)
    signs = _probes(x, probes, generator)
    y, gain, D = x / alpha, 0.0, x[0].numel()
    for rho, rho_next in pairwise(grid):
        y, more = _runge_kutta(denoise, schedule, y, rho, rho_next - rho, signs)
        gain = gain + more
    alpha_end, sigma_end = schedule.at(schedule.time_at(torch.tensor(-2 * last)), x)
    z = (alpha_end * y / sigma_end).double().flatten(1)
    log_end = -0.5 * (z**2 + math.log(2 * math.pi)).sum(1) - D * math.log(sigma_end)
    return log_end + D * math.log(alpha_end / alpha) + gain


def _probes(x: Tensor, probes: int | None, generator) -> Tensor:
    """Directions to differentiate along: (P, B, ...) random signs, or every axis."""
    if probes is not None:
        if probes < 1:
            raise ValueError(f"probes must be at least 1, or None: got {probes}")
        bits = torch.randint(0, 2, (probes, *x.shape), generator=generator)
        return (2 * bits - 1).to(x) / probes**0.5
    axes = torch.eye(x[0].numel()).reshape(-1, 1, *x.shape[1:])
    return axes.expand(-1, len(x), *x.shape[1:]).to(x)


def _runge_kutta(denoise, schedule, y, rho, h, signs):
    """One step of order 4 for y and for the integral of the divergence."""
    k1, d1 = _rate(denoise, schedule, y, rho, signs)
    k2, d2 = _rate(denoise, schedule, y + h / 2 * k1, rho + h / 2, signs)
    k3, d3 = _rate(denoise, schedule, y + h / 2 * k2, rho + h / 2, signs)
    k4, d4 = _rate(denoise, schedule, y + h * k3, rho + h, signs)
    dy, divergence = k1 + 2 * k2 + 2 * k3 + k4, d1 + 2 * d2 + 2 * d3 + d4
    return y + h / 6 * dy, h / 6 * divergence


@torch.enable_grad()
def _rate(denoise, schedule, y, rho, signs):
    """(y - x0_hat, its divergence in y)."""
    t = schedule.time_at(torch.tensor(-2 * rho, dtype=torch.float64))
    y = y.detach().requires_grad_()
    x0_hat = denoise(schedule.at(t, y)[0] * y, t)
    trace = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    for v in signs:
        (row,) = torch.autograd.grad(x0_hat, y, v, retain_graph=True)
        trace += (row * v).double().flatten(1).sum(1)
    return (y - x0_hat).detach(), y[0].numel() - trace
