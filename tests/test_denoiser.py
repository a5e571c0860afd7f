"""One denoiser for every prediction: inverted exactly, fed at unit variance."""

import copy
import math
import pickle

import pytest
import torch
from conftest import SCHEDULES
from torch import nn

from diffusion_lib.denoiser import PREDICTIONS, Denoiser
from diffusion_lib.networks import MLP
from diffusion_lib.process import q_sample
from diffusion_lib.schedules import VPSchedule


class Says(nn.Module):
    """A net that answers a given tensor and remembers what it was asked."""

    def __init__(self, y):
        super().__init__()
        self.y, self.asked = y, None

    def forward(self, x, u, cond=None):
        """Return y, whatever x is."""
        self.asked = x, u, cond
        return self.y


def draws(*shape):
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_inverts_exactly(schedule, prediction):
    end, _ = schedule(schedule.t_max, draws(1, 1))
    if prediction == "eps" and end < 1e-3:
        return  # refused at construction: see the next test
    x0, eps = draws(9, 2), draws(9, 2)
    t = schedule.times(9)[:-1]
    denoiser = Denoiser(Says(None), schedule, prediction, data_std=0.5)
    denoiser.net.y = denoiser.target(x0, eps, t)
    x = q_sample(schedule, x0, t, eps)
    torch.testing.assert_close(denoiser(x, t), x0, rtol=0, atol=1e-8)


def test_eps_is_refused_where_the_schedule_ends_without_signal():
    refused = set()
    for name, schedule in SCHEDULES.items():
        try:
            Denoiser(Says(None), schedule, "eps")
        except ValueError as error:
            assert "prediction='v'" in str(error)
            refused.add(name)
    ends = {n: float(s(s.t_max, draws(1, 1))[0]) for n, s in SCHEDULES.items()}
    assert refused == {name for name, alpha in ends.items() if alpha < 1e-3}
    assert {"cosine", "flow"} <= refused and "linear" not in refused


def test_targets_are_the_papers():
    """Salimans and Ho (2022): v = alpha eps - sigma x0. Liu et al.: flow = eps - x0."""
    x0, eps, t = draws(4, 2), draws(4, 2), torch.tensor([1, 10, 500, 1000])
    schedule = SCHEDULES["cosine"]
    alpha, sigma = schedule(t, x0)
    expected = {"x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}
    for prediction, target in expected.items():
        got = Denoiser(Says(None), schedule, prediction).target(x0, eps, t)
        torch.testing.assert_close(got, target)


def test_edm_is_table_1_of_karras():
    """D = c_skip x + c_out F(c_in x, ln(sigma) / 4), data of deviation s."""
    s, x, y = 0.5, draws(3, 2), draws(3, 2)
    sigma = torch.tensor([0.01, 1.0, 70.0], dtype=torch.float64)
    denoiser = Denoiser(Says(y), SCHEDULES["edm"], "edm", data_std=s)
    got = denoiser(x, sigma)
    column = sigma[:, None]
    norm = (s**2 + column**2).sqrt()
    expected = s**2 / norm**2 * x + column * s / norm * y
    torch.testing.assert_close(got, expected)
    fed, u, _ = denoiser.net.asked
    torch.testing.assert_close(fed, x / norm)
    torch.testing.assert_close(u, sigma.log() / 4)


@pytest.mark.parametrize("prediction", ["v", "edm"])
def test_the_net_is_fed_unit_variance(schedule, prediction):
    """Data of deviation data_std (edm) or 1 (others) at every time."""
    std = 0.5 if prediction == "edm" else 1.0
    denoiser = Denoiser(Says(torch.zeros(1, 1)), schedule, prediction, std)
    for t in schedule.times(7)[:-1]:
        alpha, sigma = schedule(t, draws(1, 1))
        total = 0.0
        for part in (alpha * std, sigma):
            denoiser.output(part * torch.ones(1, 1, dtype=torch.float64), t)
            total += float(denoiser.net.asked[0] ** 2)
        assert total == pytest.approx(1, rel=1e-9)


def test_the_net_hears_the_schedule_s_clock_and_the_condition(schedule):
    denoiser = Denoiser(Says(torch.zeros(3, 2)), schedule)
    cond, t = {"label": torch.arange(3)}, schedule.times(5)[2]
    denoiser(torch.zeros(3, 2), t, cond)
    _, u, heard = denoiser.net.asked
    assert u.shape == (3,) and u.dtype == torch.float32 and heard is cond
    torch.testing.assert_close(u, schedule.embed(t).float().expand(3))


@pytest.mark.parametrize("prediction", ["x0", "v", "flow", "edm"])
def test_one_time_and_a_batch_of_it_agree(schedule, prediction):
    x, t = draws(3, 2), schedule.times(5)[2]
    denoiser = Denoiser(Says(draws(3, 2)), schedule, prediction)
    torch.testing.assert_close(denoiser(x, t), denoiser(x, t.expand(3)))


def test_single_precision_stays():
    denoiser = Denoiser(Says(torch.zeros(3, 2, dtype=torch.bfloat16)), SCHEDULES["vp"])
    assert denoiser(torch.zeros(3, 2), 0.5).dtype == torch.float32


def test_a_denoiser_can_be_copied_and_pickled():
    denoiser = Denoiser(MLP(2, width=8), SCHEDULES["cosine"])
    x = torch.randn(3, 2)
    for other in (copy.deepcopy(denoiser), pickle.loads(pickle.dumps(denoiser))):
        torch.testing.assert_close(other(x, 400), denoiser(x, 400))


ZEROS = torch.zeros(2, 3)
DENOISER = Denoiser(Says(ZEROS), SCHEDULES["linear"])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Denoiser(Says(ZEROS), SCHEDULES["linear"], "noise"), "choose from"),
        (lambda: DENOISER(ZEROS, 0), "not defined at t = 0"),
        (lambda: DENOISER(ZEROS, torch.tensor([5, 0])), "not defined at t = 0"),
        (lambda: DENOISER.output(ZEROS, 0), "not defined at t = 0"),
        (lambda: DENOISER(ZEROS, 1001), r"\[0, 1000\]"),
        (lambda: DENOISER(ZEROS, -1), r"\[0, 1000\]"),
        (lambda: DENOISER(ZEROS, math.nan), r"\[0, 1000\]"),
        (lambda: DENOISER(ZEROS, torch.ones(3)), "each of the 2 rows"),
        (lambda: DENOISER(torch.zeros(2, 4), 5), r"\(2, 3\) for an input .*\(2, 4\)"),
        (lambda: DENOISER.null({"label": ZEROS}), "no conditions"),
        (lambda: DENOISER.null(None), "no conditions"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_precision_that_is_not_the_net_s_is_named():
    with pytest.raises(TypeError, match="float64.*float32: use x.to.torch.float32"):
        Denoiser(MLP(2, width=4), VPSchedule())(torch.zeros(3, 2).double(), 0.5)


def test_integer_pictures_are_refused():
    with pytest.raises(TypeError, match="127.5"):
        DENOISER(ZEROS.to(torch.uint8), 5)
