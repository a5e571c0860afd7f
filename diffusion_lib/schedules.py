"""Noise schedules: x_t = alpha_t x_0 + sigma_t eps; t = 0 is data, t = t_max noise.

`alpha` is always the signal coefficient, never its square; the papers' cumulative
product is `alpha_bar` = alpha^2. Everything is float64 on the CPU.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .grids import karras_times, uniform_times

NOWHERE = torch.empty(0)  # an x for `at`: of one common time its floats need none


def is_common(t: Tensor | float) -> bool:
    """Return whether t is one time, not one for each row of a batch."""
    return not isinstance(t, Tensor) or t.ndim == 0


class Schedule(ABC):
    """Maps a time t in [0, t_max] to (alpha_t, sigma_t); (1, 0) at t = 0."""

    t_max: float

    @abstractmethod
    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha_t, sigma_t) for float64 times t, shaped as t."""

    @abstractmethod
    def time_at(self, log_snr: Tensor) -> Tensor:
        """Return the time at which log(alpha^2 / sigma^2) has the given value."""

    def __call__(self, t: Tensor | float, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha_t, sigma_t), shaped to broadcast against x (B, ...).

        t: () or (B,). For one common time the two are float64 scalars on the CPU, which
        multiply an x of any type and device; else (B, 1, ...) of x's type and device.
        Raises ValueError for a time outside [0, t_max] or a batch that does not match.
        """
        alpha, sigma = self.at(t, x)
        if isinstance(alpha, float):
            alpha, sigma = torch.tensor([alpha, sigma], dtype=torch.float64).unbind()
        return alpha, sigma

    def at(self, t: Tensor | float, x: Tensor):
        """Return what calling does, but plain floats for one common time.

        Remembered: a sampler's loop asks for the same few times again and again.
        """
        if not isinstance(t, Tensor) or is_common(t):
            return self._floats_at(float(t))[:2]
        if t.shape != x.shape[:1]:
            raise ValueError(
                f"t has shape {tuple(t.shape)} and x {tuple(x.shape)}: give one time, "
                f"or one for each of the {len(x)} rows of x"
            )
        shape = t.shape + (1,) * (x.ndim - 1)
        alpha, sigma = self.alpha_sigma(self.checked(t))
        return alpha.reshape(shape).to(x), sigma.reshape(shape).to(x)

    def _floats_at(self, t: float) -> tuple[float, float, float]:
        """(alpha_t, sigma_t, embed(t)), remembered."""
        known = self.__dict__.setdefault("_known", {})
        if t not in known:
            if len(known) > 4096:
                known.clear()
            alpha, sigma = self.alpha_sigma(self.checked(t))
            known[t] = float(alpha), float(sigma), float(self.embed(t))
        return known[t]

    def checked(self, t: Tensor | float) -> Tensor:
        """Return t as float64 on the CPU, or raise ValueError if outside [0, t_max]."""
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        if not bool(((t >= 0) & (t <= self.t_max)).all()):  # NaN fails, too
            raise ValueError(
                f"times must lie in [0, {self.t_max}] (0 is data, {self.t_max} noise); "
                f"got {t.flatten()[:8].tolist()}"
            )
        return t

    def log_snr(self, t: Tensor | float) -> Tensor:
        """Return log(alpha_t^2 / sigma_t^2), float64, like t; infinite at t = 0."""
        alpha, sigma = self.alpha_sigma(self.checked(t))
        return 2 * (alpha.log() - sigma.log())

    def times(self, n: int) -> Tensor:
        """Return n + 1 times from t_max to exactly 0: n steps. float64."""
        return uniform_times(self, n)

    def random_times(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return n training times, uniform in (0, t_max]. float64."""
        u = torch.rand(n, generator=generator, dtype=torch.float64)
        return self.t_max * (1 - u)

    def embed(self, t: Tensor | float) -> Tensor:
        """Return the number of order one that the network sees for t."""
        return self.checked(t) / self.t_max

    def embed_at(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Return embed(t), (B,), of x's type and device, for t () or (B,)."""
        if is_common(t):
            return x.new_full(x.shape[:1], self._floats_at(float(t))[2])
        return self.embed(t).to(x)

    def noise(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Return the sampler's start, N(0, sigma(t_max)^2) of the given shape."""
        _, sigma = self.alpha_sigma(torch.tensor(self.t_max, dtype=torch.float64))
        return sigma * torch.randn(shape, generator=generator, dtype=dtype)


class DiscreteSchedule(Schedule):
    """The T-step chain of DDPM (Ho et al. 2020). Row t of a table is the paper's t.

    alpha_bar: (T + 1,), 1 at row 0 and falling. Times between the rows are allowed:
    log(alpha_bar) is interpolated linearly.
    """

    def __init__(self, alpha_bar: Tensor):
        alpha_bar = torch.as_tensor(alpha_bar, dtype=torch.float64).cpu()
        if alpha_bar.ndim != 1 or len(alpha_bar) < 2 or alpha_bar[0] != 1:
            raise ValueError(
                "alpha_bar must be a table of T + 1 rows whose row 0 is 1 (the data)"
            )
        if not bool((alpha_bar.diff() < 0).all()) or alpha_bar[-1] < 0:
            raise ValueError("alpha_bar must fall from row to row and stay >= 0")
        self.alpha_bar = alpha_bar  # (T + 1,)
        self.beta = 1 - alpha_bar / torch.cat([alpha_bar[:1], alpha_bar[:-1]])
        self.T = self.t_max = len(alpha_bar) - 1
        self._log_alpha_bar = alpha_bar.log()

    @classmethod
    def from_betas(cls, betas: Tensor) -> "DiscreteSchedule":
        """Build the chain from beta_1 .. beta_T, (T,), each in (0, 1)."""
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if betas.ndim != 1 or not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError("betas must be a one-dimensional table within (0, 1)")
        return cls(torch.cat([betas.new_ones(1), (1 - betas).cumprod(0)]))

    def alpha_sigma(self, t):
        """Return (alpha_t, sigma_t); between rows log(alpha_bar) is linear."""
        low = t.floor().long().clamp(max=self.T - 1)
        left, right = self._log_alpha_bar[low], self._log_alpha_bar[low + 1]
        weight = t - low
        between = torch.lerp(left, right, weight)
        log_alpha_bar = torch.where(weight == 0, left, between)  # 0 * -inf is no number
        log_alpha_bar = torch.where(weight == 1, right, log_alpha_bar)
        return (log_alpha_bar / 2).exp(), (-torch.expm1(log_alpha_bar)).sqrt()

    def time_at(self, log_snr):
        """Return the (fractional) row with this log-SNR; beyond the ends, the end."""
        wanted = torch.nn.functional.logsigmoid(
            torch.as_tensor(log_snr, dtype=torch.float64)
        )
        table = -self._log_alpha_bar  # rising
        high = torch.searchsorted(table, -wanted).clamp(1, self.T)
        low = high - 1
        weight = (-wanted - table[low]) / (table[high] - table[low])
        weight = torch.where(-wanted == table[high], 1.0, weight)  # inf / inf
        return low + weight.clamp(0, 1)

    def random_times(self, n, generator=None):
        """Return n training times, uniform in 1 .. T. int64."""
        return torch.randint(1, self.T + 1, (n,), generator=generator)


def linear_schedule(T: int = 1000, first: float = 1e-4, last: float = 0.02):
    """Return beta rising linearly from first to last, as given (Ho et al. 2020).

    Made for T = 1000: with fewer steps x_T is not noise (T = 200: alpha_bar_T = 0.132).
    """
    return DiscreteSchedule.from_betas(_ramp(T, first, last))


def quadratic_schedule(T: int = 1000, first: float = 1e-4, last: float = 0.02):
    """Return beta whose square root rises linearly between the roots of the ends."""
    return DiscreteSchedule.from_betas(_ramp(T, first**0.5, last**0.5) ** 2)


def sigmoid_schedule(T: int = 1000, first: float = 1e-4, last: float = 0.02):
    """Return beta rising from first to last along a logistic curve over [-6, 6]."""
    curve = torch.sigmoid(_ramp(T, -6.0, 6.0))
    return DiscreteSchedule.from_betas(first + (last - first) * curve)


def constant_schedule(T: int, beta: float):
    """Return the same beta at every step: alpha_bar_t = (1 - beta)^t."""
    return DiscreteSchedule.from_betas(_ramp(T, beta, beta))


def cosine_schedule(T: int = 1000, offset: float = 0.008, max_beta: float = 0.999):
    """Return alpha_bar as a squared cosine, beta clipped (Nichol, Dhariwal 2021)."""
    u = _ramp(T + 1, 0.0, 1.0)
    f = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
    return DiscreteSchedule.from_betas((1 - f[1:] / f[:-1]).clamp(max=max_beta))


def _ramp(T: int, first: float, last: float) -> Tensor:
    if not isinstance(T, int) or T < 1:
        raise ValueError(f"T, the number of steps, must be a positive integer: got {T}")
    return torch.linspace(first, last, T, dtype=torch.float64)


class VPSchedule(Schedule):
    """The continuous limit of the linear chain (Song et al. 2021, eq. 33)."""

    t_max = 1.0

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        if not 0 <= beta_min < beta_max:
            raise ValueError("beta_min must be at least 0 and below beta_max")
        self.beta_min, self.beta_max = beta_min, beta_max

    def alpha_sigma(self, t):
        """Return the pair; -log(alpha^2) is the integral of beta from 0 to t."""
        slope = self.beta_max - self.beta_min
        log_alpha_bar = -(self.beta_min * t + slope * t**2 / 2)
        return (log_alpha_bar / 2).exp(), (-torch.expm1(log_alpha_bar)).sqrt()

    def time_at(self, log_snr):
        """Return the root of the quadratic in t."""
        log_snr = torch.as_tensor(log_snr, dtype=torch.float64)
        integral = torch.nn.functional.softplus(-log_snr)
        slope = self.beta_max - self.beta_min
        root = (self.beta_min**2 + 2 * slope * integral).sqrt()
        time = (2 * integral / (self.beta_min + root)).clamp(0, self.t_max)
        return torch.where(integral == 0, 0.0, time)  # 0 / 0 where beta_min = 0


class FlowSchedule(Schedule):
    """Straight lines from data to noise: alpha = 1 - t, sigma = t (Liu et al. 2023)."""

    t_max = 1.0

    def alpha_sigma(self, t):
        """Return (1 - t, t)."""
        return 1 - t, t

    def time_at(self, log_snr):
        """Return sigmoid(-log_snr / 2), since sigma / alpha = t / (1 - t)."""
        return torch.sigmoid(-torch.as_tensor(log_snr, dtype=torch.float64) / 2)


class EDMSchedule(Schedule):
    """Variance exploding, alpha = 1, with sigma itself as time (Karras et al. 2022)."""

    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        log_mean: float = -1.2,
        log_std: float = 1.2,
    ):
        if not 0 < sigma_min < sigma_max:
            raise ValueError("sigma_min must be above 0 and below sigma_max")
        self.sigma_min, self.t_max, self.rho = sigma_min, sigma_max, rho
        self.log_mean, self.log_std = log_mean, log_std

    def alpha_sigma(self, t):
        """Return (1, t)."""
        return torch.ones_like(t), t

    def time_at(self, log_snr):
        """Return exp(-log_snr / 2)."""
        time = (-torch.as_tensor(log_snr, dtype=torch.float64) / 2).exp()
        return time.clamp(max=self.t_max)

    def times(self, n):
        """Return Karras' grid from sigma_max to sigma_min, then 0."""
        return karras_times(self, n, self.sigma_min, self.t_max, self.rho)

    def random_times(self, n, generator=None):
        """Return n log-normal sigmas, kept within [sigma_min, sigma_max]."""
        z = torch.randn(n, generator=generator, dtype=torch.float64)
        time = (self.log_mean + self.log_std * z).exp()
        return time.clamp(self.sigma_min, self.t_max)

    def embed(self, t):
        """Return log(sigma) / 4."""
        return self.checked(t).log() / 4
