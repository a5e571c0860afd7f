"""Exact moments of what a sampler makes, read off by probes instead of by drawing.

For data N(m, s^2) the exact denoiser is affine in x. A sampler that is handed it maps
its start x_T and its normal draws z_1 .. z_K affinely to x_0 = c + a x_T + sum b_k z_k.
One batch reads all slopes at once: each row has one of them at a small PROBE, the rest
at 0. Then x_0 has mean c and variance a^2 sigma_T^2 + sum b_k^2, to rounding.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..samplers import Denoise
from ..schedules import Schedule

Sampler = Callable[[Denoise, Schedule, Tensor], Tensor]
Law = tuple[float, float]  # mean, std

PROBE = 1 / 16  # small: a sampler that clips x0 to [-1, 1] then never does
ROUNDING = 1e-3  # 1000 steps with float32 tables lose 2e-4
_DRAWS = (torch.randn, torch.randn_like, torch.normal, Tensor.normal_)


def gaussian(schedule: Schedule, mean: float | Tensor, std: float | Tensor) -> Denoise:
    """Return the exact denoise(x, t) = E[x_0 | x_t] for data N(mean, std^2).

    It is mean + gain (x - alpha mean), gain = alpha std^2 / (alpha^2 std^2 + sigma^2).
    mean and std: numbers, or tensors that broadcast to x (B, ...).
    """

    def denoise(x: Tensor, t: Any) -> Tensor:
        alpha, sigma = schedule.at(t, x)
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return mean + gain * (x - alpha * mean)

    return denoise


def two_bumps(
    schedule: Schedule, means: Law, std: float, weights: tuple[float, float]
) -> Denoise:
    """Return the exact denoise(x, t) for two bumps of one std; each value by itself.

    The log-odds of the bumps are a straight line in x, so a sigmoid picks between them.
    """
    (low, high), odds = means, math.log(weights[1] / weights[0])

    def denoise(x: Tensor, t: Any) -> Tensor:
        alpha, sigma = schedule.at(t, x)
        var = alpha**2 * std**2 + sigma**2
        slope = alpha * (high - low) / var
        share = torch.sigmoid(odds + slope * (x - alpha * (low + high) / 2))
        centre = low + (high - low) * share
        return centre + alpha * std**2 / var * (x - alpha * centre)

    return denoise


def from_eps(sampler: Callable[..., Tensor], first: int = 1) -> Sampler:
    """Adapt a sampler(eps, schedule, x) that asks a network eps(x, t) for the noise.

    first: what its code calls the first noisy row, the papers' t = 1: 0 where tables
    are 0-based (t = 0 .. T - 1), else 1.
    """

    def adapted(denoise: Denoise, schedule: Schedule, x: Tensor) -> Tensor:
        def eps(x: Tensor, t: Any) -> Tensor:
            t = torch.as_tensor(t, dtype=torch.float64).cpu() + (1 - first)
            x0 = denoise(x, t)
            alpha, sigma = schedule.at(_legal(schedule, x, t), x)
            return (x - alpha * x0) / sigma

        return sampler(eps, schedule, x)

    return adapted


def _legal(schedule: Schedule, x: Tensor, t: Tensor) -> Tensor:
    """Move a time to where an oracle can answer, so that a wrong one can go on."""
    t = t.clamp(schedule.t_max * 1e-9, schedule.t_max).flatten()
    return t if len(t) == len(x) > 1 else t[0]


class Watched:
    """A denoise(x, t) that notes when it is asked, and answers at wrong times, too."""

    def __init__(self, denoise: Denoise, schedule: Schedule):
        self.denoise, self.schedule = denoise, schedule
        self.times: list[float] = []
        self.odd = 0  # calls with a t of a wrong shape, or with several times

    def __call__(self, x: Tensor, t: Any) -> Tensor:
        """Return the denoiser's answer, (B, ...)."""
        t = torch.as_tensor(t, dtype=torch.float64).cpu()
        first = float(t.flatten()[0])
        self.times.append(first)
        if t.ndim:
            self.odd += t.shape != x.shape[:1] or bool((t != first).any())
        return self.denoise(x, _legal(self.schedule, x, t))

    def grid(self) -> tuple[float, ...]:
        """Return the legal times asked for, falling, without repeats."""
        legal = {t for t in self.times if 0 < t <= self.schedule.t_max}
        return tuple(sorted(legal, reverse=True))


