"""Samplers: against the papers, the oracle, closed forms; orders and limits."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from conftest import SCHEDULES

from diffusion_lib.analytic import GaussianMixture
from diffusion_lib.grids import log_snr_times
from diffusion_lib.process import eps_from_x0
from diffusion_lib.samplers import (
    churned,
    ddim_step,
    ddpm_step,
    deis_step,
    dpm_solver_2_step,
    dpmpp_2m_step,
    dpmpp_3m_step,
    heun_step,
    plms_step,
    sample,
    unipc_step,
)
from diffusion_lib.schedules import linear_schedule

ODE_STEPS = [
    ddim_step,
    heun_step,
    dpm_solver_2_step,
    dpmpp_2m_step,
    dpmpp_3m_step,
    unipc_step,
    deis_step,
    plms_step,
]
STEPS = [
    *ODE_STEPS,
    ddpm_step,
    partial(dpmpp_2m_step, eta=1.0),
    churned(heun_step, 0.2),
]
LINEAR = SCHEDULES["linear"]


def draws(*shape):
    return torch.randn(shape, dtype=torch.float64)


def start(schedule, n=8, D=2):
    return schedule.noise((n, D), dtype=torch.float64)


def test_ancestral_sampling_is_algorithm_2(mixture):
    """Ho et al. (2020), from the noise predicted, with the posterior's variance."""
    chain = linear_schedule(20, 0.01, 0.3)
    denoise = mixture.denoiser(chain)
    x = y = start(chain)
    got = sample(denoise, chain, x, 20, ddpm_step, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    for t in range(20, 0, -1):
        beta, now, before = chain.beta[t], chain.alpha_bar[t], chain.alpha_bar[t - 1]
        eps = (y - now.sqrt() * denoise(y, t)) / (1 - now).sqrt()
        y = (y - beta / (1 - now).sqrt() * eps) / (1 - beta).sqrt()
        if t > 1:
            z = torch.randn(y.shape, generator=generator, dtype=y.dtype)
            y = y + (beta * (1 - before) / (1 - now)).sqrt() * z
    torch.testing.assert_close(got, y, rtol=1e-7, atol=1e-9)


def test_ddpm_is_ddim_with_eta_1(schedule, mixture):
    runs = [
        sample(
            mixture.denoiser(schedule),
            schedule,
            start(schedule).fill_(0.3),
            12,
            step,
            torch.Generator().manual_seed(2),
        )
        for step in (ddpm_step, partial(ddim_step, eta=1.0))
    ]
    torch.testing.assert_close(*runs, rtol=1e-9, atol=1e-12)


def test_ddim_is_equation_12(mixture):
    """Song et al. (2021), respaced, with eta between, in the paper's symbols."""
    denoise, x, eta = mixture.denoiser(LINEAR), draws(4, 2), 0.6
    t, s = torch.tensor(700.0), torch.tensor(400.0)
    now, before = LINEAR.alpha_bar[700], LINEAR.alpha_bar[400]
    deviation = eta * ((1 - before) / (1 - now) * (1 - now / before)).sqrt()
    eps = eps_from_x0(LINEAR, x, denoise(x, t), t)
    x0 = (x - (1 - now).sqrt() * eps) / now.sqrt()
    expected = before.sqrt() * x0 + (1 - before - deviation**2).sqrt() * eps
    z = draws(4, 2)
    got, _, _ = ddim_step(denoise, LINEAR, x, t, s, noise=lambda: z, eta=eta)
    torch.testing.assert_close(got, expected + deviation * z)


@pytest.mark.parametrize("t", [1, 2, 600])
def test_variance_beta_is_the_step_s_own(mixture, t):
    step = partial(ddpm_step, variance="beta")
    x, denoise = draws(4, 2), mixture.denoiser(LINEAR)
    ends = [torch.tensor(float(v)) for v in (t, t - 1)]
    noisy, _, _ = step(denoise, LINEAR, x, *ends, noise=lambda: torch.ones(4, 2))
    quiet, _, _ = step(denoise, LINEAR, x, *ends, noise=lambda: torch.zeros(4, 2))
    std = 0 if t == 1 else float(LINEAR.beta[t]) ** 0.5  # none added to the picture
    torch.testing.assert_close(noisy - quiet, torch.full_like(x, std))


def test_a_variance_may_be_a_function(mixture):
    step = partial(ddpm_step, variance=lambda schedule, t, s: 0.25)
    ends, x = (torch.tensor(9.0), torch.tensor(5.0)), draws(4, 2)
    noisy, quiet = (
        step(mixture.denoiser(LINEAR), LINEAR, x, *ends, noise=lambda z=z: z)[0]
        for z in (torch.ones(4, 2), torch.zeros(4, 2))
    )
    torch.testing.assert_close(noisy - quiet, torch.full_like(x, 0.5))


def test_on_the_flow_schedule_ddim_is_euler(mixture):
    schedule = SCHEDULES["flow"]
    denoise, x, h = mixture.denoiser(schedule), start(schedule), 1 / 16
    y = x
    for k in range(16):
        t = 1 - k * h
        y = y - h * (y - denoise(y, t)) / t  # the velocity is eps - x0 = (x - x0) / t
    torch.testing.assert_close(sample(denoise, schedule, x, 16), y)


def test_heun_is_algorithm_1_of_karras(mixture):
    schedule = SCHEDULES["edm"]
    denoise, x = mixture.denoiser(schedule), start(schedule)
    times, y = schedule.times(18), x
    for t, s in pairwise(times):
        slope = (y - denoise(y, t)) / t
        guess = y + (s - t) * slope
        if s > 0:
            slope = (slope + (guess - denoise(guess, s)) / s) / 2
        y = y + (s - t) * slope
    torch.testing.assert_close(sample(denoise, schedule, x, times, heun_step), y)


@pytest.mark.parametrize("name", ["linear", "vp", "edm"])
def test_2m_is_the_paper_s_algorithm_2(mixture, name):
    """Lu et al. (2022, DPM-Solver++), written with lambda, h and r."""
    schedule = SCHEDULES[name]
    denoise, x = mixture.denoiser(schedule), start(schedule)
    times, y, before = schedule.times(12), x, None
    half = [schedule.log_snr(t) / 2 for t in times]
    for i, (t, s) in enumerate(pairwise(times)):
        h, D = half[i + 1] - half[i], denoise(y, t)
        use = D
        if before is not None and s > 0:
            r = (half[i] - half[i - 1]) / h
            use = (1 + 1 / (2 * r)) * D - 1 / (2 * r) * before
        (_, sigma_t), (alpha_s, sigma_s) = schedule(t, y), schedule(s, y)
        y = sigma_s / sigma_t * y - alpha_s * torch.expm1(-h) * use
        before = D
    torch.testing.assert_close(sample(denoise, schedule, x, times, dpmpp_2m_step), y)


@pytest.mark.parametrize("step", [*STEPS, partial(ddim_step, eta=0.5)])
def test_a_point_is_reached_exactly(schedule, step):
    """Whatever the schedule and the steps: noise left over would show."""
    law = GaussianMixture(torch.tensor([[0.8]], dtype=torch.float64), 0.0)
    x = sample(law.denoiser(schedule), schedule, start(schedule, D=1), 7, step)
    torch.testing.assert_close(x, torch.full_like(x, 0.8), rtol=0, atol=1e-8)


def test_ddpm_on_standard_normal_data_in_closed_form():
    """Variance beta is exact but for the last step, which ends at 1 - beta_1."""
    chain, one = linear_schedule(50, 0.001, 0.2), torch.ones(1, 1, dtype=torch.float64)
    law = GaussianMixture(0 * one, 1.0)
    for variance in ("beta", "beta_tilde"):
        step = partial(ddpm_step, variance=variance)
        reached, expected = one, one
        for t in range(50, 0, -1):
            ends = [torch.tensor(float(v)) for v in (t, t - 1)]
            args = (law.denoiser(chain), chain)
            slope, _, _ = step(*args, one, *ends, noise=lambda: 0 * one)
            noise, _, _ = step(*args, 0 * one, *ends, noise=lambda: one)
            reached = slope**2 * reached + noise**2
            beta, now = chain.beta[t], chain.alpha_bar[t]
            tilde = beta * (1 - chain.alpha_bar[t - 1]) / (1 - now)
            added = tilde if variance == "beta_tilde" else beta * (t > 1)
            expected = (1 - beta) * expected + added
        torch.testing.assert_close(reached, expected)
        if variance == "beta":
            torch.testing.assert_close(reached, (1 - chain.beta[1]) * one)


def test_heun_follows_the_flow_of_a_gaussian_in_closed_form(schedule):
    """x_t = mean_t + sqrt(V_t / V_T) (x_T - mean_T), V = alpha^2 std^2 + sigma^2."""
    m, s = 0.5, 0.4
    law = GaussianMixture(torch.tensor([[m]], dtype=torch.float64), s)
    times = log_snr_times(schedule, 80, -2, 5)[:-1]
    x = draws(6, 1)
    (alpha, sigma), (alpha_end, sigma_end) = (
        schedule(times[0], x),
        schedule(times[-1], x),
    )
    ratio = (alpha_end**2 * s**2 + sigma_end**2) / (alpha**2 * s**2 + sigma**2)
    expected = alpha_end * m + ratio.sqrt() * (x - alpha * m)
    got = sample(law.denoiser(schedule), schedule, x, times, heun_step)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["cosine", "flow", "edm"])
