"""One noise level under every notation."""

import pytest
import torch
from torch.testing import assert_close

import diffusion_lib as dl
from diffusion_lib.convert import convert_point, convert_time, on_schedule

SCHEDULES = {
    "linear": dl.linear_schedule(),
    "cosine": dl.cosine_schedule(),
    "vp": dl.VPSchedule(),
    "edm": dl.EDMSchedule(),
    "flow": dl.FlowSchedule(),
}
PAIRS = [(a, b) for a in SCHEDULES for b in SCHEDULES if a != b]
MEANS = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.2, -0.8]], dtype=torch.float64)


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_times_go_round(old, new):
    old, new = SCHEDULES[old], SCHEDULES[new]
    t = dl.karras_times(old, 20, 0.005, 79.0)
    u = convert_time(t, old, new)
    assert_close(convert_time(u, new, old), t, rtol=1e-9, atol=1e-12)
    assert_close(u, dl.karras_times(new, 20, 0.005, 79.0), rtol=1e-9, atol=0)
    assert u[-1] == 0


def test_known_names_of_one_level():
    flow, edm, vp = SCHEDULES["flow"], SCHEDULES["edm"], SCHEDULES["vp"]
    assert_close(float(convert_time(1.0, edm, flow)), 0.5)  # as much noise as data
    assert_close(float(convert_time(0.2, flow, edm)), 0.25)
    assert_close(float(vp.alpha_sigma(convert_time(1.0, edm, vp))[0] ** 2), 0.5)


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_a_point_keeps_its_data_and_its_noise(old, new):
    old, new = SCHEDULES[old], SCHEDULES[new]
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    t = old.time_at(torch.tensor([-8.0, -2.0, 0.0, 3.0, 9.0]))
    x, u = convert_point(dl.q_sample(old, x0, t, eps), t, old, new)
    assert_close(x, dl.q_sample(new, x0, u, eps), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("own", "other"), PAIRS)
def test_a_denoiser_seen_through_another_schedule_is_that_schedules_own(own, other):
    own, other = SCHEDULES[own], SCHEDULES[other]
    mixture = dl.GaussianMixture(MEANS, std=0.3)
    seen = on_schedule(mixture.denoiser(own), own, other)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(1)).double()
    for t in (
        other.time_at(torch.tensor(0.5)),
        other.time_at(torch.linspace(-8, 8, 6)),
    ):
        assert_close(seen(x, t), mixture.denoiser(other)(x, t), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("step", [dl.ddim_step, dl.dpmpp_2m_step])
def test_ddim_and_2m_do_not_depend_on_the_notation(step):
    mixture, own = dl.GaussianMixture(MEANS, std=0.3), SCHEDULES["linear"]
    start = torch.randn(8, 2, generator=torch.Generator().manual_seed(2)).double()
    t = own.time_at(torch.tensor(-8.0))
    ends = []
    for schedule in SCHEDULES.values():
        x, _ = convert_point(start, t, own, schedule)
        times = dl.log_snr_times(schedule, 12, -8.0, 8.0)
        denoise = on_schedule(mixture.denoiser(own), own, schedule)
        ends.append(dl.sample(denoise, schedule, x, times, step))
    for end in ends[1:]:
        assert_close(end, ends[0], rtol=0, atol=1e-8)
    assert ends[0].std() > 0.5  # not all in one place


@pytest.mark.parametrize("new", [*SCHEDULES.values(), dl.VPSchedule(0, 20)])
def test_data_stay_data(new):
    assert all(convert_time(0, old, new) == 0 for old in SCHEDULES.values())


def test_what_has_no_name_is_refused():
    cosine, edm, flow = SCHEDULES["cosine"], SCHEDULES["edm"], SCHEDULES["flow"]
    with pytest.raises(ValueError, match="noisier than the other"):
        convert_time(1000, cosine, edm)
    with pytest.raises(ValueError, match="start at an earlier time"):
        on_schedule(lambda x, t: x, edm, flow)(torch.ones(2, 1), torch.tensor(1.0))
    with pytest.raises(ValueError, match="no noise to rescale"):
        convert_point(torch.ones(2, 1), 0.0, flow, edm)
    with pytest.raises(ValueError, match="times must lie in"):
        convert_time(float("nan"), flow, edm)


def test_the_noisiest_end_goes_there_and_back():
    cosine, flow = SCHEDULES["cosine"], SCHEDULES["flow"]
    u = convert_time(1000, cosine, flow)
    assert_close(float(convert_time(u, flow, cosine)), 1000.0, rtol=0, atol=1e-4)
    assert 0.9999 < u < 1
