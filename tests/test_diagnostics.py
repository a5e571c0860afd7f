"""Diagnostics: correct samplers pass, every planted bug is found by the named check."""

import math
from functools import partial

import pytest
import torch
from conftest import SCHEDULES

from diffusion_lib import diagnostics as dg
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.diagnostics.probes import two_bumps
from diffusion_lib.diagnostics.sampler import BUMPS
from diffusion_lib.networks import MLP
from diffusion_lib.samplers import (
    ddim_step,
    ddpm_step,
    dpmpp_2m_step,
    heun_step,
    sample,
)
from diffusion_lib.schedules import cosine_schedule, linear_schedule

CHAIN = linear_schedule(200, 5e-4, 0.1)
STEPS = {
    "ddim": ddim_step,
    "eta": partial(ddim_step, eta=0.5),
    "beta_tilde": ddpm_step,
    "beta": partial(ddpm_step, variance="beta"),
    "heun": heun_step,
    "2m": dpmpp_2m_step,
}
SOURCE = """
def sampler(eps, schedule, x):
    for t in range(schedule.T, 0, -1):
        beta, bar = schedule.beta[t], schedule.alpha_bar[t]
        before = schedule.alpha_bar[t - 1]
        x0 = (x - (1 - bar) ** 0.5 * eps(x, t)) / bar**0.5
        mean = before**0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - before) * x
        z = torch.randn_like(x) if t > 1 else 0
        x = mean / (1 - bar) + beta**0.5 * z
    return x
"""
CLIP = "bar**0.5\n        x0.clamp_({}, 1)\n"
KEEP = {
    "beta": ("", ""),
    "beta_tilde": ("beta**0.5 * z", "(beta * (1 - before) / (1 - bar)) ** 0.5 * z"),
    "clipped": ("bar**0.5\n", CLIP.format(-1)),
}
LATE = "eps(x, min(t + 1, schedule.T))"
SEED = "torch.randn(x.shape, generator=torch.Generator().manual_seed(0))"
BUGS = {
    "noise at the last step": (" if t > 1 else 0", "", "point: std"),
    "last step missing": ("T, 0, -1", "T, 1, -1", "point: std"),
    "told t + 1": ("eps(x, t)", LATE, "point: std"),
    "told t - 1": ("eps(x, t)", "eps(x, max(t - 1, 1))", "unit: std"),
    "beta z": ("beta**0.5 * z", "beta * z", "unit: std"),
    "no noise": (" + beta**0.5 * z", "", "unit: std"),
    "no root": ("(1 - bar) ** 0.5 * eps", "(1 - bar) * eps", "point: std"),
    "no direction": ("mean / (1 - bar)", "before**0.5 * x0 #", "unit: std"),
    "every fourth": ("T, 0, -1", "T - 3, 0, -4", "narrow: mean"),
    "[0, 1]": ("bar**0.5\n", CLIP.format(0), "narrow: mean"),
    "bent": ("bar**0.5\n", CLIP.format(0), "affine"),
    "one draw": ("randn_like(x)", "randn_like(x[:1])", "noise shape"),
    "uniform": ("randn_like(x)", "rand_like(x)", "repeatable"),
    "one seed": ("torch.randn_like(x)", SEED, "mixture"),
    "upwards": ("T, 0, -1", "T - schedule.T + 1, schedule.T + 1", "times fall"),
    "row 0": ("eps(x, t)", "eps(x, t - 1)", "times in range"),
    "beyond": ("eps(x, t)", "eps(x, t + 1)", "times in range"),
    "column": ("eps(x, t)", "eps(x, torch.full((len(x), 1), t))", "time shape"),
    "other": ("eps(x, t)", "eps(x, t - torch.arange(len(x)) % 2)", "time shape"),
    "in place": ("x = mean / (1 - bar) +", "x[:] = mean / (1 - bar) +", "input kept"),
    "nan": ("return x", "return x / 0 * 0", "finite"),
    "flat": ("return x", "return x[:, 0]", "shape"),
    "deaf": ("eps(x, t)", "0 * x", "calls"),
}


def planted(old="", new=""):
    assert SOURCE.count(old) == 1 or not old
    scope = {"torch": torch}
    exec(SOURCE.replace(old, new) if old else SOURCE, scope)
    return scope["sampler"]


