"""The training loss: Algorithm 1, its weights, and dropped conditions."""

import math

import pytest
import torch
from conftest import SCHEDULES
from torch import nn

from diffusion_lib.denoiser import PREDICTIONS, Denoiser
from diffusion_lib.losses import (
    denoising_loss,
    dropped,
    log_snr_normal,
    min_snr,
    snr,
)
from diffusion_lib.networks import UNet
from diffusion_lib.process import q_sample


class Affine(nn.Module):
    """A net that answers 0.3 x + 0.1, whatever the time."""

    def forward(self, x, u, cond=None):
        """Return 0.3 x + 0.1."""
        return 0.3 * x + 0.1


def draws(*shape):
    return torch.randn(shape, dtype=torch.float64)


def test_it_is_algorithm_1():
    """Ho et al. (2020): the mean squared error of the noise predicted."""
    chain, x0, eps = SCHEDULES["linear"], draws(4, 2, 3), draws(4, 2, 3)
    t = torch.tensor([1, 10, 500, 1000])
    alpha_bar = chain.alpha_bar[t][:, None, None]
    x = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps
    expected = (eps - (0.3 * x + 0.1)).pow(2).mean((1, 2))
    got = denoising_loss(Denoiser(Affine(), chain, "eps"), x0, t=t, eps=eps)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_right_answer_costs_nothing(prediction):
    """One data point: x_t tells eps, so a net exists that is never wrong."""
    chain = SCHEDULES["linear"]
    x0, eps, t = torch.full((3, 2), 0.4), torch.randn(3, 2), torch.tensor([1, 99, 700])
    denoiser = Denoiser(Affine(), chain, prediction)
    denoiser.net.forward = lambda x, u, cond: denoiser.target(x0, eps, t)
    assert float(denoising_loss(denoiser, x0, t=t, eps=eps).max()) == 0


def test_distances(schedule):
    denoiser = Denoiser(Affine(), schedule, "v")
    x0, eps, t = draws(4, 5), 3 * draws(4, 5), schedule.times(4)[:-1]
    error = denoiser.output(q_sample(schedule, x0, t, eps), t)
    error = (error - denoiser.target(x0, eps, t)).abs()
    huber = torch.where(error < 1, error**2 / 2, error - 0.5)
    for name, expected in [("l1", error), ("l2", error**2), ("huber", huber)]:
        got = denoising_loss(denoiser, x0, t=t, eps=eps, distance=name)
        torch.testing.assert_close(got, expected.mean(1))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weighs_the_error_of_x0(schedule, prediction):
    """Whatever the net predicts: min(SNR, gamma) |x0_hat - x0|^2 (Hang et al.)."""
    if prediction == "eps" and schedule(schedule.t_max, draws(1, 1))[0] < 1e-3:
        return  # no such denoiser
    denoiser = Denoiser(Affine(), schedule, prediction, data_std=0.5)
    x0, eps, t = draws(6, 3), draws(6, 3), schedule.times(6)[1:-1]
    t = torch.cat([t, t[-1:] / 2])  # six, one of them between two rows
    x = q_sample(schedule, x0, t, eps)
    weight = schedule.log_snr(t).exp().clamp(max=5.0)
    expected = weight * (denoiser(x, t) - x0).pow(2).mean(1)
    got = denoising_loss(denoiser, x0, t=t, eps=eps, weight=min_snr(5.0))
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-12)


def test_snr_is_the_ratio_of_the_powers(schedule):
    t = schedule.times(5)[1:-1]
    alpha, sigma = schedule.alpha_sigma(t)
    torch.testing.assert_close(snr(schedule, t), (alpha / sigma) ** 2)


def test_times_and_noise_are_drawn_from_the_seed(schedule):
    denoiser, x0 = Denoiser(Affine(), schedule), draws(6, 2)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(denoising_loss(denoiser, x0))
    assert runs[0].shape == (6,) and torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("name", ["cosine", "flow", "vp", "edm"])
def test_log_snr_normal_has_its_moments_and_a_uniform_share(name):
    schedule = SCHEDULES[name]
    t = log_snr_normal(schedule, 20_000, 1.0, 1.5, uniform=0.0)
    log_snr = schedule.log_snr(t)
    assert float(log_snr.mean()) == pytest.approx(1.0, abs=0.05)
    assert float(log_snr.std()) == pytest.approx(1.5, abs=0.05)
    narrow = log_snr_normal(schedule, 20_000, 1.0, 1e-6, uniform=0.25)
    centre = schedule.time_at(torch.tensor(1.0))
    away = (narrow / centre - 1).abs() > 0.005
    assert float(away.double().mean()) == pytest.approx(0.25, abs=0.015)
    assert 0 < t.min() and t.max() <= schedule.t_max


LABELLED = Denoiser(UNet(width=8, stem=4, dim=8, classes=10), SCHEDULES["cosine"])


def test_labels_are_dropped_at_the_rate_and_replaced_by_the_null():
    label = torch.arange(10_000) % 10
    kept = dropped(LABELLED, {"label": label}, 0.15)["label"]
    gone = kept != label
    assert bool((kept[gone] == 10).all())
    assert float(gone.double().mean()) == pytest.approx(0.15, abs=0.015)
    assert torch.equal(dropped(LABELLED, {"label": label}, 0.0)["label"], label)
    assert bool((dropped(LABELLED, {"label": label}, 1.0)["label"] == 10).all())


DENOISER, X0 = Denoiser(Affine(), SCHEDULES["cosine"]), torch.zeros(4, 2)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: denoising_loss(DENOISER, X0, distance="l3"), "unknown distance 'l3'"),
        (lambda: denoising_loss(DENOISER, X0[:0]), "expected a batch"),
        (lambda: denoising_loss(DENOISER, X0 * math.nan), "NaN or infinite"),
        (lambda: denoising_loss(DENOISER, X0, t=torch.ones(3)), "each of the 4 rows"),
        (lambda: denoising_loss(DENOISER, X0, t=torch.zeros(4)), "t = 0"),
        (lambda: denoising_loss(DENOISER, X0, t=torch.full((4,), 1001)), "1000"),
        (lambda: denoising_loss(DENOISER, X0, eps=X0[:2]), "one shape"),
        (lambda: min_snr(0.0), "gamma must be above 0"),
        (lambda: min_snr(math.nan), "gamma must be above 0"),
        (lambda: log_snr_normal(SCHEDULES["flow"], 5, 0.0, -1.0), "std"),
        (lambda: log_snr_normal(SCHEDULES["flow"], 5, 0.0, 1.0, 1.5), "uniform"),
        (lambda: dropped(LABELLED, {"label": torch.ones(3)}, 1.2), r"\[0, 1\]"),
        (lambda: dropped(LABELLED, {}, 0.1), "no conditions"),
        (lambda: dropped(DENOISER, {"label": torch.ones(3)}, 0.1), "none"),
        (lambda: snr(SCHEDULES["cosine"], -1), r"\[0, 1000\]"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_integer_pictures_are_refused():
    with pytest.raises(TypeError, match="127.5"):
        denoising_loss(DENOISER, torch.full((4, 2), 255, dtype=torch.uint8))
