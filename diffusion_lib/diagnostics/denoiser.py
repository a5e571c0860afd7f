"""Examine a trained denoiser time by time, with no sampler in between.

Every number is a loss in nats, for each dimension and unit of log-SNR: SNR / 2 times
a squared error in x_0. Its integral over log-SNR is what the error costs in the bound
on the likelihood (Kingma et al. 2021, eq. 17), so times can be compared and added.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..analytic import GaussianMixture
from ..process import q_sample
from ..schedules import Schedule
from .findings import Finding
from .sampler import data_range

NATS = 0.01


@torch.no_grad()
def run_denoiser(
    denoise: Callable[..., Tensor],
    schedule: Schedule,
    data: Tensor,
    law: GaussianMixture | None = None,
    times: Sequence[float] | None = None,
) -> list[Finding]:
    """Examine denoise(x, t) on data (B, ...), some thousand examples, and their range.

    "line": lost against the best straight line in each value by itself, which a net
    should beat. "slope": what a factor and a shift on the answers would win, 0 for a
    conditional mean. "excess", if the data's law is given: lost against the exact
    denoiser. times: default, 7 at log-SNR -6 .. 6. All nats; NATS are allowed, and
    three standard errors.
    """
    findings, generator = data_range(data), torch.Generator().manual_seed(0)
    for t in _times(schedule) if times is None else times:
        eps = torch.randn(data.shape, generator=generator).to(data)
        x = q_sample(schedule, data, t, eps)
        answer = denoise(x, torch.tensor(t))
        alpha, sigma = schedule.at(t, data)
        nats = (alpha / sigma) ** 2 / 2
        rivals = {"line": _line(data, x, alpha, sigma)}
        if law is not None:
            rivals["excess"] = law.denoiser(schedule)(x, torch.tensor(t))
        for name, rival in rivals.items():
            findings.append(_lost(f"{name} at t = {t:g}", nats, data, answer, rival))
        gain = nats * _slope_gain(data.double(), answer.double())
        findings.append(Finding(f"slope at t = {t:g}", gain, 0, NATS))
    return findings


def _times(schedule: Schedule) -> list[float]:
    times = schedule.time_at(torch.linspace(-6, 6, 7, dtype=torch.float64))
    if hasattr(schedule, "T"):
        times = times.round().clamp(min=1)
    return times.unique().flip(0).tolist()


def _line(data: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """The best answer of the form a x + b, another for each value of an example."""
    mean, var = data.mean(0), data.var(0, correction=0)
    gain = alpha * var / (alpha**2 * var + sigma**2)
    return mean + gain * (x - alpha * mean)


def _lost(name: str, nats: float, data: Tensor, answer: Tensor, rival: Tensor):
    """The lead of a rival over the answers, on the same noise."""
    lead = (answer - data) ** 2 - (rival - data) ** 2
    lead = nats * lead.double().flatten(1).mean(1)  # (B,)
    error = 3 * float(lead.std()) / len(lead) ** 0.5
    low = -error if name.startswith("excess") else -math.inf
    return Finding(name, float(lead.mean()), low, NATS + error)


def _slope_gain(data: Tensor, answer: Tensor) -> float:
    """What of the mean squared error a regression of data on the answers takes away."""
    residual, centred = data - answer, answer - answer.mean()
    shift, spread = residual.mean() ** 2, centred.pow(2).mean()
    tilt = (residual * centred).mean() ** 2 / spread if spread > 0 else 0.0
    return float(shift + tilt)
