"""Inverse problems, against posteriors that are known exactly."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import SCHEDULES
from torchvision.transforms.functional import gaussian_blur

from diffusion_lib.analytic import GaussianMixture, linear_moments
from diffusion_lib.grids import log_snr_times
from diffusion_lib.guidance import classifier_guided, inpaint
from diffusion_lib.inverse import (
    conjugate_gradients,
    edited,
    gaussian_fit,
    isotropic_variance,
    nudged,
    particle_step,
    posterior_guided,
    projected,
    replaced,
    resampled,
)
from diffusion_lib.process import q_sample
from diffusion_lib.samplers import ddim_step, ddpm_step, heun_step, sample
from diffusion_lib.schedules import cosine_schedule

f64 = torch.float64
VP = SCHEDULES["vp"]
COV = torch.tensor([[1.0, 0.8, 0.3], [0.8, 1.5, 0.2], [0.3, 0.2, 0.6]], dtype=f64)
LAW = GaussianMixture(torch.tensor([[0.5, -1.0, 0.2]], dtype=f64), cov=COV)
A = torch.tensor([[1.0, 0.0, 0.5], [0.3, -1.0, 0.0]], dtype=f64)
Y = torch.tensor([1.2, 0.4], dtype=f64)


def see(x):
    return x @ A.to(x).T


def pooled(x):
    return F.avg_pool2d(x, 4)


def blurred(x):
    return gaussian_blur(x, [5, 5], [1.0, 1.0])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def grid(schedule, steps):
    """Times that are even in log-SNR but for the last step."""
    return log_snr_times(schedule, steps, -9.0, 9.0)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_mixture_given_y_is_what_weighted_draws_say(noise, mixture):
    """Importance sampling with 400,000 draws; a conditional density without noise."""
    matrix = torch.tensor([[1.0, 0.4]], dtype=f64)
    y = torch.tensor([0.2], dtype=f64)
    law = mixture.given(matrix, y, noise)
    x = mixture.sample(100_000, seeded())
    width = noise or 0.02
    weight = (-((x @ matrix.T - y) ** 2)[:, 0] / (2 * width**2)).softmax(0)
    mean = weight @ x
    cov = (x - mean).T @ (weight[:, None] * (x - mean))
    exact = law.sample(100_000, seeded(1))
    torch.testing.assert_close(mean, exact.mean(0), atol=0.03, rtol=0)
    torch.testing.assert_close(cov, exact.T.cov(), atol=0.03, rtol=0)
    if noise == 0:
        torch.testing.assert_close(exact @ matrix.T, y.expand(100_000, 1))


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_with_the_true_covariance_the_guided_mean_is_exact(schedule, batch, scale):
    """For Gaussian data E[x_0 | x_t, y], on every schedule, for every t."""
    denoise, exact = LAW.denoiser(schedule), LAW.given(A, Y, 0.3).denoiser(schedule)
    guided = posterior_guided(denoise, schedule, see, Y, 0.3, "tweedie", scale)
    x = torch.randn(4, 3, dtype=f64)
    for t in schedule.times(5)[:-1]:
        t = t.expand(4) if batch else t
        alpha = schedule(t, x)[0]
        if bool((alpha > 1e-3).all()):
            wanted = torch.lerp(denoise(x, t), exact(x, t), scale)
            torch.testing.assert_close(guided(x, t), wanted, rtol=1e-7, atol=1e-7)
        elif bool((alpha == 0).all()):
            torch.testing.assert_close(guided(x, t), denoise(x, t))
    assert not guided(x, t).requires_grad


def test_the_isotropic_belief_is_exact_for_isotropic_data_only():
    x, t = torch.randn(4, 3, dtype=f64), 0.5
    round_ = GaussianMixture(torch.full((1, 3), 0.4, dtype=f64), std=0.7)
    error = {}
    for name, law in {"isotropic": round_, "correlated": LAW}.items():
        exact = law.given(A, Y, 0.3).denoiser(VP)(x, t)
        how = {"belief": "isotropic", "data_std": 0.7}
        guided = posterior_guided(law.denoiser(VP), VP, see, Y, 0.3, **how)(x, t)
        error[name] = float((guided - exact).abs().max())
    assert error["isotropic"] < 1e-9 and error["correlated"] > 0.05


def test_dps_is_guidance_by_the_likelihood_of_the_estimate():
    """Two routes to one gradient; with "isotropic" and a mask, too."""
    denoise, x, mask = LAW.denoiser(VP), torch.randn(4, 3, dtype=f64), [1.0, 0.0, 1.0]
    mask = torch.tensor(mask, dtype=f64)
    y = torch.tensor([0.3, 0.0, -0.2], dtype=f64)

    def point(x, t):
        return -((y - mask * denoise(x, t)) ** 2).sum(1) / (2 * 0.5**2)

    fit = gaussian_fit(VP, lambda x: mask * x, y, 0.5)
    likelihoods = {"point": point, "isotropic": lambda x, t: fit(denoise(x, t), t)}
    for belief, log_prob in likelihoods.items():
        how = (denoise, VP, lambda x: mask * x, y, 0.5, belief)
        for t in (0.3, torch.full((4,), 0.6)):
            torch.testing.assert_close(
                posterior_guided(*how)(x, t),
                classifier_guided(denoise, VP, log_prob)(x, t),
            )


def moments(step, denoise, steps, D, draws=1):
    """Exact mean and covariance after a linear sampler, from N(0, I)."""
    start = torch.zeros(D, dtype=f64), torch.eye(D, dtype=f64)
    return linear_moments(step, denoise, VP, grid(VP, steps), *start, draws)


def test_moments_pushed_exactly_are_those_of_many_samples():
    law, (mean, cov) = LAW, moments(ddpm_step, LAW.denoiser(VP), 20, 3)
    x = VP.noise((40_000, 3), seeded(), f64)
    x = sample(law.denoiser(VP), VP, x, grid(VP, 20), ddpm_step, seeded(1))
    torch.testing.assert_close(x.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(x.T.cov(), cov, atol=0.03, rtol=0)


@pytest.mark.parametrize("k", [1.0, 4.0])
def test_the_law_of_dps_on_one_number(k):
    """Data N(0, 1), noise variance 1 / k: mean y (1 - e^-k), variance (1 - e^-2k) / 2k.

    The exact posterior has y k / (1 + k) and 1 / (1 + k).
    """
    law = GaussianMixture(torch.zeros(1, 1, dtype=f64), std=1.0)
    how = (law.denoiser(VP), VP, lambda x: x, torch.ones(1, dtype=f64), k**-0.5)
    (mean,), ((var,),) = moments(ddpm_step, posterior_guided(*how, "point"), 200, 1)
    wanted = 1 - math.exp(-k), (1 - math.exp(-2 * k)) / (2 * k)
    assert (float(mean), float(var)) == pytest.approx(wanted, abs=0.03)


def pair(r):
    """Two numbers of variance 1 with correlation r."""
    cov = torch.tensor([[1.0, r], [r, 1.0]], dtype=f64)
    return GaussianMixture(torch.zeros(1, 2, dtype=f64), cov=cov)


KNOWN, MASK = torch.tensor([1.0, 0.0], dtype=f64), torch.tensor([True, False])


def unknown_given_one(r, rounds=1, steps=300):
    """Mean and variance of x_2 where x_1 = 1 is known, by replacement."""
    step = replaced(ddpm_step, KNOWN, MASK, rounds)
    mean, cov = moments(step, pair(r).denoiser(VP), steps, 2, 3 * rounds)
    assert float(mean[0]) == 1 and float(cov[0].abs().max()) == 0
    return float(mean[1]), float(cov[1, 1])


@pytest.mark.parametrize("r", [0.4, 0.8])
def test_replacement_is_biased_by_what_the_formula_says(r):
    """Slope (1 - sqrt(1 - r^2)) / r for r, variance artanh(r) / r times 1 - r^2."""
    wanted = (1 - math.sqrt(1 - r**2)) / r, (1 - r**2) * math.atanh(r) / r
    assert unknown_given_one(r) == pytest.approx(wanted, abs=0.03)


def test_repaint_s_rounds_reduce_the_bias_and_cost_calls():
    bias = [abs(unknown_given_one(0.8, n, steps=50)[0] - 0.8) for n in (1, 4, 16)]
    assert bias[0] > 0.2 and bias[1] < 0.7 * bias[0] and bias[2] < 0.6 * bias[1]
    calls = []

    def denoise(x, t):
        calls.append(t)
        return 0.5 * x

    x = VP.noise((2, 2), seeded(), f64)
    sample(denoise, VP, x, 5, replaced(ddpm_step, KNOWN, MASK, 3), seeded())
    assert len(calls) == 4 * 3 + 1


def test_what_is_known_follows_x_to_its_device(monkeypatch):
    monkeypatch.setattr("diffusion_lib.inverse.q_sample", lambda s, x0, t, eps: x0)
    x = torch.ones(5, 2, device="meta")

    def step(denoise, schedule, x, t, s, state, noise):
        return x, x, None

    t, s = torch.tensor([0.5, 0.0])
    x_s, _, _ = replaced(step, KNOWN, MASK)(None, VP, x, t, s, None, lambda: x)
    assert x_s.device.type == "meta"


def test_projection_onto_a_mask_is_inpainting_and_fits_any_operator():
    denoise, x = LAW.denoiser(VP), torch.randn(4, 3, dtype=f64)
    mask, y = torch.tensor([1.0, 0, 1], dtype=f64), torch.tensor([0.3, 0, -1.0])
    got = projected(denoise, VP, lambda x: mask * x, y.double())(x, 0.4)
    torch.testing.assert_close(got, inpaint(denoise, y, mask)(x, 0.4))
    torch.testing.assert_close(
        see(projected(denoise, VP, see, Y)(x, 0.4)), Y.expand(4, 2)
    )


@pytest.mark.parametrize("operator", [pooled, blurred])
def test_pictures_are_corrected_as_dense_matrices_would(operator):
    """A as a matrix of 64 columns, on pictures of 8 x 8, and the net 0.5 x."""
    x = torch.randn(2, 1, 8, 8, dtype=f64)
    matrix = operator(torch.eye(64, dtype=f64).reshape(64, 1, 8, 8)).flatten(1).T
    y = operator(torch.randn(1, 1, 8, 8, dtype=f64))
    how = (lambda x, t: 0.5 * x, VP, operator, y, 0.2)
    r2 = isotropic_variance(VP, 0.5, x)
    seen = r2 * matrix @ matrix.T + 0.04 * torch.eye(len(matrix), dtype=f64)
    gap = (y - operator(0.5 * x)).flatten(1)
    shift = (torch.linalg.solve(seen, gap.T).T @ matrix).reshape(x.shape)
    got = projected(*how, rounds=100)(x, 0.5)
    torch.testing.assert_close(got, 0.5 * x + r2 * shift)
    alpha, sigma = VP(0.5, x)
    got = posterior_guided(*how, rounds=100)(x, 0.5)
    torch.testing.assert_close(got, 0.5 * x + 0.5 * sigma**2 / alpha * shift)


def test_conjugate_gradients_solve_each_example_of_a_batch():
    root = torch.randn(5, 4, 4, dtype=f64)
    matrices = root @ root.mT + torch.eye(4, dtype=f64)
    right = torch.randn(5, 4, dtype=f64)
    right[2] = 0  # nothing to solve

    def matrix(v):
        return torch.einsum("bij,bj->bi", matrices, v)

    v = conjugate_gradients(matrix, right, 20)
    torch.testing.assert_close(v, torch.linalg.solve(matrices, right))
    uphill = conjugate_gradients(lambda v: -v, right, 5)
    torch.testing.assert_close(uphill, torch.zeros_like(right))


def test_the_published_step_moves_down_the_residual_once_for_each_call():
    denoise, x = LAW.denoiser(VP), torch.randn(4, 3, dtype=f64)
    calls = []

    def counted(x, t):
        calls.append(t)
        return denoise(x, t)

    for step, calls_of_step in ((ddim_step, 1), (heun_step, 2)):
        calls.clear()
        t, s = torch.tensor(0.6), torch.tensor(0.5)
        with torch.no_grad():
            free, _, _ = step(denoise, VP, x, t, s)
            pushed, _, _ = nudged(step, see, Y, 0.2)(counted, VP, x, t, s)
        assert len(calls) == calls_of_step
        h = 1e-6 * torch.eye(3, dtype=f64)
        gap = [(Y - see(denoise(x[:1] + e, t))).norm(dim=1) for e in (h, -h)]
        torch.testing.assert_close(
            (free - pushed)[0] / 0.2, (gap[0] - gap[1]) / 2e-6, rtol=1e-5, atol=1e-6
        )


def posterior_error(n, guided, runs=20, steps=20):
    """RMS error of the mean of n particles over runs, on a mixture given y."""
    means = torch.tensor([[-1.0, -0.5], [0.8, 1.0]], dtype=f64)
    law = GaussianMixture(means, 0.35, torch.tensor([0.8, 0.2], dtype=f64))
    matrix, y = torch.tensor([[1.0, 0.0]], dtype=f64), torch.tensor([0.3], dtype=f64)
    exact = law.given(matrix, y, 0.4)
    how = (VP, lambda x: x[:, :1], y, 0.4)
    denoise = law.denoiser(VP)
    propose = posterior_guided(denoise, *how, data_std=0.9) if guided else None
    step = particle_step(gaussian_fit(*how, data_std=0.9), propose)
    found = []
    for seed in range(runs):
        x = VP.noise((n, 2), seeded(seed), f64)
        x0 = sample(denoise, VP, x, grid(VP, steps), step, seeded(1000 + seed))
        found.append(x0.mean(0))
    error = torch.stack(found) - exact.weights @ exact.means
    return error.square().sum(1).mean().sqrt().item()


@pytest.mark.parametrize("guided", [False, True])
def test_particles_approach_the_posterior_as_they_grow(guided):
    few, many = posterior_error(16, guided), posterior_error(512, guided, runs=6)
    assert many < 0.4 * few and many < 0.15


def test_a_legal_guess_need_not_be_good():
    """Weights make good for a proposal and a fit that are wrong before t = 0.

    What is reached is the law of the chain of 60 steps, variance v, given y = 1.
    """
    law = GaussianMixture(torch.zeros(1, 1, dtype=f64), std=1.0)
    y = torch.tensor([1.0], dtype=f64)
    true, denoise = gaussian_fit(VP, lambda x: x, y, 1.0), law.denoiser(VP)

    _, ((v,),) = moments(ddpm_step, denoise, 60, 1)
    share = float(v / (1 + v))

    def wrong(x, t):
        return denoise(x, t) + 0.3 * isotropic_variance(VP, t, x)

    for factor in (0.0, 0.5, 1.0):

        def fit(x0, t, factor=factor):
            return true(x0, t) * (1.0 if float(t) == 0 else factor)

        step = particle_step(fit, wrong)
        x = VP.noise((10_000, 1), seeded(), f64)
        x0 = sample(denoise, VP, x, grid(VP, 60), step, seeded(1))
        assert float(x0.mean()) == pytest.approx(share, abs=0.03)
        assert float(x0.var()) == pytest.approx(share, abs=0.03)


def test_systematic_resampling_keeps_numbers_in_proportion():
    log_weight = torch.tensor([0.5, 0.25, 0.25, 1e-30]).log()
    kept = resampled(log_weight, lambda: torch.randn(4), always=True)
    assert kept.tolist() in ([0, 0, 1, 2],)
    assert resampled(torch.zeros(4), lambda: torch.randn(4), always=False) is None
    alone = resampled(torch.tensor([0.0, -99]), lambda: torch.randn(2), always=False)
    assert alone.tolist() == [0, 0]


def test_an_edit_starts_where_its_strength_says(fashion):
    schedule, x0 = cosine_schedule(), fashion[0][:2]
    eps = torch.randn_like(x0)
    x, times = edited(schedule, x0, 0.3, 10, eps)
    assert times.tolist() == [300, 200, 100, 0]
    torch.testing.assert_close(x, q_sample(schedule, x0, 300, eps))
    whole, times = edited(schedule, x0, 1.0, schedule.times(4), eps)
    assert len(times) == 5
    known = sample(lambda x, t: x0, schedule, x, 3)
    torch.testing.assert_close(known, x0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: posterior_guided(None, VP, see, Y, 0.0, "point"), "belief 'point'"),
        (lambda: posterior_guided(None, VP, see, Y, 0.1, "exact"), "belief 'exact'"),
        (lambda: posterior_guided(None, VP, see, Y, math.nan), "noise nan"),
        (lambda: gaussian_fit(VP, see, Y, 0.0), "noise > 0"),
        (lambda: replaced(ddpm_step, Y, Y, 0), "at least 1"),
        (lambda: edited(VP, Y[None], 0.0, 10, Y[None]), "strength 0.0"),
        (lambda: edited(VP, Y[None], 1.2, 10, Y[None]), "strength 1.2"),
        (lambda: LAW.given(A, Y[:1], 0.1), "do not fit"),
        (lambda: LAW.given(A, Y, -0.1), "noise must be"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_isotropic_variance_is_that_of_a_gaussian(schedule):
    law = GaussianMixture(torch.zeros(1, 1, dtype=f64), std=0.7)
    x = torch.tensor([[0.4]], dtype=f64, requires_grad=True)
    t = schedule.times(5)[2]
    (slope,) = torch.autograd.grad(law.denoiser(schedule)(x, t).sum(), x)
    alpha, sigma = schedule(t, x)
    wanted = sigma**2 / alpha * slope[0, 0]  # the second formula of Tweedie
    torch.testing.assert_close(isotropic_variance(schedule, t, x, 0.7), wanted)
