"""Time grids: n + 1 times from noise to exactly 0, for any schedule."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .schedules import Schedule


def uniform_times(schedule: "Schedule", n: int) -> Tensor:
    """Return n + 1 evenly spaced times from t_max to 0; whole rows of a discrete table.

    The "trailing" grid of Lin et al. (2024): the first call is at t_max itself.
    Raises ValueError if n is not positive or exceeds the T steps of a discrete table.
    """
    _check_steps(n)
    T = getattr(schedule, "T", None)
    if T is not None and n > T:
        raise ValueError(f"{n} steps asked of a chain with T = {T}: use n <= {T}")
    times = torch.linspace(schedule.t_max, 0, n + 1, dtype=torch.float64)
    return times if T is None else times.round()


def quadratic_times(schedule: "Schedule", n: int) -> Tensor:
    """Return n + 1 times t_max (k / n)^2 for k = n .. 0: small steps near the data.

    Song et al. (2021, DDIM) take them for CIFAR-10. Fractional on a discrete table.
    """
    _check_steps(n)
    return schedule.t_max * torch.linspace(1, 0, n + 1, dtype=torch.float64) ** 2


def karras_times(
    schedule: "Schedule",
    n: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Tensor:
    """Return n + 1 times; (sigma / alpha)^(1 / rho) falls evenly, then 0 is added.

    The ends are in units of sigma / alpha (Karras et al. 2022, eq. 5).
    """
    _check_steps(n)
    ends = torch.tensor([sigma_max, sigma_min], dtype=torch.float64) ** (1 / rho)
    ratio = torch.linspace(float(ends[0]), float(ends[1]), n, dtype=torch.float64)
    return _with_zero(schedule.time_at(-2 * rho * ratio.log()))


def log_snr_times(
    schedule: "Schedule", n: int, first: float = -9.0, last: float = 9.0
) -> Tensor:
    """Return n + 1 times whose log-SNR rises evenly from first to last, then 0."""
    _check_steps(n)
    grid = torch.linspace(first, last, n, dtype=torch.float64)
    return _with_zero(schedule.time_at(grid))


def _with_zero(times: Tensor) -> Tensor:
    times = torch.cat([times, times.new_zeros(1)])
    if not bool((times.diff() < 0).all()):  # NaN fails, too
        raise ValueError(
            "the grid leaves the schedule's range (two times coincide): "
            "bring its ends closer together, or take fewer steps"
        )
    return times


def _check_steps(n: int) -> None:
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"the number of steps must be a positive integer: got {n}")
