"""The forward process and its conditionals, against the papers and against Bayes."""

import math

import pytest
import torch
from conftest import SCHEDULES

from diffusion_lib.process import (
    eps_from_x0,
    q_posterior,
    q_sample,
    q_step,
    score_from_x0,
)
from diffusion_lib.schedules import linear_schedule


def draws(*shape):
    return torch.randn(shape, dtype=torch.float64)


def pairs(schedule):
    """A later and an earlier time: neighbours, far apart, from the end, to 0."""
    times = schedule.times(10)
    for i, j in [(0, 1), (0, 9), (2, 7), (4, 5), (9, 10), (0, 10)]:
        yield times[i], times[j]


@pytest.mark.parametrize("t", [1, 2, 500, 1000])
def test_the_posterior_is_the_paper_s(t):
    """Ho et al. (2020), eq. 7."""
    chain, x, x0 = linear_schedule(), draws(3, 2), draws(3, 2)
    beta, before, now = chain.beta[t], chain.alpha_bar[t - 1], chain.alpha_bar[t]
    mean = before.sqrt() * beta / (1 - now) * x0
    mean = mean + (1 - beta).sqrt() * (1 - before) / (1 - now) * x
    got, std = q_posterior(chain, x, x0, t, t - 1)
    torch.testing.assert_close(got, mean, rtol=1e-9, atol=1e-12)
    variance = float(beta * (1 - before) / (1 - now))
    assert float(std) ** 2 == pytest.approx(variance, rel=1e-9, abs=1e-15)


def test_the_posterior_is_the_joint_gaussian_conditioned(schedule):
    """Any two times: x_t = r x_s + noise, so cov(x_s, x_t) = r sigma_s^2."""
    x, x0 = draws(3, 2), draws(3, 2)
    for t, s in pairs(schedule):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t, x), schedule(s, x)
        cov = alpha_t / alpha_s * sigma_s**2
        mean = alpha_s * x0 + cov / sigma_t**2 * (x - alpha_t * x0)
        got, std = q_posterior(schedule, x, x0, t, s)
        torch.testing.assert_close(got, mean, rtol=1e-7, atol=1e-9)
        variance = float(sigma_s**2 - cov**2 / sigma_t**2)
        assert float(std) ** 2 == pytest.approx(variance, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_every_eta_keeps_the_marginal(schedule, eta):
    """x_t = alpha_t x_0 + sigma_t e in, alpha_s x_0 and variance sigma_s^2 out."""
    one, zero = draws(1, 1) * 0 + 1, draws(1, 1) * 0
    for t, s in pairs(schedule):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t, one), schedule(s, one)
        signal, std = q_posterior(schedule, alpha_t * one, one, t, s, eta)
        noise, _ = q_posterior(schedule, sigma_t * one, zero, t, s, eta)
        assert float(signal) == pytest.approx(float(alpha_s), rel=1e-9, abs=1e-12)
        total = float(noise**2 + std**2)
        assert total == pytest.approx(float(sigma_s**2), rel=1e-7, abs=1e-12)


def test_eta_zero_keeps_the_noise_itself(schedule):
    x0, eps = draws(3, 2), draws(3, 2)
    for t, s in pairs(schedule):
        x = q_sample(schedule, x0, t, eps)
        x_s, std = q_posterior(schedule, x, x0, t, s, eta=0.0)
        torch.testing.assert_close(x_s, q_sample(schedule, x0, s, eps))
        assert std == 0


def test_the_last_step_gives_x0_with_certainty(schedule):
    x, x0 = draws(3, 2), draws(3, 2)
    mean, std = q_posterior(schedule, x, x0, schedule.times(5)[-2], 0)
    torch.testing.assert_close(mean, x0, rtol=0, atol=1e-12)
    assert std == 0


