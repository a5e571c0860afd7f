"""The oracle: exact density and denoiser, against autograd, sums and Monte Carlo."""

import math

import pytest
import torch
from conftest import SCHEDULES
from torch import distributions

from diffusion_lib.analytic import GaussianMixture, empirical_denoiser
from diffusion_lib.process import q_sample, score_from_x0


def draws(*shape):
    return torch.randn(shape, dtype=torch.float64)


def tilted():
    """Two Gaussians with full covariances, one of them flat."""
    means = torch.tensor([[-1.0, 0.5], [1.0, -0.5]], dtype=torch.float64)
    cov = torch.tensor([[[0.5, 0.2], [0.2, 0.3]], [[0.2, 0.2], [0.2, 0.2]]])
    return GaussianMixture(means, cov=cov, weights=torch.tensor([1.0, 3.0]))


@pytest.mark.parametrize("kind", ["round", "tilted"])
def test_tweedie(schedule, mixture, kind):
    """x0_hat is where autograd's slope of log p(x_t) says: a time for each row."""
    law = mixture if kind == "round" else tilted()
    t = schedule.times(8)[:-1]
    x = q_sample(schedule, law.sample(8), t, draws(8, 2)).requires_grad_()
    log_p = law.log_prob(x, *schedule(t, x))
    (slope,) = torch.autograd.grad(log_p.sum(), x)
    x = x.detach()
    score = score_from_x0(schedule, x, law.denoiser(schedule)(x, t), t)
    torch.testing.assert_close(score, slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name, t", [("linear", 300), ("flow", 0.6), ("edm", 0.8)])
def test_the_denoiser_is_the_posterior_mean(name, t):
    """E[x_0 | x_t] by weighting draws of x_0 with q(x_t | x_0), within 5 deviations."""
    law, schedule = tilted(), SCHEDULES[name]
    x0, x = law.sample(200_000), torch.tensor([[0.3, 0.2]], dtype=torch.float64)
    alpha, sigma = schedule(t, x)
    weight = (-((x - alpha * x0) ** 2).sum(1) / (2 * sigma**2)).softmax(0)
    mean = weight @ x0
    spread = ((weight[:, None] * (x0 - mean)) ** 2).sum(0).sqrt()
    got = law.denoiser(schedule)(x, t)[0]
    assert bool(((got - mean).abs() < 5 * spread).all()) and spread.max() < 0.02


def test_the_density_of_the_data_is_torch_s(mixture):
    parts = distributions.MultivariateNormal(mixture.means, mixture.cov)
    law = distributions.MixtureSameFamily(
        distributions.Categorical(mixture.weights), parts
    )
    x = draws(20, 2)
    alpha, sigma = SCHEDULES["vp"](0, x)
    torch.testing.assert_close(mixture.log_prob(x, alpha, sigma), law.log_prob(x))


def test_the_noisy_density_sums_to_one():
    law = GaussianMixture(torch.tensor([[-1.0], [2.0]], dtype=torch.float64), 0.3)
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    for t in (0.01, 0.5, 1.0):
        alpha, sigma = SCHEDULES["flow"](t, x)
        total = torch.trapezoid(law.log_prob(x, alpha, sigma).exp(), x[:, 0])
        assert float(total) == pytest.approx(1, abs=1e-9)


def test_one_gaussian_denoises_linearly(schedule):
    """The textbook's m + s^2 alpha (x - alpha m) / (alpha^2 s^2 + sigma^2)."""
    m, s = torch.tensor([[0.7, -0.2]], dtype=torch.float64), 0.5
    x, t = draws(5, 2), schedule.times(5)[1]
    alpha, sigma = schedule(t, x)
    gain = s**2 * alpha / (alpha**2 * s**2 + sigma**2)
    got = GaussianMixture(m, s).denoiser(schedule)(x, t)
    torch.testing.assert_close(got, m + gain * (x - alpha * m))


def test_points_are_weighted_by_their_distance(schedule):
    """With std = 0: a softmax over the data set, the memorising optimum."""
    points, x, t = draws(6, 2), draws(4, 2), schedule.times(5)[2]
    alpha, sigma = schedule(t, x)
    distance = torch.cdist(x, alpha * points) ** 2
    expected = (-distance / (2 * sigma**2)).softmax(1) @ points
    got = GaussianMixture(points, std=0.0).denoiser(schedule)(x, t)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


def test_one_point_is_believed_everywhere(schedule):
    point = torch.tensor([[0.8]], dtype=torch.float64)
    got = GaussianMixture(point, 0.0).denoiser(schedule)(draws(5, 1), schedule.t_max)
    torch.testing.assert_close(got, point.expand(5, 1))


def test_limits_no_noise_and_nothing_but_noise(mixture):
    x = draws(5, 2)
    denoise = mixture.denoiser(SCHEDULES["flow"])
    torch.testing.assert_close(denoise(x, 0), x)
    mean = (mixture.weights @ mixture.means).expand(5, 2)
    torch.testing.assert_close(denoise(x, 1), mean)
    believed = mixture.responsibilities(x, *SCHEDULES["flow"](1, x))
    torch.testing.assert_close(believed, mixture.weights.expand(5, 3))


def test_draws_have_the_mixture_s_moments():
    law = tilted()
    x = law.sample(200_000, torch.Generator().manual_seed(3))
    mean = law.weights @ law.means
    offset = law.means - mean
    cov = (
        torch.einsum("k,kij->ij", law.weights, law.cov)
        + (law.weights * offset.T) @ offset
    )
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.01)
    torch.testing.assert_close(x.T.cov(), cov, rtol=0, atol=0.01)
    again = law.sample(200_000, torch.Generator().manual_seed(3))
    assert torch.equal(x, again)