def midpoint(denoise, schedule, x):
    """A second-order solver that the module does not know: EDM's, at midpoints."""
    times = schedule.times(20).tolist()
    for t, s in zip(times, times[1:], strict=False):
        if s == 0:
            return denoise(x, t)
        middle = math.sqrt(t * s)
        half = x + (middle - t) * (x - denoise(x, t)) / t
        x = x + (s - t) * (half - denoise(half, middle)) / middle


@pytest.mark.parametrize("steps", [7, 50])
@pytest.mark.parametrize("step", STEPS)
def test_no_false_alarm(schedule, step, steps):
    """For any schedule; only where x_T is not noise is the prior found, rightly."""
    sampler = partial(sample, times=steps, step=STEPS[step])
    weak = schedule in (SCHEDULES["quadratic"], SCHEDULES["constant"])
    assert dg.failed(dg.run(sampler, schedule)) == ["prior"] * weak


@pytest.mark.parametrize("kind", KEEP)
def test_the_papers_algorithm_passes(kind):
    assert dg.failed(dg.run(dg.from_eps(planted(*KEEP[kind])), CHAIN)) == []


def test_solvers_it_does_not_know_pass():
    assert dg.failed(dg.run(midpoint, SCHEDULES["edm"])) == []


@pytest.mark.parametrize("bug", BUGS)
def test_every_planted_bug_is_found_by_the_named_check(bug):
    *patch, name = BUGS[bug]
    findings = dg.run(dg.from_eps(planted(*patch)), CHAIN)
    assert name in dg.failed(findings)
    assert all(bool(f.hint) != f.ok for f in findings)


@pytest.mark.parametrize(
    "bug", ["noise at the last step", "last step missing", "told t - 1", "told t + 1"]
)
def test_the_mixture_alone_passes_four_bugs(bug):
    found = dg.failed(dg.run(dg.from_eps(planted(*BUGS[bug][:2])), CHAIN))
    assert found and "mixture" not in found


@pytest.mark.parametrize(
    "name, settings, found",
    [
        ("DDPMScheduler", {"clip_sample": True}, []),
        ("DDIMScheduler", {"clip_sample": False}, []),
        ("DDIMScheduler", {"timestep_spacing": "trailing"}, []),
        ("DDIMScheduler", {"set_alpha_to_one": False}, ["point: std"]),
        ("DPMSolverMultistepScheduler", {}, []),
    ],
)
def test_samplers_of_others(name, settings, found):
    """diffusers, with its 0-based float32 tables: right, or ended one row early."""
    diffusers = pytest.importorskip("diffusers")

    def sampler(eps, schedule, x):
        theirs = getattr(diffusers, name)(1000, 1e-4, 0.02, **settings)
        theirs.set_timesteps(20)
        for t in theirs.timesteps:
            x = theirs.step(eps(x, t), t, x).prev_sample
        return x

    report = dg.run(dg.from_eps(sampler, first=0), SCHEDULES["linear"])
    assert dg.failed(report) == found


def test_state_between_calls_is_found():
    memory = []

    def sampler(denoise, schedule, x):
        memory.append(0.1)
        return sample(denoise, schedule, x, 20) + sum(memory)

    assert "repeatable" in dg.failed(dg.run(sampler, CHAIN))


def test_zero_based_tables():
    """Index t - 1 for the papers' t: right with first=0, one off without."""
    sampler = planted("eps(x, t)", "eps(x, t - 1)")
    assert dg.failed(dg.run(dg.from_eps(sampler, first=0), CHAIN)) == []
    assert "times in range" in dg.failed(dg.run(dg.from_eps(sampler), CHAIN))


def test_pictures_of_any_shape():
    sampler = dg.from_eps(planted())
    findings = dg.run(sampler, CHAIN, shape=(1, 4, 4))
    flat = dg.run(sampler, CHAIN)
    assert dg.failed(findings) == [] and len(flat) == len(findings)
    for one, other in zip(findings, flat, strict=True):
        assert one.value == pytest.approx(other.value) or one.name == "mixture"


def test_two_bumps_are_the_mixture(schedule):
    """The sigmoid's closed form against the general mixture, a time for each row."""
    t = schedule.times(9)[:-1]
    x = 3 * torch.randn(9, 1, dtype=torch.float64)
    short = two_bumps(schedule, *BUMPS)(x, t)
    torch.testing.assert_close(short, dg.MIXTURE.denoiser(schedule)(x, t))


