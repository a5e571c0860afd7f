"""The loop: what it tells, its noise, one step, one example, what is refused."""

import math
from functools import partial

import pytest
import torch
from conftest import SCHEDULES

from diffusion_lib.analytic import GaussianMixture
from diffusion_lib.samplers import (
    ddim_step,
    ddpm_step,
    dpmpp_2m_step,
    heun_step,
    sample,
    trajectory,
)
from diffusion_lib.schedules import DiscreteSchedule

LINEAR = SCHEDULES["linear"]
X = torch.full((2, 1), 0.5)
POINT = GaussianMixture(torch.tensor([[0.8]]), 0.1).denoiser(LINEAR)


def draws(*shape):
    return torch.randn(shape, dtype=torch.float64)


def test_a_trajectory_tells_every_moment(mixture):
    denoise, x, asked = mixture.denoiser(LINEAR), draws(8, 2), []

    def watched(x, t):
        assert not torch.is_grad_enabled()
        asked.append((x, t))
        return denoise(x, t)

    kept, times = x.clone(), LINEAR.times(5)
    frames = list(trajectory(watched, LINEAR, x, times))
    assert torch.equal(x, kept)  # the start is not written over
    assert [float(f.t) for f in frames] == times[1:].tolist()
    assert [float(t) for _, t in asked] == times[:-1].tolist()  # never asked at 0
    for frame, (seen, t) in zip(frames, asked, strict=True):
        assert torch.equal(frame.x0, denoise(seen, t))
    assert torch.equal(frames[-1].x, sample(denoise, LINEAR, x, 5))


def test_noise_comes_from_the_generator(mixture):
    x = draws(8, 2)
    runs = [
        sample(
            mixture.denoiser(LINEAR),
            LINEAR,
            x,
            9,
            ddpm_step,
            torch.Generator().manual_seed(seed),
        )
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("step", [ddim_step, heun_step, dpmpp_2m_step, ddpm_step])
def test_one_step_is_the_denoiser_s_answer(schedule, step):
    """From t_max to 0 at once, also for one example: x_0 as believed at t_max."""
    x = schedule.noise((1, 1, 2, 2), torch.Generator().manual_seed(1))
    got = sample(lambda x, t: 0.3 * x, schedule, x, 1, step)
    torch.testing.assert_close(got, 0.3 * x)


def test_a_chain_of_one_step_that_ends_in_pure_noise():
    chain, x = DiscreteSchedule(torch.tensor([1.0, 0.0])), torch.randn(1, 2)
    for step in (ddim_step, ddpm_step, heun_step, dpmpp_2m_step):
        assert torch.equal(sample(lambda x, t: x * 0 + 2, chain, x, 1, step), 0 * x + 2)


def test_single_precision_stays():
    assert sample(POINT, LINEAR, X, 5, ddpm_step).dtype == torch.float32


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: sample(POINT, LINEAR, X, 1001), "use n <= 1000"),
        (lambda: sample(POINT, LINEAR, X, 0), "positive integer"),
        (lambda: sample(POINT, LINEAR, X, -3), "positive integer"),
        (lambda: sample(POINT, LINEAR, X, torch.tensor(5.0)), "a start and an end"),
        (lambda: sample(POINT, LINEAR, X, torch.tensor([5.0])), "a start and an end"),
        (lambda: sample(POINT, LINEAR, X, torch.tensor([1001.0, 0])), r"\[0, 1000\]"),
        (lambda: sample(POINT, LINEAR, X, torch.tensor([9.0, -1])), r"\[0, 1000\]"),
        (lambda: sample(POINT, LINEAR, X, torch.tensor([9, math.nan])), r"\[0, 1000\]"),
        (lambda: sample(POINT, LINEAR, X, torch.tensor([0.0, 9])), "start above"),
        (lambda: sample(POINT, LINEAR, X, torch.tensor([9.0, 9, 0])), "repeats"),
        (lambda: sample(POINT, LINEAR, X, torch.tensor([9.0, 3, 5, 0])), "must fall"),
        (lambda: sample(POINT, LINEAR, X[:0], 5), "expected a batch"),
        (lambda: sample(POINT, LINEAR, X[0, 0], 5), "expected a batch"),
        (lambda: sample(POINT, LINEAR, X * math.nan, 5), "NaN or infinite"),
        (lambda: list(trajectory(POINT, LINEAR, X[:0], 5)), "expected a batch"),
        (lambda: sample(lambda x, t: x * math.nan, LINEAR, X, 5), "ended in NaN"),
        (lambda: sample(lambda x, t: x / 0, LINEAR, X, 5, ddpm_step), "ended in NaN"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_integers_are_refused():
    with pytest.raises(TypeError, match="floating-point"):
        sample(POINT, LINEAR, torch.zeros(2, 1, dtype=torch.uint8), 5)


@pytest.mark.parametrize("eta", [-0.5, 1.5, math.nan])
def test_eta_outside_is_refused(eta):
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\]"):
        sample(POINT, LINEAR, X, 5, partial(ddim_step, eta=eta))


def test_an_unknown_variance_is_refused():
    with pytest.raises(ValueError, match="unknown variance 'fixed'"):
        sample(POINT, LINEAR, X, 5, partial(ddpm_step, variance="fixed"))


@pytest.mark.parametrize("step", [ddpm_step, partial(ddim_step, eta=0.5)])
def test_stochastic_steps_do_not_run_upwards(step):
    with pytest.raises(ValueError, match="fall"):
        sample(POINT, LINEAR, X, torch.tensor([5.0, 900.0]), step)


@pytest.mark.parametrize("step", [ddim_step, ddpm_step, dpmpp_2m_step])
def test_a_step_from_time_zero_is_refused(step):
    with pytest.raises(ValueError, match="t = 0"):
        step(POINT, LINEAR, X, torch.tensor(0.0), torch.tensor(5.0))
