"""Parity with the schedulers of diffusers beyond the chains: EDM, flow, any grid."""

import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from conftest import SCHEDULES, planar
from parity import (
    D2,
    MARKS,
    RATIOS,
    STEPS,
    close,
    gap,
    in_double,
    peer,
    precision,
    rewritten,
    seeded,
    their_run,
)

from diffusion_lib.grids import log_snr_times
from diffusion_lib.process import q_step, score_from_x0
from diffusion_lib.samplers import (
    churned,
    corrected,
    ddim_step,
    dpm_solver_2_step,
    dpmpp_2m_step,
    dpmpp_3m_step,
    reverse_sde_step,
    sample,
    unipc_step,
)

pytestmark = MARKS
EDM, FLOW = SCHEDULES["edm"], SCHEDULES["flow"]
MULTI, SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
SDE = "sde-dpmsolver++"
TO_THE_END = {"final_sigmas_type": "sigma_min", "lower_order_final": False}


def noise(schedule):
    return schedule.noise((16, 2), seeded(0), torch.float64)


def ours(schedule, x, times, step):
    denoise = planar().denoiser(schedule)
    return sample(denoise, schedule, x, times, step, seeded(1))


def on_our_grid(kind, schedule, times, **options):
    """Return x at the end and at the start of their run over any times of ours.

    Theirs is variance preserving: it holds x / sqrt(alpha^2 + sigma^2).
    """
    alpha, sigma = schedule.alpha_sigma(times)
    size, x = (alpha**2 + sigma**2) ** 0.5, noise(schedule)
    scheduler = peer(kind, steps=len(times) - 1, prediction_type="sample", **options)
    scheduler.sigmas = (sigma / alpha).to(torch.get_default_dtype())
    left = iter(zip(times, size, strict=True))

    def answer(z, row):
        t, unit = next(left)
        return planar().denoiser(schedule)(z * unit, t)

    y = their_run(scheduler, answer, x / size[0])
    return y * size[-1], x


@pytest.mark.parametrize("name", ["vp", "flow", "edm"])
@pytest.mark.parametrize(
    "kind, options, step",
    [
        (MULTI, {}, dpmpp_2m_step),
        ("UniPCMultistepScheduler", {"solver_order": 2}, unipc_step),
    ],
)
def test_on_schedules_of_continuous_time(name, kind, options, step):
    times = log_snr_times(SCHEDULES[name], STEPS, -8, 8)
    with in_double(kind):
        y, x = on_our_grid(kind, SCHEDULES[name], times, **options)
    close(y, ours(SCHEDULES[name], x, times, step))


def singlestep(schedule, times, own=False):
    """DPM-Solver-2: theirs calls the grid's second time the middle of a step."""
    options = TO_THE_END | {"algorithm_type": "dpmsolver", "solver_order": 2}
    with precision(SINGLE, own):
        y, x = on_our_grid(SINGLE, schedule, times, **options)
    return y, ours(schedule, x, times[::2], dpm_solver_2_step)


@pytest.mark.parametrize("name", ["linear", "vp", "edm"])
def test_singlestep(name):
    """On even steps in log-SNR we agree; else their middle is not in the middle."""
    schedule = SCHEDULES[name]
    close(*singlestep(schedule, log_snr_times(schedule, STEPS + 1, -8, 8)[:-1]))
    assert gap(singlestep(schedule, schedule.times(STEPS + 1)[:-1])) > 1e-3


def third_order(schedule, times, mended, own=False):
    """Return their and our DPM-Solver++(3M)."""
    options = TO_THE_END | {"solver_order": 3}
    with precision(MULTI, own), rewritten(MULTI, D2) if mended else nullcontext():
        y, x = on_our_grid(MULTI, schedule, times, **options)
    return y, ours(schedule, x, times, dpmpp_3m_step)


@pytest.mark.parametrize("name", ["linear", "vp", "edm"])
def test_third_order_with_half_a_second_difference(name):
    """Theirs is ours once D2 is doubled; as it stands it is another rule.

    They expand x0 in u = lambda / h as m0 + D1 u + D2 u^2 / 2, where D2 is the second
    derivative; what they compute is the second divided difference, half of it.
    """
    times = log_snr_times(SCHEDULES[name], STEPS, -8, 8)[:-1]
    close(*third_order(SCHEDULES[name], times, mended=True))
    assert gap(third_order(SCHEDULES[name], times, mended=False)) > 1e-3


def test_half_a_second_difference_costs_an_order():
    """Twice the steps: a quarter of the error; an eighth with D2 doubled."""

    def grid(n):
        return log_snr_times(EDM, n + 1, -8.7, 5)[:-1]

    exact = ours(EDM, noise(EDM), grid(500), partial(unipc_step, order=3))
    for mended, order in ((False, 2), (True, 3)):
        errors = [third_order(EDM, grid(n), mended)[0] - exact for n in (96, 192)]
        coarse, fine = (error.pow(2).mean().sqrt() for error in errors)
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.35)


