"""The bound and its terms, against closed forms, torch.distributions and quadrature."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

import diffusion_lib as dl
from diffusion_lib.process import reverse_variance


def scaled_linear(T):
    """The linear chain with its betas stretched to T steps."""
    betas = torch.linspace(1e-4, 0.02, T, dtype=torch.float64) * 1000 / T
    return dl.DiscreteSchedule.from_betas(betas.clamp(max=0.999))


def doubt(schedule, var):
    """Var[x_0 | x_t] as a function of t, for data N(0, var)."""

    def value(t):
        alpha, sigma = schedule.alpha_sigma(schedule.checked(t))
        return var * sigma**2 / (alpha**2 * var + sigma**2)

    return value


@pytest.mark.parametrize(
    "T, beta, beta_tilde",
    [
        (10, 0.1760, 7.776),
        (50, 0.0318, 2.865),
        (100, 0.0158, 1.804),
        (1000, 16e-4, 0.658),
    ],
)
def test_the_gap_of_gaussian_data(T, beta, beta_tilde):
    """Known gaps in bits/dim; none at all with the optimal variance, at any T.

    The expected squared error is put in as x0_hat = x0 + its root: the terms are linear
    in it.
    """
    schedule, var = scaled_linear(T), 0.25
    error, x0 = doubt(schedule, var), torch.tensor([[var**0.5]], dtype=torch.float64)
    for kind, expected in [
        ("beta", beta),
        ("beta_tilde", beta_tilde),
        (dl.optimal_variance(error), 0.0),
    ]:
        nats = dl.prior_kl(schedule, x0, std=1.0)
        for t in range(2, T + 1):
            x0_hat = x0 + error(t) ** 0.5
            nats = nats + dl.kl_term(schedule, x0, x0_hat, t, t - 1, kind)
        last = reverse_variance("beta" if expected else kind, schedule, x0, 1, 0)
        nats = nats + dl.decoder_nll(x0, x0 + error(1) ** 0.5, last**0.5, levels=None)
        entropy = 0.5 * math.log(2 * math.pi * math.e * var)
        assert float(dl.bits_per_dim(nats - entropy, 1)) == pytest.approx(
            expected, abs=6e-4
        )


def test_prior_and_steps_are_divergences_of_gaussians(schedule):
    x0, x0_hat, x = torch.randn(3, 5, 2, dtype=torch.float64)
    alpha, sigma = schedule(schedule.t_max, x0)
    for std in (None, 2.0):
        start = Normal(torch.zeros_like(x0), sigma if std is None else std)
        right = kl_divergence(Normal(alpha * x0, sigma), start).sum(1)
        assert_close(dl.prior_kl(schedule, x0, std), right)
    t, s = schedule.times(10)[[3, 6]]
    mean, std = dl.q_posterior(schedule, x, x0, t, s)
    mean_hat, _ = dl.q_posterior(schedule, x, x0_hat, t, s)
    for kind in ("beta_tilde", "beta", lambda *_: 0.3):
        var = reverse_variance(kind, schedule, x0, t, s)
        right = kl_divergence(Normal(mean, std), Normal(mean_hat, var**0.5)).sum(1)
        assert_close(dl.kl_term(schedule, x0, x0_hat, t, s, kind), right)


@pytest.mark.parametrize(
    "mean, std", [(0.3, 0.01), (-0.999, 0.05), (0.9, 3), (0, 1e-3)]
)
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_decoder_s_levels_sum_to_one(mean, std, levels):
    x0 = torch.linspace(-1, 1, levels, dtype=torch.float64)[:, None]
    nats = dl.decoder_nll(x0, torch.full_like(x0, mean), std, levels)
    assert bool(torch.isfinite(nats).all())
    assert float((-nats).exp().sum()) == pytest.approx(1, abs=1e-9)


def test_the_decoder_tends_to_the_density_of_many_levels():
    x0, mean = torch.tensor([[0.25]]), torch.tensor([[0.1]])
    fine = dl.decoder_nll(x0, mean, 0.2, levels=80_001) + math.log(2 / 80_000)
    assert_close(fine, dl.decoder_nll(x0, mean, 0.2, levels=None), atol=1e-6, rtol=0)


def test_pictures_of_bytes_are_on_the_levels():
    x0 = (torch.arange(256).float() / 127.5 - 1)[:, None]
    assert dl.decoder_nll(x0, x0, 0.01).shape == (256,)
    with pytest.raises(ValueError, match="levels=None"):
        dl.decoder_nll(x0 + 1e-3, x0, 0.01)
    with pytest.raises(ValueError, match="256 even levels"):
        dl.decoder_nll(255 * x0, x0, 0.01)


def test_the_bound_of_gaussian_data_is_tight_with_the_optimal_variance():
    schedule, oracle = (
        scaled_linear(20),
        dl.GaussianMixture(torch.zeros(1, 1).double(), 0.5),
    )
    x0 = oracle.sample(20_000)
    kind = dl.optimal_variance(doubt(schedule, 0.25))
    found = dl.elbo(oracle.denoiser(schedule), schedule, x0, None, kind, None, 1.0)
    nll = -oracle.log_prob(x0, torch.tensor(1.0), torch.tensor(0.0))
    excess = found["total"] - nll
    assert abs(float(excess.mean())) < 4 * float(excess.std()) / 20_000**0.5
    assert found["steps"].shape == (20_000, 20)
    assert_close(found["total"], found["prior"] + found["steps"].sum(1))


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_the_bound_lies_above_the_likelihood_of_a_mixture(mixture, variance):
    schedule, x0 = scaled_linear(30), mixture.sample(4000)
    found = dl.elbo(mixture.denoiser(schedule), schedule, x0, None, variance, None)
    nll = -mixture.log_prob(x0, torch.tensor(1.0), torch.tensor(0.0))
    excess = found["total"] - nll
    assert float(excess.mean()) > 4 * float(excess.std()) / 4000**0.5 > 0


def test_the_optimal_variance_is_the_best(mixture):
    schedule, t = dl.cosine_schedule(100), 40
    x0 = mixture.sample(5000)
    alpha, sigma = schedule(t, x0)
    x0_hat = mixture.denoiser(schedule)(alpha * x0 + sigma * torch.randn_like(x0), t)
    best = dl.optimal_variance(lambda t: (x0 - x0_hat).square().mean())

    def nats(factor):
        def kind(*args):
            return factor * best(*args)

        return float(dl.kl_term(schedule, x0, x0_hat, t, 39, kind).mean())

    assert nats(1.0) < min(nats(0.95), nats(1.05))


def test_a_variance_of_0_at_the_end_gives_way_to_beta(mixture):
    """Interpolated variances lie between beta's and beta_tilde's, and so the bound."""
    schedule, x0 = dl.cosine_schedule(20), mixture.sample(50)
    denoise = mixture.denoiser(schedule)

    def steps(variance):
        seed = torch.Generator().manual_seed(0)
        found = dl.elbo(
            denoise, schedule, x0, variance=variance, levels=None, generator=seed
        )
        return found["steps"]

    beta = steps("beta")
    assert_close(steps(dl.interpolated_variance(1.0)), beta)
    for share in (0.0, 0.5):
        between = steps(dl.interpolated_variance(share))
        assert bool(between.isfinite().all())
        assert_close(between[:, -1], beta[:, -1])
        assert not torch.allclose(between[:, 5], beta[:, 5])
    assert_close(steps(dl.interpolated_variance(0.0)), steps("beta_tilde"))


GROUPS = [(1000, 24), (10, 10), (7, 3), (6, 4), (5, 1), (1000, 1000), (30, None)]


def test_every_step_belongs_to_one_group():
    for n, draws in GROUPS:
        groups = dl.likelihood.step_groups(n, draws)
        assert [
            i for first, size in groups for i in range(first, first + size)
        ] == list(range(n))
        assert len(groups) == (draws or n)
        assert min(size for _, size in groups) >= 1
    with pytest.raises(ValueError, match="between 1 and the 5 steps"):
        dl.likelihood.step_groups(5, 6)


def test_a_step_at_mixed_times_is_the_steps_at_each():
    schedule, x0 = dl.cosine_schedule(50), torch.randint(256, (6, 1, 2, 2)) / 127.5 - 1
    t = torch.tensor([1, 7, 50, 1, 2, 30])

    def nats(t):
        generator = torch.Generator().manual_seed(3)
        return dl.step_nats(
            lambda x, t: 0.5 * x, schedule, x0, t, t - 1, "beta", 256, generator
        )

    mixed, one_by_one = (
        nats(t),
        torch.stack([nats(int(time))[i] for i, time in enumerate(t)]),
    )
    assert_close(mixed, one_by_one, rtol=1e-4, atol=1e-4)


def test_few_draws_estimate_the_same_bound(mixture):
    schedule = scaled_linear(12)
    x0 = mixture.sample(1).expand(20_000, 2)
    model = mixture.denoiser(schedule), schedule, x0
    full, few = dl.elbo(*model, levels=None), dl.elbo(*model, levels=None, draws=4)
    error = (full["total"].var() + few["total"].var()).sqrt() / 20_000**0.5
    assert abs(float(full["total"].mean() - few["total"].mean())) < 4 * float(error)
    assert few["steps"].shape == (20_000, 4)


def test_the_ode_finds_the_density_of_a_mixture(mixture, schedule):
    """What is left is the end: there x_t is not yet N(0, sigma^2)."""
    t = schedule.time_at(torch.tensor(5.0))
    x = mixture.sample(40)
    alpha, sigma = schedule(t, x)
    x = alpha * x + sigma * torch.randn_like(x)
    right = mixture.log_prob(x, alpha, sigma)
    denoise, ends = mixture.denoiser(schedule), (float(schedule.log_snr(t)), -14.0)
    model = denoise, schedule, x
    left = dl.ode_log_likelihood(*model, 40, ends, probes=None)
    lowest = max(-14.0, float(schedule.log_snr(schedule.t_max)))
    assert_close(left, right, atol=3 * math.exp(lowest / 2) + 1e-4, rtol=0)
    signs = dl.ode_log_likelihood(*model, 40, ends, probes=200)
    assert abs(float((signs - left).mean())) < 0.02


def test_the_ode_is_of_order_four():
    """On N(0, 0.25) the exact end is known: only the steps' error is left."""
    schedule, oracle = (
        dl.FlowSchedule(),
        dl.GaussianMixture(torch.zeros(1, 1).double(), 0.5),
    )
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    values = [
        dl.ode_log_likelihood(
            oracle.denoiser(schedule), schedule, x, n, (6.0, -6.0), None
        )
        for n in (8, 16, 32, 256)
    ]
    errors = [float((v - values[-1]).abs().max()) for v in values[:-1]]
    orders = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert 3.5 < min(orders) and max(orders) < 4.6


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda c, x: dl.bits_per_dim(1.0, 0), "got 0"),
        (lambda c, x: dl.kl_term(c, x, x, 1, 0), "decoder_nll"),
        (lambda c, x: dl.kl_term(c, x, x, 2, 1, "gamma"), "unknown variance"),
        (lambda c, x: dl.kl_term(c, x, x[:1], 2, 1), "two tensors of one shape"),
        (lambda c, x: dl.decoder_nll(x, x[:, :1], 0.1, None), "tensors of one shape"),
        (lambda c, x: dl.decoder_nll(x / 0, x, 0.1), "NaN"),
        (lambda c, x: dl.prior_kl(c, x / 0), "NaN"),
        (lambda c, x: dl.elbo(None, dl.VPSchedule(), x), "how many steps"),
        (lambda c, x: dl.elbo(None, c, x, torch.tensor([9.0, 0])), "from t_max to 0"),
        (lambda c, x: dl.ode_log_likelihood(None, c, x, probes=0), "at least 1"),
    ],
)
def test_bad_input_is_explained(call, text):
    with pytest.raises(ValueError, match=text):
        call(dl.linear_schedule(10), torch.zeros(2, 3))
