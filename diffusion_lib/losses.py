"""Training losses: the regression that teaches a denoiser."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .denoiser import Cond, Denoiser
from .process import check_data, q_sample
from .schedules import Schedule

DISTANCES: dict[str, Callable] = {
    "l2": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
}


def denoising_loss(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Cond | None = None,
    t: Tensor | None = None,
    eps: Tensor | None = None,
    weight: Callable[[Denoiser, Tensor], Tensor] | None = None,
    distance: str = "l2",
) -> Tensor:
    """Return (B,) mean errors of the net's output, one random time per example.

    x0: (B, ...) in [-1, 1]. t (B,) and eps (B, ...) are drawn where not given. weight:
    (denoiser, t) -> (B,). "l2" regresses the mean, "l1" the median, "huber" something
    in between. Algorithm 1 of Ho et al. (2020), for any prediction.
    """
    if distance not in DISTANCES:
        raise ValueError(f"unknown distance {distance!r}: one of {list(DISTANCES)}")
    check_data(x0)
    t = denoiser.schedule.random_times(len(x0)) if t is None else t
    eps = torch.randn_like(x0) if eps is None else eps
    x = q_sample(denoiser.schedule, x0, t, eps)
    output, target = denoiser.output(x, t, cond), denoiser.target(x0, eps, t)
    error = DISTANCES[distance](output, target, reduction="none").flatten(1).mean(1)
    return error if weight is None else weight(denoiser, t).to(error) * error


def snr(schedule: Schedule, t: Tensor | float) -> Tensor:
    """Return alpha_t^2 / sigma_t^2, float64, shaped as t."""
    return schedule.log_snr(t).exp()


def min_snr(gamma: float = 5.0) -> Callable[[Denoiser, Tensor], Tensor]:
    """Return the weight min(SNR, gamma) on the error of x_0, in the net's own units.

    An error in x_0 appears in the output y = a x_0 + b eps times (a - b alpha / sigma);
    the weight is divided by that factor's square. Hang et al. (2023).
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be above 0, got {gamma}")

    def weight(denoiser: Denoiser, t: Tensor) -> Tensor:
        like = torch.empty(len(t), 1, dtype=torch.float64)
        alpha, sigma, a, b = denoiser.coefficients(t, like)
        factor = (a - b * alpha / sigma)[:, 0]
        return snr(denoiser.schedule, t).clamp(max=gamma) / factor**2

    return weight


def log_snr_normal(
    schedule: Schedule, n: int, mean: float, std: float, uniform: float = 0.1
) -> Tensor:
    """Return n training times whose log-SNR is N(mean, std^2), a share of them uniform.

    Karras et al. (2022) draw log(sigma) from a normal; this is their density for any
    schedule. The uniform share keeps both ends of the schedule trained.
    """
    if not (std >= 0 and 0 <= uniform <= 1):
        raise ValueError(
            f"std must be >= 0 and uniform a share in [0, 1], got {std} and {uniform}"
        )
    t = schedule.time_at(mean + std * torch.randn(n, dtype=torch.float64))
    lowest = schedule.t_max * 1e-4
    if hasattr(schedule, "T"):
        t, lowest = t.round(), 1
    keep = torch.rand(n) >= uniform
    return torch.where(
        keep, t.clamp(lowest, schedule.t_max), schedule.random_times(n).to(t)
    )


def dropped(denoiser: Denoiser, cond: Cond, rate: float) -> Cond:
    """Return cond with each example's entries replaced by their null at the given rate.

    Training with 10-20% dropped teaches one net both halves of classifier-free guidance
    (Ho and Salimans 2022). Raises ValueError unless 0 <= rate <= 1.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"the drop rate is a share in [0, 1], got {rate}")
    null = denoiser.null(cond)
    drop = torch.rand(len(next(iter(cond.values())))) < rate
    return {
        name: torch.where(_like(drop, value), null[name], value)
        for name, value in cond.items()
    }


def _like(drop: Tensor, value: Tensor) -> Tensor:
    return drop.to(value.device).reshape(-1, *(1,) * (value.ndim - 1))
