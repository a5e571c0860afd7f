"""Solvers: orders of convergence on the oracle, published algorithms, limits."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from conftest import SCHEDULES, planar
from numpy.polynomial.legendre import leggauss

from diffusion_lib.analytic import GaussianMixture
from diffusion_lib.grids import log_snr_times, quadratic_times
from diffusion_lib.guidance import clip_x0, dynamic_threshold
from diffusion_lib.likelihood import optimal_variance
from diffusion_lib.process import interpolated_variance, reverse_variance
from diffusion_lib.samplers import (
    churned,
    corrected,
    ddim_step,
    ddpm_step,
    deis_step,
    dpm_solver_2_step,
    dpmpp_2m_step,
    dpmpp_3m_step,
    euler_step,
    heun_step,
    plms_step,
    reverse_sde_step,
    sample,
    unipc_step,
)
from diffusion_lib.samplers.multistep import polynomial_weights

ORDERS = [  # near pure noise a low-order start costs nothing
    (ddim_step, 1),
    (euler_step, 1),
    (heun_step, 2),
    (dpm_solver_2_step, 2),
    (dpmpp_2m_step, 2),
    (dpmpp_3m_step, 3),
    (partial(unipc_step, order=1), 2),  # the corrector adds one
    (unipc_step, 3),
    (partial(deis_step, order=2), 2),
    (deis_step, 3),
    (plms_step, 2),
]
CHAIN = SCHEDULES["linear"]
POINT = GaussianMixture(torch.tensor([[0.8]], dtype=torch.float64), 0.0)


@pytest.fixture(scope="module")
def exact():
    torch.manual_seed(0)
    ratio = 3 * torch.randn(16, 2, dtype=torch.float64)
    step = partial(unipc_step, order=3)
    return ratio, reached(planar(), SCHEDULES["edm"], ratio, 1500, step)


def reached(mixture, schedule, ratio, n, step):
    """Return x / alpha at log-SNR 5 from x / alpha at -8.5, in n steps."""
    times = log_snr_times(schedule, n + 1, -8.5, 5)[:-1]
    (first, _), (last, _) = schedule(times[0], ratio), schedule(times[-1], ratio)
    x = sample(mixture.denoiser(schedule), schedule, first * ratio, times, step)
    return x / last


@pytest.mark.parametrize("name", ["vp", "flow", "edm"])
@pytest.mark.parametrize("step, order", ORDERS)
def test_orders_of_convergence(mixture, exact, name, step, order):
    """Even steps in log-SNR between fixed ends; twice the steps, 2^order less error.

    x / alpha at a log-SNR is the same on every schedule: one exact answer serves all.
    """
    ratio, end = exact
    coarse, fine = (
        (reached(mixture, SCHEDULES[name], ratio, n, step) - end).pow(2).mean().sqrt()
        for n in (96, 192)
    )
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize("rate", [-1.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("h", [1e-3, 0.4, 6.0, -0.5])
def test_weights_integrate_polynomials(h, rate):
    """Against quadrature, on nodes before and after the step."""
    nodes = (0.0, -0.7 * h, -1.1 * h, h)
    weights = polynomial_weights(h, nodes, rate)
    points, mass = map(torch.tensor, leggauss(60))
    u = h * (points + 1) / 2
    for k in range(4):
        by_hand = (mass / 2 * (-rate * (h - u)).exp() * (u / h) ** k).sum()
        by_rule = sum(
            w * (node / h) ** k for w, node in zip(weights, nodes, strict=True)
        )
        assert by_rule == pytest.approx(float(by_hand), rel=1e-9)


@pytest.mark.parametrize(
    "step", [unipc_step, deis_step, plms_step, dpmpp_3m_step, dpm_solver_2_step]
)
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_between_the_rows_of_a_table(kind, step):
    """A quadratic grid has fractional times; a point is still reached exactly."""
    chain = SCHEDULES[kind]
    times = quadratic_times(chain, 9)
    assert times[0] == chain.T and times[-1] == 0 and bool((times % 1 > 0).any())
    x = chain.noise((8, 1), dtype=torch.float64)
    x = sample(POINT.denoiser(chain), chain, x, times, step)
    torch.testing.assert_close(x, torch.full_like(x, 0.8), rtol=0, atol=1e-8)


def test_unipc_of_order_1_is_a_trapezoid_in_the_paper_s_rule(mixture):
    """Predict by DDIM, then correct with half the sum of both answers."""
    schedule = SCHEDULES["vp"]
    denoise, times = mixture.denoiser(schedule), log_snr_times(schedule, 9, -6, 5)
    x = y = schedule.noise((8, 2), dtype=torch.float64)
    answer = denoise(y, times[0])
    for t, s in pairwise(times[:-1]):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t, y), schedule(s, y)
        ratio = sigma_s / sigma_t

        def step(x0, y=y, ratio=ratio, gain=alpha_s - ratio * alpha_t):
            return ratio * y + gain * x0

        new = denoise(step(answer), s)
        y, answer = step((answer + new) / 2), new
    last = sample(denoise, schedule, x, times, partial(unipc_step, order=1))
    torch.testing.assert_close(last, answer)  # the step to 0 lands on the last answer


def test_churned_heun_is_algorithm_2_of_karras(mixture):
    schedule, amount, scale = SCHEDULES["edm"], 0.3, 1.003
    denoise, times = mixture.denoiser(schedule), schedule.times(12)
    x = y = schedule.noise((8, 2), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    for t, s in pairwise(times.tolist()):
        up = t
        if 0.05 <= t <= 50:
            up = min((1 + amount) * t, schedule.t_max)
            z = torch.randn(y.shape, generator=generator, dtype=y.dtype)
            y = y + (up**2 - t**2) ** 0.5 * scale * z
        slope = (y - denoise(y, up)) / up
        guess = y + (s - up) * slope
        if s > 0:
            slope = (slope + (guess - denoise(guess, s)) / s) / 2
        y = y + (s - up) * slope
    step = churned(heun_step, amount, scale=scale)
    got = sample(denoise, schedule, x, times, step, torch.Generator().manual_seed(1))
    torch.testing.assert_close(got, y)


@pytest.mark.parametrize("step", [reverse_sde_step, euler_step])
def test_euler_on_a_gaussian_by_its_moments(step):
    """A step is affine in x and noise: two slopes carry the variance, exactly."""
    schedule, std = SCHEDULES["vp"], 0.5
    law = GaussianMixture(torch.zeros(1, 1, dtype=torch.float64), std)
    errors = []
    for n in (100, 200):
        times = torch.linspace(1, 0.1, n + 1, dtype=torch.float64)
        variance = torch.ones(1, 1, dtype=torch.float64)
        for t, s in pairwise(times):
            args, one = (law.denoiser(schedule), schedule), torch.ones(1, 1).double()
            slope, _, _ = step(*args, one, t, s, noise=lambda one=one: 0 * one)
            spread, _, _ = step(*args, 0 * one, t, s, noise=lambda one=one: one)
            variance = slope**2 * variance + spread**2
        alpha, sigma = schedule(0.1, one)
        errors.append(float(variance / (alpha**2 * std**2 + sigma**2) - 1))
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)
    assert abs(errors[1]) < 0.02


def test_langevin_corrections_keep_the_law(mixture):
    """And mend a wrong one; each takes a call, and none is made at 0."""
    schedule = SCHEDULES["vp"]
    law, calls = GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), 1.0), []

    def denoise(x, t):
        calls.append(float(t))
        return law.denoiser(schedule)(x, t)

    def stay(denoise, schedule, x, t, s, state=None, noise=None):
        return x, x, state

    for spread, expected in ((1.0, 1.0), (3.0, 1.0)):
        x = spread * torch.randn(4000, 2, dtype=torch.float64)
        times = torch.tensor([0.5, 0.4], dtype=torch.float64)
        x = sample(denoise, schedule, x, times, corrected(stay, 60, snr=0.3))
        assert float(x.std()) == pytest.approx(expected, rel=0.06)
    calls.clear()
    x = torch.randn(4, 2, dtype=torch.float64)
    sample(denoise, schedule, x, 5, corrected(ddim_step, 2))
    assert len(calls) == 5 + 2 * 4


def test_2m_with_noise_is_the_published_sde_step(mixture):
    """SDE-DPM-Solver++(2M), Lu et al. (2022), with lambda, h and r."""
    schedule = SCHEDULES["vp"]
    denoise, times = mixture.denoiser(schedule), log_snr_times(schedule, 12, -6, 5)
    x = y = schedule.noise((8, 2), dtype=torch.float64)
    generator, before = torch.Generator().manual_seed(1), None
    half = [schedule.log_snr(t) / 2 for t in times]
    for i, (t, s) in enumerate(pairwise(times[:-1])):
        h, D = half[i + 1] - half[i], denoise(y, t)
        slope = 0 if before is None else (D - before) * h / (half[i] - half[i - 1])
        (_, sigma_t), (alpha_s, sigma_s) = schedule(t, y), schedule(s, y)
        fresh = -torch.expm1(-2 * h)
        z = torch.randn(y.shape, generator=generator, dtype=y.dtype)
        y = sigma_s / sigma_t * (-h).exp() * y + alpha_s * fresh * (D + slope / 2)
        y, before = y + sigma_s * fresh.sqrt() * z, D
    step, generator = partial(dpmpp_2m_step, eta=1.0), torch.Generator().manual_seed(1)
    got = sample(denoise, schedule, x, times[:-1], step, generator)
    torch.testing.assert_close(got, y)


def test_the_optimal_variance_is_exact_for_a_gaussian():
    """Five steps of ddpm_step reach the law that a thousand would."""
    std = 0.5
    law = GaussianMixture(torch.zeros(1, 1, dtype=torch.float64), std)

    def mse(t):
        bar = CHAIN.alpha_sigma(torch.as_tensor(t, dtype=torch.float64))[0] ** 2
        return std**2 * (1 - bar) / (bar * std**2 + 1 - bar)

    step = partial(ddpm_step, variance=optimal_variance(mse))
    bar = CHAIN.alpha_bar[1000]
    one = torch.ones(1, 1, dtype=torch.float64)
    reached = (bar * std**2 + 1 - bar) * one
    for t, s in pairwise(torch.tensor([1000.0, 600, 300, 100, 20]).double()):
        args = law.denoiser(CHAIN), CHAIN
        slope, _, _ = step(*args, one, t, s, noise=lambda: 0 * one)
        spread, _, _ = step(*args, 0 * one, t, s, noise=lambda: one)
        reached = slope**2 * reached + spread**2
    bar = CHAIN.alpha_bar[20]
    torch.testing.assert_close(reached, (bar * std**2 + 1 - bar) * one)


@pytest.mark.parametrize("t", [torch.tensor(500.0), torch.tensor([2.0, 500.0])])
def test_an_interpolated_variance_lies_between(t):
    x, s = torch.zeros(2, 1, dtype=torch.float64), t - 1
    found = [
        torch.as_tensor(reverse_variance(variance, CHAIN, x, t, s)).reshape(-1)
        for variance in (
            "beta_tilde",
            interpolated_variance(0.0),
            interpolated_variance(0.5),
            interpolated_variance(1.0),
            "beta",
        )
    ]
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[3], found[4])
    torch.testing.assert_close(found[2], (found[0] * found[4]).sqrt())


def test_dynamic_thresholding_keeps_contrast_and_range():
    x0 = torch.tensor([[-3.0, 0.5, 1.5, 1.5], [-1.0, 0.5, 0.0, 0.2]])
    got = dynamic_threshold(lambda x, t: x0, share=1.0)(x0, 1)
    torch.testing.assert_close(got, torch.stack([x0[0] / 3, x0[1]]))
    some = dynamic_threshold(lambda x, t: x0, share=0.6)(x0, 1)
    assert float(some.abs().max()) == 1 and float(some[0, 1]) == pytest.approx(
        0.5 / 1.5
    )
    clipped = clip_x0(lambda x, t: x0)(x0, 1)
    assert float(clipped[0, 1]) == 0.5


@pytest.mark.parametrize(
    "wrong, says",
    [
        (lambda: churned(heun_step, -0.1), "amount"),
        (lambda: churned(heun_step, 0.1, low=2.0, high=1.0), "low < high"),
        (lambda: corrected(ddim_step, 0), "corrections >= 1"),
        (lambda: corrected(ddim_step, 1, snr=0.0), "snr > 0"),
        (lambda: interpolated_variance(1.5), r"\[0, 1\]"),
        (lambda: dynamic_threshold(lambda x, t: x, 0.0), r"\(0, 1\]"),
        (lambda: quadratic_times(CHAIN, 0), "positive"),
    ],
)
def test_wrong_settings_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        wrong()


@pytest.mark.parametrize("step", [euler_step, reverse_sde_step])
def test_a_drift_without_signal_is_refused(mixture, step):
    schedule = SCHEDULES["flow"]
    x = schedule.noise((4, 2), dtype=torch.float64)
    with pytest.raises(ValueError, match="alpha = 0"):
        sample(mixture.denoiser(schedule), schedule, x, 10, step)
