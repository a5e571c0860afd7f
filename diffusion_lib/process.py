"""The forward process and its exact conditionals, for any schedule."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from .schedules import NOWHERE, Schedule, is_common

Variance = str | Callable  # the function: (schedule, t, s) -> () or (B,)


def q_sample(schedule: Schedule, x0: Tensor, t: Tensor | float, eps: Tensor) -> Tensor:
    """Return x_t = alpha_t x_0 + sigma_t eps, a draw of q(x_t | x_0).

    x0, eps: (B, ...) of one shape; t: () or (B,). Pictures in [-1, 1], eps ~ N(0, I).
    Ho et al. (2020), eq. 4. Raises TypeError for integer pictures, ValueError for
    shapes that differ, times out of range, or x0 with NaN.
    """
    check_alike(x0, eps)
    alpha, sigma = schedule(t, x0)
    return alpha * x0 + sigma * eps


def is_finite(x: Tensor) -> bool:
    """Return whether x holds no NaN and nothing infinite: NaN spreads to both ends."""
    low, high = x.detach().aminmax()
    return bool(torch.isfinite(low) & torch.isfinite(high))


def check_data(x: Tensor) -> None:
    """Raise TypeError or ValueError unless x is a non-empty, finite, floating batch."""
    if isinstance(x, tuple | list):
        raise TypeError(
            f"expected a tensor, got a {type(x).__name__} of {len(x)}: a batch from "
            "`shuffled` is a tuple, whose pictures are batch[0]"
        )
    if not isinstance(x, Tensor):
        raise TypeError(
            f"expected a tensor, got {type(x).__name__}: use torch.as_tensor(x)"
        )
    if not x.is_floating_point():
        raise TypeError(
            f"expected a floating-point tensor, got {x.dtype}: "
            "scale pictures in 0..255 to [-1, 1] first, x / 127.5 - 1"
        )
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"expected a batch (B, ...) of data, got {tuple(x.shape)}")
    if not is_finite(x):
        raise ValueError("the data contain NaN or infinite values")


def check_pictures(x: Tensor) -> None:
    """Raise as check_data does, or ValueError for pictures that were not scaled."""
    check_data(x)
    if float(x.detach().abs().max()) > 50:
        raise ValueError("values beyond 50: scale pictures to [-1, 1], x / 127.5 - 1")


def check_alike(x: Tensor, other: Tensor) -> None:
    """Raise as check_data does, or ValueError unless other has the shape of x."""
    check_data(x)
    if other.shape != x.shape:
        raise ValueError(
            f"expected two tensors of one shape, got {tuple(x.shape)} and "
            f"{tuple(other.shape)}: noise is drawn with torch.randn_like(x0)"
        )


def q_step(
    schedule: Schedule, x: Tensor, t: Tensor | float, s: Tensor | float, eps: Tensor
) -> Tensor:
    """Return x_s, a draw of q(x_s | x_t) for s >= t: noise x (B, ...) further.

    Raises ValueError if s < t, or if x_t holds no signal to scale (alpha_t = 0).
    """
    check_alike(x, eps)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t, x), schedule(s, x)
    if bool((torch.as_tensor(s) < torch.as_tensor(t)).any()) or bool(
        (alpha_t == 0).any()
    ):
        raise ValueError("q_step goes from t to a later s, with alpha_t > 0")
    ratio = alpha_s / alpha_t
    variance = sigma_s**2 - (ratio * sigma_t) ** 2
    return ratio * x + variance.clamp(min=0).sqrt() * eps


def posterior_coefficients(
    schedule: Schedule,
    x: Tensor,
    t: Tensor | float,
    s: Tensor | float,
    eta: float = 1.0,
) -> tuple:  # of tensors, or of floats for one common step
    """Return (a, b, std): x_s = a x_t + b x_0 + std z has the right marginal at s.

    std = eta sigma_s sqrt(1 - (alpha_t sigma_s / (alpha_s sigma_t))^2); what is left of
    sigma_s points along the noise already in x_t. Song et al. (2021, DDIM), eq. 16.
    Raises ValueError unless 0 <= eta <= 1. With eta = 0, s may also lie above t > 0.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    if is_common(t) and is_common(s):
        return _common_coefficients(schedule, float(t), float(s), eta)
    return _coefficients(schedule.at(t, x), schedule.at(s, x), eta)


