"""Schedules: their ends, tables, clocks and grids."""

import math

import pytest
import torch
from conftest import SCHEDULES

from diffusion_lib.grids import karras_times, log_snr_times, uniform_times
from diffusion_lib.schedules import (
    DiscreteSchedule,
    EDMSchedule,
    FlowSchedule,
    VPSchedule,
    constant_schedule,
    cosine_schedule,
    linear_schedule,
    quadratic_schedule,
    sigmoid_schedule,
)

CHAINS = ["linear", "quadratic", "sigmoid", "cosine", "constant"]
X = torch.zeros(4, 1, 2, 2, dtype=torch.float64)


def inner_times(schedule, n=200):
    """Times within (0, t_max), whole and fractional."""
    u = torch.linspace(0, 1, n + 2, dtype=torch.float64)[1:-1]
    return schedule.t_max * u


def test_time_zero_is_data_exactly(schedule):
    alpha, sigma = schedule(0, X)
    assert (float(alpha), float(sigma)) == (1.0, 0.0)
    assert schedule.log_snr(0) == math.inf


def test_log_snr_falls_and_time_at_inverts_it(schedule):
    t = inner_times(schedule)
    log_snr = schedule.log_snr(t)
    assert bool((log_snr.diff() < 0).all())
    torch.testing.assert_close(schedule.time_at(log_snr), t, rtol=1e-8, atol=1e-9)


def test_time_at_reaches_both_ends(schedule):
    ends = torch.tensor([0.0, schedule.t_max], dtype=torch.float64)
    back = schedule.time_at(schedule.log_snr(ends))
    torch.testing.assert_close(back, ends, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_has_a_row_more_than_steps(name):
    schedule = SCHEDULES[name]
    assert len(schedule.alpha_bar) == len(schedule.beta) == schedule.T + 1
    assert schedule.alpha_bar[0] == 1 and schedule.beta[0] == 0
    product = torch.cumprod(1 - schedule.beta, 0)
    torch.testing.assert_close(schedule.alpha_bar, product, rtol=1e-12, atol=0)
    rows = torch.arange(schedule.T + 1)
    alpha, sigma = schedule.alpha_sigma(rows.double())
    torch.testing.assert_close(alpha**2, schedule.alpha_bar, rtol=1e-12, atol=0)
    torch.testing.assert_close(sigma**2, 1 - schedule.alpha_bar, rtol=0, atol=1e-12)


def test_betas_are_what_the_names_say():
    u = torch.linspace(0, 1, 200, dtype=torch.float64)
    low, high = 1e-4, 0.02
    square = (low**0.5 + u * (high**0.5 - low**0.5)) ** 2
    logistic = low + (high - low) / (1 + torch.exp(-12 * (u - 0.5)))
    for schedule, beta in [
        (linear_schedule(200), low + u * (high - low)),
        (quadratic_schedule(200), square),
        (sigmoid_schedule(200), logistic),
        (constant_schedule(200, 0.03), torch.full_like(u, 0.03)),
    ]:
        torch.testing.assert_close(schedule.beta[1:], beta, rtol=1e-9, atol=1e-14)


def test_cosine_is_a_squared_cosine_until_beta_is_clipped():
    schedule = cosine_schedule(1000)
    u = torch.arange(999, dtype=torch.float64) / 1000
    f = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(schedule.alpha_bar[:999], f / f[0], rtol=1e-9, atol=0)
    assert float(schedule.beta[1000]) == pytest.approx(0.999)


def test_known_ends():
    ends = [s.alpha_bar[-1] for s in (linear_schedule(), linear_schedule(200))]
    assert ends == pytest.approx([4.036e-5, 0.1322], rel=2e-3)
    assert float(cosine_schedule().alpha_bar[-1]) == pytest.approx(2.43e-9, rel=2e-3)


@pytest.mark.parametrize("name", [*CHAINS, "vp"])
def test_variance_preserving(name):
    schedule = SCHEDULES[name]
    alpha, sigma = schedule.alpha_sigma(inner_times(schedule))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))


def test_flow_is_a_straight_line_and_edm_tells_time_by_sigma():
    t = inner_times(FlowSchedule())
    torch.testing.assert_close(sum(FlowSchedule().alpha_sigma(t)), torch.ones_like(t))
    alpha, sigma = EDMSchedule().alpha_sigma(80 * t)
    assert bool((alpha == 1).all()) and torch.equal(sigma, 80 * t)