@pytest.mark.parametrize("step, n", [(ddpm_step, 80), (heun_step, 25)])
def test_samples_have_the_data_s_moments(mixture, name, step, n):
    schedule = SCHEDULES[name]
    x = start(schedule, 3000)
    x = sample(mixture.denoiser(schedule), schedule, x, schedule.times(n), step)
    data = mixture.sample(100_000)
    torch.testing.assert_close(x.mean(0), data.mean(0), rtol=0, atol=0.08)
    torch.testing.assert_close(x.T.cov(), data.T.cov(), rtol=0, atol=0.08)


@pytest.mark.parametrize("step", ODE_STEPS)
def test_deterministic_steps_draw_nothing(mixture, step):
    def noise():
        raise AssertionError("a deterministic step drew noise")

    state, x = None, start(LINEAR)
    for t, s in pairwise(LINEAR.times(4)):
        x, _, state = step(mixture.denoiser(LINEAR), LINEAR, x, t, s, state, noise)
    before = torch.get_rng_state()
    sample(mixture.denoiser(LINEAR), LINEAR, x, 4, step)
    assert torch.equal(before, torch.get_rng_state())


def test_ddpm_draws_once_a_step_but_the_last(mixture):
    drawn, x, state = [], start(LINEAR), None

    def noise():
        drawn.append(1)
        return torch.zeros_like(x)

    for t, s in pairwise(LINEAR.times(6)):
        x, _, state = ddpm_step(mixture.denoiser(LINEAR), LINEAR, x, t, s, state, noise)
    assert len(drawn) == 5


@pytest.mark.parametrize("step", [ddim_step, heun_step])
def test_inversion_comes_back(mixture, step):
    """Up to noise and down again along the same times; the errors nearly cancel."""
    schedule = SCHEDULES["vp"]
    down, denoise = log_snr_times(schedule, 80, -4, 6)[:-1], mixture.denoiser(schedule)
    x = mixture.sample(16)
    noise = sample(denoise, schedule, x, down.flip(0), step)
    back = sample(denoise, schedule, noise, down, step)
    assert float((noise - x).abs().mean()) > 0.2
    torch.testing.assert_close(back, x, rtol=0, atol=0.1 if step is ddim_step else 1e-3)
