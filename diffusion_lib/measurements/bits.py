"""Bits per pixel of the shipped pixel model: the bound term by term, and the ODE."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .. import checkpoints
from ..data import fashion_mnist
from ..denoiser import Denoiser
from ..likelihood import (
    bits_per_dim,
    decoder_nll,
    elbo,
    ode_log_likelihood,
    optimal_variance,
    step_groups,
)
from ..process import Variance, q_sample, reverse_variance
from .shared import Report, device

DRAWS = 24  # network calls a picture that estimate the bound of 1,000 steps


def bits(
    report: Report, n: int = 10_000, n_paired: int = 2000, n_ode: int = 200
) -> dict[str, Any]:
    """Bits per pixel of the test pictures under fashion-unet, which is told no label.

    n pictures under the chain of 1,000 steps with the optimal variance (fitted on
    training pictures), n_paired with the two of Ho et al. on the same noise, n_ode by
    the ODE; the bound's sums are estimated by 24 network calls a picture.
    """
    denoiser = checkpoints.load("fashion-unet").to(device())
    t, mse = denoising_errors(denoiser, fashion_mnist("train")[0][:2000])
    x0, variance = fashion_mnist("test")[0], optimal_variance(interpolated(t, mse))
    best = chain_bits(denoiser, x0[:n], variance)
    found = {"optimal": {key: _mean_and_error(value) for key, value in best.items()}}
    report(f"optimal: {found['optimal']['total']['mean']:.3f} bits/dim")
    for kind in ("beta_tilde", "beta"):
        terms = chain_bits(denoiser, x0[:n_paired], kind)
        more = terms["total"] - best["total"][:n_paired]  # the same noise: paired
        found[kind] = {key: _mean_and_error(value) for key, value in terms.items()}
        found[kind]["more_than_optimal"] = _mean_and_error(more)
        report(f"{kind}: {float(more.mean()):.4f} bits/dim more")
    ode = ode_bits(denoiser, x0[:n_ode], variance)
    return {
        "values": found,
        "ode": _mean_and_error(ode),
        "groups": step_groups(denoiser.schedule.T, DRAWS),
        "mse": {"t": t.tolist(), "mse": mse.tolist(), "n": 2000},
    }


def chain_bits(
    denoiser: Denoiser, x0: torch.Tensor, variance: Variance, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Return the bound's terms in bits per number of x0 (B, ...): see `elbo`."""
    generator, parts = torch.Generator().manual_seed(seed), []
    for rows in x0.split(250):
        rows = rows.to(next(denoiser.parameters()).device)
        model = denoiser, denoiser.schedule, rows
        parts.append(elbo(*model, variance=variance, draws=DRAWS, generator=generator))
    D = x0[0].numel()
    return {
        key: bits_per_dim(torch.cat([part[key] for part in parts]).cpu(), D)
        for key in parts[0]
    }


def ode_bits(
    denoiser: Denoiser, x0: torch.Tensor, variance: Variance, seed: int = 0
) -> torch.Tensor:
    """Return a bound on the bits per number by the ODE from t = 1 on, (B,).

    -log P(x_0) <= E[log q(x_1 | x_0) - log p(x_1) - log p(x_0 | x_1)]: the chain's last
    step reads x_0 out of x_1, and the ODE gives the density of x_1.
    """
    schedule, generator = denoiser.schedule, torch.Generator().manual_seed(seed)
    _, sigma = schedule.at(1, x0)
    log_snr = float(schedule.log_snr(1)), -9.0
    nats = []
    for rows in x0.to(next(denoiser.parameters()).device).split(50):
        eps = torch.randn(rows.shape, generator=generator).to(rows)
        x1 = q_sample(schedule, rows, 1, eps)
        log_q = -0.5 * (eps.double() ** 2 + math.log(2 * math.pi * sigma**2))
        with torch.no_grad():
            mean = denoiser(x1, 1)
        std = reverse_variance(variance, schedule, rows, 1, 0) ** 0.5
        log_p = ode_log_likelihood(
            denoiser, schedule, x1, 30, log_snr, generator=generator
        )
        nats.append(log_q.flatten(1).sum(1) - log_p + decoder_nll(rows, mean, std))
    return bits_per_dim(torch.cat(nats).cpu(), x0[0].numel())


def denoising_errors(
    denoiser: Denoiser, x0: torch.Tensor, points: int = 30, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows t of the chain and E (x_0 - x0_hat)^2 per number there, (points,).

    The rows lie evenly in log t; every one takes its share of x0, in turn.
    """
    schedule, generator = denoiser.schedule, torch.Generator().manual_seed(seed)
    t = torch.logspace(0, math.log10(schedule.t_max), points).round().unique().double()
    device, errors = next(denoiser.parameters()).device, []
    for i, row in enumerate(t):
        part = x0[i :: len(t)].to(device)
        eps = torch.randn(part.shape, generator=generator).to(device)
        with torch.no_grad():
            x0_hat = denoiser(q_sample(schedule, part, row, eps), row)
        errors.append((part - x0_hat).double().square().mean().cpu())
    return t, torch.stack(errors)


def interpolated(
    t: torch.Tensor, mse: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function of t that joins the points in log t and log mse."""
    x, y = t.log().numpy(), mse.log().numpy()

    def value(t: torch.Tensor) -> torch.Tensor:
        at = torch.as_tensor(t, dtype=torch.float64).cpu().log()
        return torch.as_tensor(np.interp(at.numpy(), x, y)).exp()

    return value


def _mean_and_error(values: torch.Tensor) -> dict[str, Any]:
    """Mean over the pictures, its standard error, and how many they were."""
    error = values.std(0) / len(values) ** 0.5
    return {"mean": values.mean(0).tolist(), "error": error.tolist(), "n": len(values)}