def flow(own=False):
    """Euler on the straight path, v = eps - x0."""
    kind, x = "FlowMatchEulerDiscreteScheduler", noise(FLOW)

    def answer(z, clock):
        t = clock.double() / 1000
        return (z - planar().denoiser(FLOW)(z, t)) / t

    with precision(kind, own):
        scheduler = peer(kind)
        y = their_run(scheduler, answer, x)
    return y, ours(FLOW, x, scheduler.sigmas.double(), ddim_step)


def test_flow_matching():
    """DDIM on the straight schedule; their grid ends at 0.001, then 0."""
    close(*flow())
    assert gap(flow(own=True)) < 1e-4


def edm_answer(scheduler, schedule=EDM):
    """Return F, the preconditioned network, of the z = c_in x that it sees."""

    def answer(z, clock):
        t, data = scheduler.sigmas[scheduler.step_index].double(), 0.5
        size = (t**2 + data**2) ** 0.5
        x0 = planar().denoiser(schedule)(z * size, t)
        return (x0 - data**2 / size * z) * size / (t * data)

    return answer


def edm(kind, step, own=False, draw=False, **options):
    """Karras' grid and preconditioning; each makes them itself."""
    with precision(kind, own):
        scheduler = peer(kind, **options)
        generator = {"generator": seeded(1)} if draw else {}
        y = their_run(scheduler, edm_answer(scheduler), noise(EDM), **generator)
    return y, ours(EDM, noise(EDM), EDM.times(STEPS), step)


EDM_MULTI = "EDMDPMSolverMultistepScheduler"
EDMS = [
    ("EDMEulerScheduler", ddim_step, {}),
    (EDM_MULTI, dpmpp_2m_step, {}),
    (EDM_MULTI, ddim_step, {"solver_order": 1}),
]


@pytest.mark.parametrize("kind, step, options", EDMS)
def test_edm(kind, step, options):
    close(*edm(kind, step, **options))
    assert gap(edm(kind, step, own=True, **options)) < 1e-3


def test_edm_with_noise():
    step, options = partial(dpmpp_2m_step, eta=1.0), {"algorithm_type": SDE}
    close(*edm(EDM_MULTI, step, draw=True, **options))


def test_edm_third_order():
    with rewritten(EDM_MULTI, D2):
        close(*edm(EDM_MULTI, dpmpp_3m_step, solver_order=3))
    assert gap(edm(EDM_MULTI, dpmpp_3m_step, solver_order=3)) > 1e-3


CHURN = {"s_churn": 0.3 * STEPS, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}


def churned_euler(told):
    """Theirs adds noise after the network was asked; told: x0 at where it goes."""
    kind, y, twin, told_x0 = "EDMEulerScheduler", noise(EDM), seeded(1), {}
    options, denoise = CHURN | {"generator": seeded(1)}, planar().denoiser(EDM)
    with in_double(kind):
        scheduler = peer(kind)
        answer = edm_answer(scheduler)
        for clock, t in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
            out = answer(scheduler.scale_model_input(y, clock), clock)
            if told:
                inside = CHURN["s_tmin"] <= t <= CHURN["s_tmax"]
                up, z = t, torch.zeros_like(y)
                if inside:
                    up, z = 1.3 * t, 1.003 * torch.randn(y.shape, generator=twin)
                told_x0 = {
                    "pred_original_sample": denoise(q_step(EDM, y, t, up, z), up)
                }
            y = scheduler.step(out, clock, y, **options, **told_x0).prev_sample
    step = churned(ddim_step, 0.3, 0.05, 50.0, 1.003)
    return y, ours(EDM, noise(EDM), EDM.times(STEPS), step)


def test_churn_comes_after_the_question():
    """Theirs asks at x_t, then adds noise and steps from there with the old answer.

    Karras et al. (2022, Algorithm 2) ask where the noise has led. Told the answer
    there, theirs is ours.
    """
    close(*churned_euler(told=True))
    assert gap(churned_euler(told=False)) > 0.01


def predictor_corrector():
    """Theirs, but for its corrections at the first time, which ours does not make."""
    kind, y, generator = "ScoreSdeVeScheduler", noise(EDM), seeded(1)
    denoise = planar().denoiser(RATIOS)
    with in_double(kind):
        scheduler = peer(kind, sigma_max=80.0, snr=0.16)
        scheduler.set_sigmas(STEPS)
        times = torch.cat([scheduler.discrete_sigmas.flip(0), torch.zeros(1)])
        for row, (clock, t) in enumerate(zip(scheduler.timesteps, times, strict=False)):
            if row > 0:
                score = score_from_x0(RATIOS, y, denoise(y, t), t)
                y = scheduler.step_correct(score, y, generator).prev_sample
            score = score_from_x0(RATIOS, y, denoise(y, t), t)
            out = scheduler.step_pred(score, clock, y, generator)
            y = out.prev_sample
    step = corrected(reverse_sde_step, 1, 0.16)
    return out, ours(RATIOS, noise(EDM), times, step)


def test_predictor_corrector():
    """The reverse SDE with Langevin steps; the norms are meant over 16 points.

    Their last step adds noise, too; its mean is our x.
    """
    out, x = predictor_corrector()
    close(out.prev_sample_mean, x)
    assert gap((out.prev_sample, x)) > 1e-3