class Probes(TorchFunctionMode):
    """While active, torch's k-th normal draw is 0, but PROBE in row 3 + k of a block.

    shape: of x, (laws * rows, ...); blocks: the number of laws.
    """

    def __init__(self, shape: torch.Size, blocks: int):
        super().__init__()
        self.shape, self.blocks = shape, blocks
        self.draws = self.odd = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Let everything but normal draws pass."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func not in _DRAWS:
            return out
        probe, row = torch.zeros_like(out), 3 + self.draws
        self.odd += out.shape != self.shape
        if out.shape == self.shape and row < len(out) // self.blocks:
            probe.unflatten(0, (self.blocks, -1))[:, row] = PROBE
        self.draws += 1
        if func in (torch.normal, Tensor.normal_):
            given = args[1:] if func is Tensor.normal_ else args
            given = dict(zip(("mean", "std"), given, strict=False)) | kwargs
            probe = given.get("mean", 0.0) + given.get("std", 1.0) * probe
        return out.copy_(probe)


class Probed(NamedTuple):
    """What a sampler did with the probes, for L laws."""

    out: Tensor  # (L, 3 + draws, ...): nothing, +PROBE, -PROBE in x_T, then each draw
    again: Tensor  # (L, 3, ...): the first three rows of another run
    noise: Probes
    watched: Watched
    kept: bool  # x was not written to
    alike: bool  # the result has x's shape; else out and again are as they came

    def moments(self) -> list[Law]:
        """Return mean and std of x_0 for each law, exact where the sampler is affine.

        They are averages over the values of one x.
        """
        slopes = (self.out[:, 1:] - self.out[:, :1]) / PROBE
        variance = slopes[:, 0] ** 2 + (slopes[:, 2:] ** 2).sum(1)
        stds = variance.flatten(1).mean(1).sqrt()
        means = self.out[:, 0].flatten(1).mean(1)
        return list(zip(means.tolist(), stds.tolist(), strict=True))

    def bend(self) -> float:
        """Return how far +PROBE's and -PROBE's answers are from a straight line."""
        bent = self.out[:, 1] + self.out[:, 2] - 2 * self.out[:, 0]
        return float(bent.abs().max()) / PROBE


@torch.no_grad()
def probe(
    sampler: Sampler, schedule: Schedule, laws: Sequence[Law], shape=(1,)
) -> Probed:
    """Run a sampler twice on probes: to count its draws, then with a row for each.

    Raises TypeError if it does not return a tensor.
    """
    _, sigma = schedule.at(schedule.t_max, torch.empty(1))
    means, stds = torch.tensor(laws, dtype=torch.float64).unbind(1)
    rows, runs = 3, []
    for _ in range(2):
        x = torch.zeros(len(laws), rows, *shape, dtype=torch.float64)
        x[:, 1], x[:, 2] = PROBE * sigma, -PROBE * sigma
        x = x.flatten(0, 1)
        like = (-1, *(1,) * len(shape))
        each = (v.repeat_interleave(rows).reshape(like) for v in (means, stds))
        watched, before = Watched(gaussian(schedule, *each), schedule), x.clone()
        with Probes(x.shape, len(laws)) as noise:
            out = sampler(watched, schedule, x)
        if not isinstance(out, Tensor):
            raise TypeError(
                f"the sampler returned a {type(out).__name__}: it must return x_0 as a "
                "tensor (of a list of frames, the last; torch.as_tensor(array))"
            )
        alike = out.shape == x.shape
        runs.append(out.unflatten(0, (len(laws), rows)) if alike else out)
        rows = 3 + noise.draws
    return Probed(runs[1], runs[0], noise, watched, torch.equal(x, before), alike)


def moments(sampler: Sampler, schedule: Schedule, laws: Sequence[Law]) -> list[Law]:
    """Return the exact (mean, std) of what a sampler makes of data N(mean, std^2).

    laws: (mean, std) of each. sampler(denoise, schedule, x) -> x_0 must draw its noise
    by torch. No sample is drawn. Raises ValueError if it is not affine.
    """
    probed = probe(sampler, schedule, laws)
    if not probed.bend() < ROUNDING:
        raise ValueError("not affine: the sampler clips, or its result is not finite")
    return probed.moments()