def test_moments_are_those_of_samples():
    """Two routes: probes, and 40,000 draws."""
    own = dg.from_eps(planted("beta**0.5 * z", "0.8 * beta**0.5 * z"))
    ((mean, std),) = dg.moments(own, CHAIN, [(-0.43, 0.5)])
    x = torch.randn(40_000, 1, dtype=torch.float64)
    x0 = own(dg.gaussian(CHAIN, -0.43, 0.5), CHAIN, x)
    assert float(x0.mean()) == pytest.approx(mean, abs=5 * std / 200)
    assert float(x0.std()) == pytest.approx(std, rel=5 / 80_000**0.5)


def test_moments_by_hand():
    """One step of DDPM from t_max to 0 returns m + gain (x - alpha m)."""
    laws = [(0.8, 0.0), (-0.43, 0.5)]
    found = dg.moments(partial(sample, times=1, step=ddpm_step), CHAIN, laws)
    bar = float(CHAIN.alpha_bar[-1])
    gain = bar**0.5 * 0.25 / (bar * 0.25 + 1 - bar)
    wanted = [(0.8, 0.0), (-0.43 + gain * bar**0.5 * 0.43, gain)]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted))


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: torch.randn(x.shape, dtype=x.dtype),
        lambda x: torch.empty_like(x).normal_(),
        lambda x: torch.empty_like(x).normal_(1.0, std=2.0) / 2 - 0.5,
        lambda x: torch.normal(torch.ones_like(x), 2.0) / 2 - 0.5,
        lambda x: torch.normal(0.0, 1.0, x.shape),
        lambda x: torch.distributions.Normal(torch.zeros_like(x), 1.0).sample(),
    ],
)
def test_every_way_to_draw_is_probed(draw):
    """X + 3 z for a point at 0 and for any other law has deviation sqrt(1 + 9)."""
    ((mean, std),) = dg.moments(lambda d, s, x: x + 3 * draw(x), CHAIN, [(0.0, 0.0)])
    sigma = float(1 - CHAIN.alpha_bar[-1]) ** 0.5
    assert (mean, std) == pytest.approx((0, math.hypot(sigma, 3)), abs=1e-6)


def test_torch_draws_as_before_afterwards():
    torch.manual_seed(3)
    first = torch.randn(2)
    dg.run(partial(sample, times=5), CHAIN)
    torch.manual_seed(3)
    assert torch.equal(first, torch.randn(2))


def test_clipping_is_not_affine():
    clipped = dg.from_eps(planted(*BUGS["[0, 1]"][:2]))
    with pytest.raises(ValueError, match="affine"):
        dg.moments(clipped, CHAIN, [(0.0, 1.0)])


@pytest.mark.parametrize("schedule", [linear_schedule(200), SCHEDULES["constant"]])
def test_a_start_that_is_not_noise(schedule):
    """The shift is that of the brightness of grey pictures, pushed forward."""
    findings = {f.name: f for f in dg.run(partial(sample, times=20), schedule)}
    alpha, sigma = schedule(schedule.t_max, torch.zeros(1))
    pictures = alpha * torch.full((28, 28), -0.43).double()
    wanted = float(pictures.sum().abs()) / 28 / float(sigma)
    assert findings["prior"].value == pytest.approx(wanted)
    assert not findings["prior"].ok and "1000 / T" in findings["prior"].hint


def test_a_late_first_call_is_judged_by_its_own_time():
    cosine = cosine_schedule(1000)
    times = torch.arange(900, -1, -100.0)
    assert "prior" in dg.failed(dg.run(partial(sample, times=times), cosine))
    assert dg.prior(cosine, 1000).ok and not dg.prior(cosine, 900).ok


@pytest.mark.parametrize(
    "low, high, wrong",
    [
        (-1, 1, []),
        (0, 1, ["data: lowest"]),
        (0, 255, ["data: lowest", "data: highest"]),
    ],
)
def test_the_range_of_the_data(low, high, wrong):
    data = low + (high - low) * torch.rand(20, 1, 4, 4)
    found = dg.failed(dg.run(partial(sample, times=5), CHAIN, data=data))
    assert [name for name in found if name.startswith("data")] == wrong


def test_the_distance_to_the_mixture():
    """A shift by d costs d; real samples cost about 1 / sqrt(n)."""
    x = dg.MIXTURE.sample(20_000)
    assert 0 < dg.w1(x) < 0.02
    assert dg.w1(x + 0.3) == pytest.approx(0.3, abs=0.02)