def test_the_answer_has_x_s_type(mixture):
    x = torch.randn(3, 2)
    assert mixture.denoiser(SCHEDULES["linear"])(x, 10).dtype == torch.float32


MEANS = torch.zeros(2, 3)
LAW = GaussianMixture(MEANS, 1.0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: GaussianMixture(MEANS), "either std or cov"),
        (lambda: GaussianMixture(MEANS, 1.0, cov=torch.eye(3)), "either std or cov"),
        (lambda: GaussianMixture(MEANS[0], 1.0), r"shape \(K, D\)"),
        (lambda: GaussianMixture(MEANS.long(), 1.0), "floating"),
        (lambda: GaussianMixture(MEANS / 0, 1.0), "finite"),
        (lambda: GaussianMixture(MEANS, -1.0), "std"),
        (lambda: GaussianMixture(MEANS, math.nan), "std"),
        (lambda: GaussianMixture(MEANS, cov=torch.eye(2)), r"\(2, 3, 3\)"),
        (lambda: GaussianMixture(MEANS, cov=-torch.eye(3)), "negative eigenvalue"),
        (lambda: GaussianMixture(MEANS, cov=torch.ones(3, 3).triu()), "symmetric"),
        (lambda: GaussianMixture(MEANS, 1.0, torch.ones(3)), "2 numbers"),
        (lambda: GaussianMixture(MEANS, 1.0, torch.zeros(2)), "not all 0"),
        (lambda: GaussianMixture(MEANS, 1.0, torch.tensor([1, -1.0])), ">= 0"),
        (lambda: LAW.denoiser(SCHEDULES["linear"])(torch.ones(4, 1), 5), r"\(B, 3\)"),
        (lambda: LAW.denoiser(SCHEDULES["linear"])(MEANS, 1001), r"\[0, 1000\]"),
        (lambda: LAW.log_prob(torch.ones(4, 1), 1.0, 1.0), r"\(B, 3\)"),
        (lambda: LAW.responsibilities(torch.ones(3), 1.0, 1.0), r"\(B, 3\)"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_empirical_denoiser_is_a_mixture_of_points(schedule):
    """As GaussianMixture with std 0, which goes by way of log densities and axes."""
    points, t = draws(40, 3), schedule.times(8)[:-1]
    x = q_sample(schedule, points[:8], t, draws(8, 3))
    exact = GaussianMixture(points, std=0.0).denoiser(schedule)(x, t)
    got = empirical_denoiser(points, schedule, batch=3)(x, t)
    torch.testing.assert_close(got, exact)


def test_the_empirical_denoiser_minimises_the_training_loss():
    """Its error in x_0 over all pairs (x_0, eps) is below that of any shift of it."""
    schedule, points = SCHEDULES["flow"], draws(6, 1, 2, 2)
    x0, eps = points.repeat(5000, 1, 1, 1), draws(30_000, 1, 2, 2)
    x = q_sample(schedule, x0, 0.5, eps)
    best = empirical_denoiser(points, schedule)(x, 0.5)
    error = (best - x0).square().mean()
    for change in (0.1 * x, -0.1 * x, 0.1 * best, torch.full_like(x, 0.1)):
        assert (best + change - x0).square().mean() > error
    residual = ((best - x0) * x).mean()  # uncorrelated with anything seen
    assert abs(residual) < 5 * ((best - x0) * x).std() / len(x) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("M", [2, 5])
def test_a_mixture_can_be_conditioned_exactly(dtype, M):
    """Without noise, in either precision: what is seen is then certain."""
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        means, A = (torch.randn(n, 5, generator=generator) for n in (3, M))
        law = GaussianMixture(means.to(dtype), 0.5)
        posterior = law.given(A.to(dtype), torch.ones(M, dtype=dtype), 0.0)
        seen = A.to(dtype) @ posterior.cov @ A.to(dtype).T
        assert float(seen.abs().max()) < 1e-3
        left = posterior.variances.sum(1)  # 0.25 along each direction left
        assert float((left - 0.25 * (5 - M)).abs().max()) < 1e-2


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e6])
def test_a_negative_variance_is_one_beside_the_largest(size):
    means, flat = torch.zeros(1, 2), torch.diag(torch.tensor([1.0, -1e-7]))
    assert GaussianMixture(means, cov=size * flat).variances.min() == 0
    with pytest.raises(ValueError, match="negative eigenvalue"):
        GaussianMixture(means, cov=size * torch.diag(torch.tensor([1.0, -1e-2])))


def test_at_little_noise_the_empirical_denoiser_says_the_nearest_picture():
    schedule, x0 = SCHEDULES["cosine"], draws(50, 1, 4, 4).float()
    denoise = empirical_denoiser(x0, schedule)
    x = q_sample(schedule, x0[7:9], 5, draws(2, 1, 4, 4).float())
    torch.testing.assert_close(denoise(x, 5), x0[7:9])
    far = denoise(torch.zeros(1, 1, 4, 4), 1000)
    torch.testing.assert_close(far, x0.mean(0, keepdim=True), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda s: empirical_denoiser(torch.zeros(4), s), "expected pictures"),
        (lambda s: empirical_denoiser(torch.zeros(0, 4), s), "expected pictures"),
        (lambda s: empirical_denoiser(draws(2, 3), s)(draws(2, 4), 5), "pictures"),
        (lambda s: empirical_denoiser(draws(2, 3), s)(draws(2, 3), 0), "t = 0"),
    ],
)
def test_the_empirical_denoiser_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call(SCHEDULES["cosine"])