@lru_cache(maxsize=4096)
def _common_coefficients(schedule: Schedule, t: float, s: float, eta: float):
    """Of one common step, remembered: batch after batch takes the same steps."""
    at_t, at_s = schedule.at(t, NOWHERE), schedule.at(s, NOWHERE)
    if at_t[1] == 0 or at_s[1] > at_t[1] > 0 < eta:
        raise ValueError(
            f"no step from t = {t:g} to {s:g}: start above t = 0, "
            "and with fresh noise (eta > 0) times must fall"
        )
    return _coefficients(at_t, at_s, eta)


def _coefficients(at_t, at_s, eta: float):
    """The formula, from (alpha, sigma) at both times."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = at_t, at_s
    fresh = eta**2 * abs(1 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2)
    a = sigma_s * (1 - fresh) ** 0.5 / sigma_t
    return a, alpha_s - a * alpha_t, sigma_s * fresh**0.5


def reverse_variance(
    variance: Variance, schedule: Schedule, x: Tensor, t: Tensor | float, s
) -> Tensor | float:
    """Return the variance of the reverse step from t to s, to broadcast to x (B, ...).

    "beta_tilde": of q(x_s | x_t, x_0); "beta": of q(x_t | x_s); or a function
    (schedule, t, s) -> () or (B,). Raises ValueError for another name.
    """
    if callable(variance):
        value = variance(schedule, t, s)
        rows = isinstance(value, Tensor) and value.ndim == 1
        return value.reshape(-1, *(1,) * (x.ndim - 1)).to(x) if rows else value
    if variance == "beta_tilde":
        return posterior_coefficients(schedule, x, t, s)[2] ** 2
    if variance != "beta":
        raise ValueError(
            f"unknown variance {variance!r}: 'beta', 'beta_tilde' or a function"
        )
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.at(t, x), schedule.at(s, x)
    return sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2


def interpolated_variance(share: float) -> Variance:
    """Return the variance exp(share log beta + (1 - share) log beta_tilde).

    Nichol and Dhariwal (2021), eq. 15, where the network learns the share; here it is
    a number in [0, 1]. For s > 0; at s = 0 beta_tilde is 0, and so is this.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], got {share}")

    def variance(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor | float:
        like = torch.empty(torch.as_tensor(t).shape, dtype=torch.float64)
        large, small = (
            reverse_variance(name, schedule, like, t, s)
            for name in ("beta", "beta_tilde")
        )
        return large**share * small ** (1 - share)

    return variance


def q_posterior(
    schedule: Schedule,
    x: Tensor,
    x0: Tensor,
    t: Tensor | float,
    s: Tensor | float,
    eta: float = 1.0,
) -> tuple[Tensor, Tensor | float]:
    """Return mean and std of x_s given x_t and x_0, for s < t.

    eta = 1 is the posterior q(x_s | x_t, x_0) of the chain (Ho et al. 2020, eq. 6-7);
    eta = 0 the deterministic DDIM map; every eta in [0, 1] keeps the marginal q(x_s |
    x_0). x, x0: (B, ...); the mean has their shape, std broadcasts against it.
    """
    check_alike(x, x0)
    if bool((torch.as_tensor(s) >= torch.as_tensor(t)).any()):
        raise ValueError("q_posterior goes back in time: s must be below t")
    a, b, std = posterior_coefficients(schedule, x, t, s, eta)
    return a * x + b * x0, std


def eps_from_x0(schedule: Schedule, x: Tensor, x0: Tensor, t: Tensor | float) -> Tensor:
    """Return the total noise in x_t, eps = (x_t - alpha_t x_0) / sigma_t, for t > 0."""
    alpha, sigma = _noisy(schedule, x, x0, t)
    return (x - alpha * x0) / sigma


def score_from_x0(
    schedule: Schedule, x: Tensor, x0: Tensor, t: Tensor | float
) -> Tensor:
    """Return grad log p_t(x_t) = (alpha_t x_0 - x_t) / sigma_t^2, x0 = E[x_0 | x_t].

    This is Tweedie's formula (Efron 2011), solved for the score.
    """
    alpha, sigma = _noisy(schedule, x, x0, t)
    return (alpha * x0 - x) / sigma**2


def _noisy(schedule: Schedule, x: Tensor, x0: Tensor, t: Tensor | float):
    """(alpha_t, sigma_t) at times that have noise."""
    check_alike(x, x0)
    alpha, sigma = schedule(t, x)
    if bool((sigma == 0).any()):
        raise ValueError("at t = 0 x holds no noise to speak of: ask at t > 0")
    return alpha, sigma
