"""Parity with the schedulers of diffusers, our table put into theirs."""

from functools import partial
from importlib.util import find_spec
from itertools import pairwise

import pytest
import torch
from conftest import SCHEDULES

from diffusion_lib.process import eps_from_x0, q_sample
from diffusion_lib.samplers import ddim_step, ddpm_step, dpmpp_2m_step, sample

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("diffusers") is None, reason="diffusers comes with the extra 'bench'"
    ),
]
STEPS = 20


def theirs(kind, chain, **options):
    """A scheduler of diffusers with our float64 alpha_bar; its row k is our k + 1."""
    import diffusers

    scheduler = getattr(diffusers, kind)(num_train_timesteps=chain.T, **options)
    scheduler.alphas_cumprod = chain.alpha_bar[1:]
    return scheduler


def leading(scheduler):
    """Our times for their "leading" grid, and theirs."""
    scheduler.set_timesteps(STEPS)
    rows = scheduler.timesteps.tolist()
    assert rows[0] == 950 and rows[-1] == 0
    return rows, torch.tensor([row + 1 for row in rows] + [0], dtype=torch.float64)


def answers(chain, denoise, row, x):
    return eps_from_x0(chain, x, denoise(x, row + 1), row + 1)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_ddim(mixture, name, eta):
    chain, denoise = SCHEDULES[name], mixture.denoiser(SCHEDULES[name])
    scheduler = theirs(
        "DDIMScheduler", chain, clip_sample=False, timestep_spacing="leading"
    )
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    rows, times = leading(scheduler)
    x = y = torch.randn(16, 2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    for row in rows:
        eps = answers(chain, denoise, row, y)
        y = scheduler.step(eps, row, y, eta=eta, generator=generator).prev_sample
    step = partial(ddim_step, eta=eta)
    got = sample(denoise, chain, x, times, step, torch.Generator().manual_seed(1))
    torch.testing.assert_close(got, y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize(
    "variance, their_name", [("beta_tilde", "fixed_small"), ("beta", "fixed_large")]
)
def test_ddpm(mixture, name, variance, their_name):
    chain, denoise = SCHEDULES[name], mixture.denoiser(SCHEDULES[name])
    scheduler = theirs(
        "DDPMScheduler",
        chain,
        clip_sample=False,
        timestep_spacing="leading",
        variance_type=their_name,
    )
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    rows, times = leading(scheduler)
    x = y = torch.randn(16, 2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    for row in rows:
        eps = answers(chain, denoise, row, y)
        y = scheduler.step(eps, row, y, generator=generator).prev_sample
    step = partial(ddpm_step, variance=variance)
    got = sample(denoise, chain, x, times, step, torch.Generator().manual_seed(1))
    torch.testing.assert_close(got, y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "vp", "edm"])
def test_dpm_solver_2m(mixture, name):
    """Theirs works in single precision, whatever it is given."""
    schedule, denoise = SCHEDULES[name], mixture.denoiser(SCHEDULES[name])
    scheduler = theirs(
        "DPMSolverMultistepScheduler",
        SCHEDULES["linear"],
        prediction_type="sample",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(STEPS)
    times = schedule.times(STEPS)
    ratio = torch.stack([s / a for a, s in map(schedule.alpha_sigma, times)])
    scheduler.sigmas = ratio  # sigma / alpha; theirs is variance preserving
    x = schedule.noise((16, 2), dtype=torch.float64)

    def preserving(t):
        alpha, sigma = schedule.alpha_sigma(t)
        return (alpha**2 + sigma**2) ** -0.5

    y = preserving(times[0]) * x
    for row, (t, _) in zip(scheduler.timesteps, pairwise(times), strict=True):
        x0 = denoise(y.double() / preserving(t), t)
        y = scheduler.step(x0, row, y).prev_sample
    got = sample(denoise, schedule, x, times, dpmpp_2m_step)
    torch.testing.assert_close(got, y.double(), rtol=0, atol=1e-4)


def test_adding_noise():
    chain = SCHEDULES["cosine"]
    scheduler = theirs("DDPMScheduler", chain)
    x0, eps = torch.randn(2, 3, 5, dtype=torch.float64)
    t = torch.tensor([1, 500, 1000])
    torch.testing.assert_close(
        q_sample(chain, x0, t, eps), scheduler.add_noise(x0, eps, t - 1)
    )