def test_between_rows_log_alpha_bar_is_linear():
    schedule = linear_schedule(10, 0.01, 0.3)
    alpha, _ = schedule.alpha_sigma(torch.tensor([3.0, 3.25, 4.0], dtype=torch.float64))
    low, between, high = alpha.log().tolist()
    assert between == pytest.approx(0.75 * low + 0.25 * high, rel=1e-12)


def test_sigma_keeps_its_digits_close_to_the_data():
    """1 - alpha^2 would have none left at these times."""
    _, sigma = linear_schedule().alpha_sigma(torch.tensor(1e-9, dtype=torch.float64))
    assert float(sigma) == pytest.approx((1e-9 * -math.log1p(-1e-4)) ** 0.5, rel=1e-10)


def test_vp_is_the_limit_of_the_linear_chain():
    """Steps of size 1/T: the error of alpha_bar at the middle halves with the step."""
    wanted = float(VPSchedule().alpha_sigma(torch.tensor(0.5))[0] ** 2)
    errors = [
        abs(float(linear_schedule(T, 0.1 / T, 20 / T).alpha_bar[T // 2]) - wanted)
        for T in (1000, 2000, 4000)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)


def test_one_time_and_a_batch_of_it_agree(schedule):
    t = 0.3 * schedule.t_max
    alone, batch = schedule(t, X), schedule(torch.full((4,), t), X)
    for a, b in zip(alone, batch, strict=True):
        assert a.shape == () and b.shape == (4, 1, 1, 1)
        torch.testing.assert_close(a.expand(4, 1, 1, 1), b, rtol=1e-6, atol=0)


def test_coefficients_take_the_type_of_a_batch():
    alpha, _ = linear_schedule()(torch.full((4,), 500), X.float())
    assert alpha.dtype == torch.float32


def test_times_fall_to_exactly_zero(schedule):
    times = schedule.times(17)
    assert len(times) == 18 and times.dtype == torch.float64
    assert float(times[0]) == pytest.approx(schedule.t_max, rel=1e-12)
    assert times[-1] == 0 and bool((times.diff() < 0).all())
    assert bool((times <= schedule.t_max).all())


def test_respaced_rows_never_repeat():
    assert linear_schedule().times(5).tolist() == [1000, 800, 600, 400, 200, 0]
    for T in range(1, 25):
        chain = constant_schedule(T, 0.1)
        for n in range(1, T + 1):
            times = uniform_times(chain, n)
            assert (times == times.round()).all() and (times.diff() <= -1).all()
            assert times[0] == T and times[-1] == 0


def test_karras_grid_is_the_paper_s():
    i = torch.arange(18, dtype=torch.float64)
    a, b = 80 ** (1 / 7), 0.002 ** (1 / 7)
    paper = (a + i / 17 * (b - a)) ** 7
    torch.testing.assert_close(EDMSchedule().times(18)[:-1], paper, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["cosine", "vp", "flow", "edm"])
def test_grids_mean_the_same_noise_on_every_schedule(name):
    schedule = SCHEDULES[name]
    times = karras_times(schedule, 12, 0.05, 50.0)
    ratio = (-schedule.log_snr(times[:-1]) / 2).exp()
    expected = karras_times(SCHEDULES["edm"], 12, 0.05, 50.0)[:-1]
    torch.testing.assert_close(ratio, expected, rtol=1e-7, atol=0)
    grid = schedule.log_snr(log_snr_times(schedule, 12, -6, 6)[:-1])
    even = torch.linspace(-6, 6, 12, dtype=torch.float64)
    torch.testing.assert_close(grid, even, rtol=0, atol=1e-8)


def test_training_times_are_uniform_and_never_zero():
    t = linear_schedule(4).random_times(40_000)
    share = torch.bincount(t, minlength=5) / len(t)
    torch.testing.assert_close(
        share, torch.tensor([0, 0.25, 0.25, 0.25, 0.25]), atol=0.01, rtol=0
    )
    u = FlowSchedule().random_times(40_000)
    assert 0 < u.min() < 0.001 and 0.999 < u.max() <= 1
    assert float(u.mean()) == pytest.approx(0.5, abs=0.01)
    z = EDMSchedule().random_times(40_000).log()
    assert (float(z.mean()), float(z.std())) == pytest.approx((-1.2, 1.2), abs=0.03)


@pytest.mark.parametrize("name", ["vp", "flow"])
def test_the_smallest_draw_is_noise_not_data(name, monkeypatch):
    """torch.rand may return 0 and never 1: 1 - u is what keeps t above 0."""
    zeros = torch.zeros(3, dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: zeros)
    assert SCHEDULES[name].random_times(3).tolist() == [1, 1, 1]


def test_random_times_follow_their_generator(schedule):
    draws = [schedule.random_times(9, torch.Generator().manual_seed(k)) for k in (1, 1)]
    assert torch.equal(*draws)


def test_the_network_s_clock_is_of_order_one(schedule):
    u = schedule.embed(schedule.times(10)[:-1])
    assert float(u.abs().max()) < 2 and len(u.unique()) == 10


def test_noise_has_the_deviation_of_the_last_time(schedule):
    x = schedule.noise((20_000, 2), torch.Generator().manual_seed(1))
    _, sigma = schedule(schedule.t_max, x)
    assert float(x.std() / sigma) == pytest.approx(1, abs=0.02)
    assert torch.equal(x, schedule.noise(x.shape, torch.Generator().manual_seed(1)))


def test_a_chain_of_one_step():
    chain = linear_schedule(1, 0.5, 0.5)
    assert chain.T == 1 and chain.times(1).tolist() == [1, 0]
    assert chain.random_times(5).tolist() == [1] * 5


@pytest.mark.parametrize("beta_min", [0.0, 0.1])
def test_data_have_time_0_also_where_no_noise_comes_at_first(beta_min):
    vp = VPSchedule(beta_min, 20.0)
    assert vp.time_at(math.inf) == vp.time_at(vp.log_snr(0)) == 0
    t = torch.tensor([1e-6, 0.3, 1.0], dtype=torch.float64)
    torch.testing.assert_close(vp.time_at(vp.log_snr(t)), t)


def test_a_chain_may_end_in_pure_noise():
    chain = DiscreteSchedule(torch.tensor([1.0, 0.5, 0.0]))
    alpha, sigma = chain.alpha_sigma(torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert alpha[1] == 0 and sigma[1] == 1 and alpha[0] == pytest.approx(0.5**0.5)
    assert chain.log_snr(2) == -math.inf
    assert chain.time_at(torch.tensor(-math.inf)) == 2
    assert chain.time_at(torch.tensor(0.0)) == pytest.approx(1)


@pytest.mark.parametrize("t", [-1, math.nan, math.inf, -1e-9])
def test_times_outside_are_refused(schedule, t):
    with pytest.raises(ValueError, match="times must lie in"):
        schedule(t, X)
    with pytest.raises(ValueError, match="times must lie in"):
        schedule(torch.tensor([0.1, t, 0.1, 0.1]), X)


@pytest.mark.parametrize("ask", ["log_snr", "embed", "checked"])
def test_the_row_after_the_last_is_refused(ask):
    with pytest.raises(ValueError, match=r"\[0, 1000\].*got \[1001"):
        getattr(linear_schedule(), ask)(1001)


def test_times_that_do_not_fit_the_batch_are_refused():
    with pytest.raises(ValueError, match="one for each of the 4 rows"):
        linear_schedule()(torch.ones(3), X)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: linear_schedule(0), "positive integer: got 0"),
        (lambda: cosine_schedule(10.0), "positive integer"),
        (lambda: constant_schedule(10, 0.0), r"within \(0, 1\)"),
        (lambda: linear_schedule(10, 0.1, 1.5), r"within \(0, 1\)"),
        (lambda: linear_schedule(10, math.nan), r"within \(0, 1\)"),
        (lambda: DiscreteSchedule(torch.tensor([0.9, 0.5])), "row 0 is 1"),
        (lambda: DiscreteSchedule(torch.tensor([1.0, 0.5, 0.5])), "must fall"),
        (lambda: DiscreteSchedule(torch.tensor([1.0, math.nan])), "must fall"),
        (lambda: VPSchedule(5.0, 1.0), "below beta_max"),
        (lambda: EDMSchedule(sigma_min=0.0), "sigma_min must be above 0"),
        (lambda: linear_schedule(10).times(11), "use n <= 10"),
        (lambda: FlowSchedule().times(0), "positive integer: got 0"),
        (lambda: FlowSchedule().times(2.5), "positive integer: got 2.5"),
        (lambda: karras_times(cosine_schedule(), 9, 5.0, 1.0), "leaves the schedule"),
        (lambda: karras_times(FlowSchedule(), 9, -1.0), "leaves the schedule"),
        (lambda: karras_times(EDMSchedule(), 9, 1.0, 1e4), "leaves the schedule"),
        (lambda: log_snr_times(linear_schedule(), 9, -99, 9), "leaves the schedule"),
        (lambda: log_snr_times(FlowSchedule(), 9, math.nan), "leaves the schedule"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