def test_steps_compose_to_the_closed_form(schedule):
    """Signal and variance of many small steps, carried exactly, are q_sample's."""
    one = torch.ones(1, 1, dtype=torch.float64)
    signal, variance = one, 0 * one
    times = schedule.times(20).flip(0)
    for t, s in zip(times, times[1:], strict=False):
        signal = q_step(schedule, signal, t, s, 0 * one)
        moved = q_step(schedule, variance.sqrt(), t, s, 0 * one)
        variance = moved**2 + q_step(schedule, 0 * one, t, s, one) ** 2
    alpha, sigma = schedule(schedule.t_max, one)
    torch.testing.assert_close(signal, alpha * one, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(variance, sigma**2 * one, rtol=1e-9, atol=0)


def test_one_step_of_the_chain_is_the_paper_s():
    chain, x, eps = linear_schedule(), draws(2, 3), draws(2, 3)
    beta = chain.beta[7]
    expected = (1 - beta).sqrt() * x + beta.sqrt() * eps
    torch.testing.assert_close(q_step(chain, x, 6, 7, eps), expected)


def test_a_batch_of_times_is_each_row_by_itself(schedule):
    x, x0, eps = draws(3, 1, 4, 4), draws(3, 1, 4, 4), draws(3, 1, 4, 4)
    times = schedule.times(10)
    t, s = times[[0, 2, 5]], times[[1, 7, 10]]

    def all_of(x, x0, eps, t, s):
        yield q_sample(schedule, x0, t, eps)
        yield q_step(schedule, x, s, t, eps) if t.max() < schedule.t_max else x
        yield q_posterior(schedule, x, x0, t, s, 0.5)[0]
        yield eps_from_x0(schedule, x, x0, t)
        yield score_from_x0(schedule, x, x0, t)

    together = list(all_of(x, x0, eps, t, s))
    for i in range(3):
        row = slice(i, i + 1)
        alone = all_of(x[row], x0[row], eps[row], t[i], s[i])
        for whole, one in zip(together, alone, strict=True):
            if not torch.equal(whole, x):
                torch.testing.assert_close(whole[row], one, rtol=1e-9, atol=1e-9)


def test_eps_and_score_undo_q_sample(schedule):
    x0, eps = draws(5, 2), draws(5, 2)
    for t in schedule.times(6)[:-1]:
        x = q_sample(schedule, x0, t, eps)
        _, sigma = schedule(t, x)
        got = eps_from_x0(schedule, x, x0, t)
        torch.testing.assert_close(got, eps, rtol=1e-6, atol=1e-9)
        score = score_from_x0(schedule, x, x0, t)
        torch.testing.assert_close(sigma * score, -got)


def test_the_score_is_the_gradient_of_the_gaussian():
    """For one point, p(x_t) is N(alpha x_0, sigma^2 I): autograd knows its slope."""
    chain, x0 = linear_schedule(), draws(4, 2)
    x = draws(4, 2).requires_grad_()
    alpha, sigma = chain(300, x)
    log_p = torch.distributions.Normal(alpha * x0, sigma).log_prob(x).sum()
    (slope,) = torch.autograd.grad(log_p, x)
    torch.testing.assert_close(score_from_x0(chain, x.detach(), x0, 300), slope)


def test_time_zero_gives_the_data_back(schedule):
    x0 = draws(3, 2)
    assert torch.equal(q_sample(schedule, x0, 0, draws(3, 2)), x0)


CHAIN, X = SCHEDULES["linear"], torch.zeros(2, 1, 4, 4)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: q_sample(CHAIN, X, 5, X[:, :, :2]), "one shape.*randn_like"),
        (lambda: q_sample(CHAIN, X, 1001, X), r"\[0, 1000\]"),
        (lambda: q_sample(CHAIN, X, -1, X), r"\[0, 1000\]"),
        (lambda: q_sample(CHAIN, X, math.nan, X), r"\[0, 1000\]"),
        (lambda: q_sample(CHAIN, X, torch.ones(3), X), "each of the 2 rows"),
        (lambda: q_sample(CHAIN, X + math.nan, 5, X), "NaN or infinite"),
        (lambda: q_sample(CHAIN, X + math.inf, 5, X), "NaN or infinite"),
        (lambda: q_sample(CHAIN, X[:0], 5, X[:0]), r"expected a batch"),
        (lambda: q_step(CHAIN, X, 5, 4, X), "to a later s"),
        (lambda: q_step(CHAIN, X, 5, 6, X[:1]), "one shape"),
        (lambda: q_step(SCHEDULES["flow"], X, 1, 1, X), "alpha_t > 0"),
        (lambda: q_posterior(CHAIN, X, X, 5, 5), "s must be below t"),
        (lambda: q_posterior(CHAIN, X, X, 5, -1), r"\[0, 1000\]"),
        (lambda: q_posterior(CHAIN, X, X, 5, 4, eta=1.5), r"\[0, 1\], got 1.5"),
        (lambda: q_posterior(CHAIN, X, X, 5, 4, eta=math.nan), r"\[0, 1\], got nan"),
        (lambda: q_posterior(CHAIN, X, X[:1], 5, 4), "one shape"),
        (lambda: eps_from_x0(CHAIN, X, X, 0), "t = 0"),
        (lambda: eps_from_x0(CHAIN, X, X, torch.tensor([0, 5])), "t = 0"),
        (lambda: eps_from_x0(CHAIN, X, X[..., :1], 5), "one shape"),
        (lambda: score_from_x0(CHAIN, X, X, 0), "t = 0"),
        (lambda: score_from_x0(CHAIN, X, X[:1], 5), "one shape"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda x: q_sample(CHAIN, x, 5, X),
        lambda x: q_step(CHAIN, x, 5, 6, X),
        lambda x: q_posterior(CHAIN, x, X, 5, 4),
        lambda x: eps_from_x0(CHAIN, x, X, 5),
        lambda x: score_from_x0(CHAIN, x, X, 5),
    ],
)
@pytest.mark.parametrize(
    "x, advice",
    [
        (torch.full_like(X, 255, dtype=torch.uint8), "x / 127.5 - 1"),
        (X.numpy(), r"got ndarray: use torch.as_tensor\(x\)"),
        ((X, X), r"got a tuple of 2.*batch\[0\]"),
    ],
)
def test_pictures_that_are_no_floating_tensors_are_refused(call, x, advice):
    with pytest.raises(TypeError, match=advice):
        call(x)


def test_half_precision_pictures_are_not_mistaken_for_infinite():
    """Their sum overflows; they themselves do not."""
    x = -torch.ones(100, 1, 28, 28, dtype=torch.float16)
    assert torch.isfinite(q_sample(CHAIN, x, 500, torch.zeros_like(x))).all()