def test_samples_are_those_of_the_mixture():
    made = dg.mixture_samples(partial(sample, times=100, step=heun_step), CHAIN)
    assert dg.w1(made) < 0.01 and made.shape == (20_000, 1)


def test_the_table_shows_name_interval_and_cause():
    findings = [
        dg.Finding("point: std", 0.1, -0.001, 0.001),
        dg.Finding("calls", 5, 1, math.inf),
        dg.Finding("line at t = 5", math.nan, -math.inf, 0.02),
        dg.Finding("shape", 1, 1, 1),
    ]
    html = dg.table(findings).data
    assert [f.ok for f in findings] == [False, True, False, True]
    assert "noise left" in html and "at least 1" in html and "at most 0.02" in html


def exact(law, schedule, change=lambda x0, x, t: x0):
    denoise = law.denoiser(schedule)
    return lambda x, t: change(denoise(x, t), x, t)


def names(findings):
    return {name.split(" at ")[0] for name in dg.failed(findings)}


def test_the_exact_denoiser_passes(schedule):
    data = dg.MIXTURE.sample(4000)
    oracle = exact(dg.MIXTURE, schedule)
    assert names(dg.run_denoiser(oracle, schedule, data, dg.MIXTURE)) == set()


def test_excess_is_the_distance_from_the_exact_answer():
    """An answer off by d loses SNR / 2 d^2; Monte Carlo against that formula."""
    data, t, d = dg.MIXTURE.sample(20_000), 60, 0.4
    oracle = exact(dg.MIXTURE, CHAIN, lambda x0, x, t: x0 + d)
    findings = dg.run_denoiser(oracle, CHAIN, data, dg.MIXTURE, [t])
    found = {f.name.split(" at ")[0]: f for f in findings}
    bar = float(CHAIN.alpha_bar[t])
    wanted, chance = bar / (1 - bar) / 2 * d**2, -found["excess"].low
    assert found["excess"].value == pytest.approx(wanted, abs=chance)
    assert found["slope"].value == pytest.approx(wanted, abs=chance)
    assert chance < wanted / 10


def best_without_time(x, t):
    """E[x_0 | x] where t is any row: the best that a net without t can say."""
    rows = torch.arange(1, CHAIN.T + 1)
    alpha, sigma = CHAIN.alpha_bar[rows].sqrt(), (1 - CHAIN.alpha_bar[rows]).sqrt()
    weight, answer = [], []
    for row, a, s in zip(rows, alpha, sigma, strict=True):
        weight.append(dg.MIXTURE.log_prob(x, a, s))
        answer.append(dg.MIXTURE.denoiser(CHAIN)(x, row)[:, 0])
    return (torch.stack(weight).softmax(0) * torch.stack(answer)).sum(0)[:, None]


@pytest.mark.parametrize(
    "change, name",
    [
        (lambda x0, x, t: best_without_time(x, t), "line"),
        (lambda x0, x, t: x, "line"),
        (lambda x0, x, t: 1.3 * x0, "slope"),
        (lambda x0, x, t: torch.where(x0 > -0.05, 0.5, -0.6), "slope"),
        (lambda x0, x, t: x0 + 0.1 * x, "excess"),
    ],
    ids=["no time", "identity", "scale", "median", "noisy"],
)
def test_what_is_wrong_with_a_denoiser_is_found(change, name):
    data = dg.MIXTURE.sample(4000)
    wrong = exact(dg.MIXTURE, CHAIN, change)
    assert name in names(dg.run_denoiser(wrong, CHAIN, data, dg.MIXTURE))


def test_an_answer_better_than_exact_is_found():
    data = dg.MIXTURE.sample(4000)
    findings = dg.run_denoiser(lambda x, t: data, CHAIN, data, dg.MIXTURE)
    assert "excess" in names(findings)
    assert any("leak" in finding.hint for finding in findings)


def test_an_untrained_net_fails_on_pictures():
    data = torch.rand(64, 1, 8, 8) * 2 - 1
    net = Denoiser(MLP(64), CHAIN, "v")
    assert "line" in names(dg.run_denoiser(net, CHAIN, data))


@pytest.mark.parametrize("answer", [list, lambda x: x.numpy()])
def test_a_sampler_must_return_a_tensor(answer):
    def sampler(denoise, schedule, x):
        return answer(sample(denoise, schedule, x, 4))

    with pytest.raises(TypeError, match="must return x_0 as a tensor"):
        dg.run(sampler, CHAIN)
