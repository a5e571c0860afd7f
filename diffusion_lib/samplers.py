"""Samplers: one loop, and a step function for each method.

A step takes x from time t to s and returns (x_s, x0_hat, state). It sees the model only
as denoise(x, t); `state` is its own memory, None at the start; `noise()` draws from the
loop's generator and is not called by deterministic steps.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .process import (
    Variance,
    check_data,
    is_finite,
    posterior_coefficients,
    reverse_variance,
)
from .schedules import Schedule

Denoise = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[], Tensor]


class Frame(NamedTuple):
    """One moment of a trajectory: the time reached, x there, and the x_0 believed."""

    t: Tensor  # ()
    x: Tensor  # (B, ...)
    x0: Tensor  # (B, ...) the denoiser's answer that led here


def ddim_step(denoise, schedule, x, t, s, state=None, noise=None, eta: float = 0.0):
    """DDIM (Song et al. 2021): eta = 0 draws nothing, eta = 1 is DDPM's posterior."""
    x0 = denoise(x, t)
    a, b, std = posterior_coefficients(schedule, x, t, s, eta)
    x_s = (a * x).add_(x0, alpha=b)
    return (x_s + std * noise() if std > 0 else x_s), x0, state


def ddpm_step(
    denoise,
    schedule,
    x,
    t,
    s,
    state=None,
    noise=None,
    variance: Variance = "beta_tilde",
):
    """Ancestral sampling (Ho et al. 2020, Algorithm 2), between any two times s < t.

    The mean is that of q(x_s | x_t, x0_hat). The variance is that posterior's
    ("beta_tilde"), that of q(x_t | x_s) ("beta"), or variance(schedule, t, s). No noise
    is added at the step that ends at 0.
    """
    x0 = denoise(x, t)
    a, b, std = posterior_coefficients(schedule, x, t, s, eta=1.0)
    if variance != "beta_tilde":
        std = reverse_variance(variance, schedule, x, t, s) ** 0.5
    mean = (a * x).add_(x0, alpha=b)
    return (mean + std * noise() if s > 0 else mean), x0, state


def heun_step(denoise, schedule, x, t, s, state=None, noise=None):
    """Trapezoid rule on dx = x0 dalpha + eps dsigma (Karras et al. 2022, Algorithm 1).

    Second order, two calls a step; a first-order step where s = 0.
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


def dpmpp_2m_step(denoise, schedule, x, t, s, state=None, noise=None):
    """DPM-Solver++(2M) (Lu et al. 2022): DDIM from an x0 extrapolated in log-SNR.

    state: (half log-SNR, x0) of the step before. First order at both ends.
    """
    x0 = denoise(x, t)
    a, b, _ = posterior_coefficients(schedule, x, t, s, eta=0.0)
    lam = _half_log_snr(schedule, x, t)
    if state is None or s == 0:
        return (a * x).add_(x0, alpha=b), x0, (lam, x0)
    lam_before, x0_before = state
    more = (_half_log_snr(schedule, x, s) - lam) / (lam - lam_before) / 2
    x_s = (a * x).add_(x0, alpha=b * (1 + more))
    return x_s.add_(x0_before, alpha=-b * more), x0, (lam, x0)


def _half_log_snr(schedule: Schedule, x: Tensor, t: Tensor) -> float:
    alpha, sigma = schedule.at(t, x)
    return math.log(alpha / sigma) if alpha > 0 else -math.inf


def trajectory(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor | int,
    step: Callable = ddim_step,
    generator: torch.Generator | None = None,
) -> Iterator[Frame]:
    """Yield a Frame after every step, from x (B, ...) at times[0] to times[-1].

    times: (n + 1,) falling to 0 (or rising, for inversion with an ODE step), or n for
    schedule.times(n). The network is called at all but the last. generator: of the
    noise of stochastic steps; on any device. Raises ValueError for an empty x, times
    that repeat, turn back or start at 0, and at the end if x is NaN or infinite.
    """
    check_data(x)
    times = checked_times(schedule, times)
    noise = noise_like(x, generator)
    state: Any = None
    for t, s in pairwise(times.unbind()):
        with torch.no_grad():
            x, x0, state = step(denoise, schedule, x, t, s, state, noise)
        yield Frame(s, x, x0)
    if not is_finite(x):
        raise ValueError(
            "the trajectory ended in NaN or infinite values: look at the net's output "
            "at the first time, and try more steps or clip_x0(denoise)"
        )


def noise_like(x: Tensor, generator: torch.Generator | None) -> Noise:
    """Return noise() -> N(0, I) of x's shape and type, drawn where the generator is."""
    device = x.device if generator is None else generator.device
    kind = {"generator": generator, "device": device, "dtype": x.dtype}
    return lambda: torch.randn(x.shape, **kind).to(x.device)


def checked_times(schedule: Schedule, times: Tensor | int) -> Tensor:
    """Return the time grid as float64, or raise ValueError saying what is wrong."""
    if isinstance(times, int):
        return schedule.times(times)
    times = schedule.checked(times)
    if times.ndim != 1 or len(times) < 2:
        raise ValueError("times must list at least a start and an end, shape (n + 1,)")
    if times[0] == 0:
        raise ValueError("the first time is 0, where x is clean: start above it")
    steps = times.diff()
    if not (bool((steps < 0).all()) or bool((steps > 0).all())):
        raise ValueError("times must fall (or rise) at every step, without repeats")
    return times


def sample(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor | int,
    step: Callable = ddim_step,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the last x of `trajectory` (same arguments and errors), (B, ...)."""
    (last,) = deque(trajectory(denoise, schedule, x, times, step, generator), maxlen=1)
    return last.x
