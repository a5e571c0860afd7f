"""Examine a sampler: exact oracles, a mixture, its calls of the network, its start."""

import math
from collections.abc import Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor

from ..analytic import GaussianMixture
from ..process import check_data
from ..samplers import ddim_step, ddpm_step, dpmpp_2m_step, heun_step, sample
from ..schedules import Schedule
from .findings import Finding
from .probes import ROUNDING, Law, Probed, Sampler, Watched, moments, probe, two_bumps

ORACLES = {"point": (0.8, 0.0), "unit": (0.0, 1.0), "narrow": (-0.43, 0.1)}
"""Gaussian data, (mean, std). The last has the mean pixel of Fashion-MNIST."""
BUMPS = (-0.6, 0.5), 0.12, (0.3, 0.7)  # means, std, weights
MIXTURE = GaussianMixture(
    torch.tensor(BUMPS[0], dtype=torch.float64)[:, None],
    BUMPS[1],
    torch.tensor(BUMPS[2]),
)
"""Data of two unequal bumps within [-1, 1], float64."""
SHIFT = 0.25  # deviations: one start in ten gives itself away (erf(0.25 / 8^0.5))
FIRST_ORDER = (ddim_step, ddpm_step, partial(ddpm_step, variance="beta"))
REFERENCES = (*FIRST_ORDER, heun_step, dpmpp_2m_step)


def run(
    sampler: Sampler,
    schedule: Schedule,
    data: Tensor | None = None,
    shape: tuple[int, ...] = (1,),
    n: int = 4000,
) -> list[Finding]:
    """Examine sampler(denoise, schedule, x) -> x_0 and return what was found.

    denoise(x, t) returns E[x_0 | x_t] (`from_eps` adapts others); x is the noise at
    t_max. data: (B, ...), your training data, for their range and mean; without it the
    prior is judged for 28 x 28 pictures of mean -0.43. shape: of one x, if yours must
    have more axes. n: numbers drawn from the mixture. What the sampler raises is passed
    on.
    """
    probed = probe(sampler, schedule, list(ORACLES.values()), shape)
    findings = _behaviour(probed)
    grid = probed.watched.grid()
    if not grid or not all(f.ok for f in findings[:3]):
        return findings  # nothing can be measured
    findings.append(Finding("affine", probed.bend(), 0, ROUNDING))
    findings += _moments(probed.moments(), schedule, grid)
    distance = w1(mixture_samples(sampler, schedule, n, shape))
    findings.append(Finding("mixture", distance, 0, _worst_w1(schedule, grid, n)))
    return [*findings, prior(schedule, grid[0], data), *data_range(data)]


def _behaviour(probed: Probed) -> list[Finding]:
    """What can be said without knowing what the numbers should be."""
    noise, watched = probed.noise, probed.watched
    finite = float(torch.isfinite(probed.out).double().mean())
    moved = math.nan
    if probed.alike:
        moved = float((probed.out[:, :3] - probed.again).abs().max())
    outside = sum(not 0 < t <= watched.schedule.t_max for t in watched.times)
    rises = torch.tensor(watched.times, dtype=torch.float64).diff() > 0
    return [
        Finding("calls", len(watched.times), 1, math.inf),
        Finding("shape", float(probed.alike), 1, 1),
        Finding("finite", finite, 1, 1),
        Finding("input kept", float(probed.kept), 1, 1),
        Finding("repeatable", moved, 0, ROUNDING),
        Finding("noise shape", noise.odd, 0, 0),
        Finding("time shape", watched.odd, 0, 0),
        Finding("times in range", outside, 0, 0),
        Finding("times fall", int(rises.sum()), 0, 0),
    ]


def _moments(
    found: Sequence[Law], schedule: Schedule, grid: tuple[float, ...]
) -> list[Finding]:
    """Means and deviations against those of correct samplers on the same times."""
    findings = []
    for i, name in enumerate(ORACLES):
        rivals = [laws[i] for laws in _correct(schedule, grid)]
        for what, value, others in zip(
            ("mean", "std"), found[i], zip(*rivals, strict=True), strict=True
        ):
            low, high = min(others) - ROUNDING, max(others) + ROUNDING
            findings.append(Finding(f"{name}: {what}", value, low, high))
    return findings


@lru_cache(maxsize=64)
def _correct(schedule: Schedule, grid: tuple[float, ...]) -> list[list[Law]]:
    """The moments of each oracle: the data's, and those five correct samplers reach.

    Both from the first time asked for and, where that is another, from t_max.
    """
    laws = list(ORACLES.values())
    starts = {grid, (float(schedule.t_max), *(t for t in grid if t < schedule.t_max))}
    tables = [torch.tensor([*times, 0.0], dtype=torch.float64) for times in starts]
    return [laws] + [
        moments(partial(sample, times=times, step=step), schedule, laws)
        for times in tables
        for step in REFERENCES
    ]


def w1(x: Tensor) -> float:
    """Return the 1-Wasserstein distance of numbers x, of any shape, from MIXTURE.

    The mean distance of the sorted numbers from as many quantiles.
    """
    u = torch.linspace(-2, 2, 20_001, dtype=torch.float64)
    std = float(MIXTURE.cov[0, 0, 0]) ** 0.5
    share = torch.special.ndtr((u[:, None] - MIXTURE.means[:, 0]) / std)
    p = (torch.arange(x.numel(), dtype=torch.float64) + 0.5) / x.numel()
    place = torch.searchsorted(share @ MIXTURE.weights, p)
    return float((x.double().flatten().sort().values - u[place]).abs().mean())


def mixture_samples(
    sampler: Sampler,
    schedule: Schedule,
    n: int = 20_000,
    shape: tuple[int, ...] = (1,),
    seed: int = 0,
) -> Tensor:
    """Return about n independent draws of MIXTURE, (rows, *shape), by its denoiser."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        rows = max(2, n // math.prod(shape))
        x = schedule.noise((rows, *shape), dtype=torch.float64)
        return sampler(Watched(two_bumps(schedule, *BUMPS), schedule), schedule, x)


@lru_cache(maxsize=64)
def _worst_w1(schedule: Schedule, grid: tuple[float, ...], n: int) -> float:
    """The worst of three correct samplers on these times, plus that of 20 real sets."""
    times = torch.tensor([*grid, 0.0], dtype=torch.float64)
    made = [
        w1(mixture_samples(partial(sample, times=times, step=step), schedule, n))
        for step in FIRST_ORDER
    ]
    generator = torch.Generator().manual_seed(0)
    return max(made) + max(w1(MIXTURE.sample(n, generator)) for _ in range(20))


def prior(schedule: Schedule, t: float, data: Tensor | None = None) -> Finding:
    """Return how far the start's mean is off, in deviations, if x is taken for x_t.

    Along the data's mean m it is alpha_t |m| / sigma_tmax: tiny in each pixel, but
    coherent. data: as in `run`.
    """
    size = 28 * 0.43 if data is None else float(data.double().mean(0).norm())
    x = torch.empty(1, dtype=torch.float64)
    (alpha, _), (_, sigma) = schedule.at(t, x), schedule.at(schedule.t_max, x)
    return Finding("prior", alpha * size / sigma, 0, SHIFT)


def data_range(data: Tensor | None) -> list[Finding]:
    """Return whether data look like something around 0, of order one."""
    if data is None:
        return []
    check_data(data)
    low, high = (float(v) for v in data.aminmax())
    below = math.nextafter(0, -1)
    return [
        Finding("data: lowest", low, -10, below),
        Finding("data: highest", high, below, 10),
    ]
