"""Guidance: its identities, what it asks of the net, and the score it follows."""

import math

import pytest
import torch
from conftest import SCHEDULES
from torch import nn

from diffusion_lib.analytic import GaussianMixture
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.guidance import (
    classifier_free,
    classifier_guided,
    clip_x0,
    extrapolated,
    given,
    inpaint,
    label_log_prob,
    within,
)
from diffusion_lib.measurements.guidance import (
    INTERVAL,
    WAYS,
    asked_for,
    guided,
    obedience,
    variance_within,
)
from diffusion_lib.networks import MLP, UNet
from diffusion_lib.process import score_from_x0
from diffusion_lib.samplers import sample

SCHEDULE = SCHEDULES["cosine"]


class Labelled(nn.Module):
    """An x0-net that answers its label's number everywhere; label 9 is the null."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, u, cond):
        """Return the labels, spread to the shape of x."""
        self.calls.append(cond)
        return x * 0 + cond["label"][:, None].to(x)

    def null(self, cond):
        """Return cond with label 9."""
        return {**cond, "label": torch.full_like(cond["label"], 9)}


DENOISER = Denoiser(Labelled(), SCHEDULE, "x0")
X = torch.randn(3, 2, dtype=torch.float64)
COND = {"label": torch.tensor([1, 2, 3]), "low_res": torch.arange(3.0)}


def test_given_binds_the_condition():
    expected = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64).expand(3, 2)
    torch.testing.assert_close(given(DENOISER, COND)(X, 500), expected)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("t", [500, torch.tensor([1, 500, 1000])])
def test_the_answer_is_extrapolated_from_null_to_label(scale, t):
    label = COND["label"].double()[:, None].expand(3, 2)
    got = classifier_free(DENOISER, COND, scale)(X, t)
    torch.testing.assert_close(got, 9 + scale * (label - 9))


def test_both_answers_come_from_one_call_and_other_conditions_stay():
    DENOISER.net.calls.clear()
    classifier_free(DENOISER, COND, 2.0)(X, 500)
    (cond,) = DENOISER.net.calls
    assert cond["label"].tolist() == [9, 9, 9, 1, 2, 3]
    assert cond["low_res"].tolist() == [0, 1, 2, 0, 1, 2]
    assert COND["label"].tolist() == [1, 2, 3]


def test_scale_1_is_given_and_scale_0_unconditional_on_a_real_net():
    net = UNet(width=8, stem=4, dim=16, classes=5)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)  # as if trained: no zero layers
    denoiser = Denoiser(net.eval(), SCHEDULE)
    x, cond = torch.randn(2, 1, 8, 8), {"label": torch.tensor([0, 4])}
    with torch.no_grad():
        for scale, other in [(1.0, cond), (0.0, None)]:
            guided = classifier_free(denoiser, cond, scale)(x, 300)
            torch.testing.assert_close(guided, denoiser(x, 300, other))
        far = classifier_free(denoiser, cond, 5.0)(x, 300)
    assert float((far - guided).abs().max()) > 1e-3


def test_guidance_follows_the_extrapolated_score(schedule, mixture):
    """(1 - w) score(x) + w score(x | k), with the mixture's exact denoisers."""
    part = GaussianMixture(mixture.means[1:2], 0.35)
    both = [law.denoiser(schedule) for law in (mixture, part)]

    class Exact:
        def null(self, cond):
            return {"label": cond["label"] * 0}

        def __call__(self, x, t, cond):
            answers = torch.stack([denoise(x, t) for denoise in both])
            return answers[cond["label"], torch.arange(len(x))]

    x, t = torch.randn(3, 2, dtype=torch.float64), schedule.times(5)[2]
    guided = classifier_free(Exact(), {"label": torch.ones(3).long()}, 2.5)(x, t)
    score = [score_from_x0(schedule, x, denoise(x, t), t) for denoise in both]
    torch.testing.assert_close(
        score_from_x0(schedule, x, guided, t), -1.5 * score[0] + 2.5 * score[1]
    )


@pytest.mark.parametrize("batch", [False, True])
def test_an_exact_classifier_turns_the_whole_law_into_a_part(schedule, mixture, batch):
    """Bayes: score(x) + slope of log p(part | x) is score(x | part)."""
    part = GaussianMixture(mixture.means[1:2], 0.35)

    def log_prob(x, t):
        return mixture.responsibilities(x, *schedule(t, x))[:, 1].log()

    whole, x = mixture.denoiser(schedule), torch.randn(3, 2, dtype=torch.float64)
    guided = classifier_guided(whole, schedule, log_prob)
    for t in schedule.times(5)[:-1]:
        t = t.expand(3) if batch else t
        alpha = schedule(t, x)[0]
        wanted = (part.denoiser(schedule) if bool((alpha > 0).all()) else whole)(x, t)
        torch.testing.assert_close(guided(x, t), wanted)
    assert not guided(x, t).requires_grad


def test_rescaling_restores_the_deviation():
    class Two:
        def null(self, cond):
            return cond

        def __call__(self, x, t, cond):
            return x * torch.linspace(1, 2, len(x))[:, None].to(x)

    x = torch.randn(2, 50, dtype=torch.float64)
    cond = {"label": torch.tensor([0, 1])}
    asked = Two()(torch.cat([x, x]), 500, None)[2:]
    held = classifier_free(Two(), cond, 4.0, rescale=1.0)(x, 500)
    torch.testing.assert_close(held.std(1), asked.std(1))
    half = classifier_free(Two(), cond, 4.0, rescale=0.5)(x, 500)
    free = classifier_free(Two(), cond, 4.0)(x, 500)
    torch.testing.assert_close(half, (held + free) / 2)


def test_guidance_in_an_interval_and_by_a_worse_model(schedule):
    calls = []

    def answer(name, value):
        def denoise(x, t):
            calls.append(name)
            return torch.full_like(x, value)

        return denoise

    good, bad = answer("good", 1.0), answer("bad", 0.0)
    x = torch.zeros(2, 2, dtype=torch.float64)
    torch.testing.assert_close(extrapolated(good, bad, 3.0)(x, 1.0), x + 3)
    for t in schedule.times(6)[:-1]:
        alpha, sigma = schedule(t, x)
        calls.clear()
        within(good, bad, schedule, 0.2, 5.0)(x, t)
        assert calls == ["good" if 0.2 * alpha <= sigma <= 5 * alpha else "bad"]
        calls.clear()
        within(good, bad, schedule, 0.2)(x, t)
        assert calls == ["good" if 0.2 * alpha <= sigma else "bad"]


def test_inpainting_keeps_what_is_known(mixture):
    known, mask = torch.tensor([[0.3, 9.0]]), torch.tensor([[1.0, 0.0]])
    denoise = inpaint(mixture.denoiser(SCHEDULE), known, mask)
    x = SCHEDULE.noise((5, 2), dtype=torch.float64)
    x = sample(denoise, SCHEDULE, x, 8)
    torch.testing.assert_close(x[:, 0], torch.full((5,), 0.3, dtype=torch.float64))
    assert float(x[:, 1].abs().max()) < 3


def test_what_is_known_follows_x_to_its_device():
    known, mask = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    denoise = inpaint(lambda x, t: x, known, mask)
    assert denoise(torch.ones(5, 2, device="meta"), 500).device.type == "meta"


def test_clipping_keeps_x0_in_range_and_composes():
    guided = classifier_free(DENOISER, COND, 3.0)
    clipped = clip_x0(guided, -0.5, 2.0)
    torch.testing.assert_close(clipped(X, 500), guided(X, 500).clamp(-0.5, 2.0))
    x = sample(clip_x0(guided), SCHEDULE, X, 4)
    torch.testing.assert_close(x, torch.full_like(x, -1))  # 9 - 3 * 8 and so on, cut


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: clip_x0(given(DENOISER, COND), 1, 1), "low < high"),
        (lambda: clip_x0(given(DENOISER, COND), math.nan), "low < high"),
        (lambda: within(DENOISER, DENOISER, SCHEDULE, 2.0, 1.0), "low < high"),
        (lambda: classifier_free(DENOISER, COND, 2.0, rescale=1.5), "from 0 to 1"),
        (lambda: classifier_free(DENOISER, None, 2.0), "no conditions"),
        (lambda: classifier_free(DENOISER, {}, 2.0), "no conditions"),
        (lambda: classifier_free(Denoiser(MLP(2), SCHEDULE), COND, 2.0), "none"),
        (lambda: classifier_free(DENOISER, COND, 2.0)(X, 0), "t = 0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["cosine", "edm"])
def test_a_classifier_is_fed_as_a_denoiser_s_net(name):
    """At unit variance, with the schedule's own number for the time."""
    schedule, seen = SCHEDULES[name], []

    def classifier(x, u):
        seen.append((x, u))
        return torch.stack([x.sum(1), 0 * x.sum(1)], 1)

    x, t = torch.randn(3, 2, dtype=torch.float64), schedule.times(4)[1]
    label = torch.tensor([0, 1, 1])
    got = label_log_prob(classifier, schedule, label)(x, t)
    alpha, sigma = schedule(t, x)
    total = (x / (alpha**2 + sigma**2).sqrt()).sum(1)
    sign = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(got, (sign * total).sigmoid().log())
    torch.testing.assert_close(seen[0][1], schedule.embed(t).expand(3))


def test_each_way_of_the_study_guides_as_it_says():
    """Each way denoises, and differs from plain guidance where it should."""
    label = torch.tensor([1, 2, 3])
    answers = {}
    net = Denoiser(UNet(width=8, stem=4, dim=16, classes=10).eval(), SCHEDULE)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    low, high = INTERVAL
    for t in (50, 600, 990):
        x = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(t))
        with torch.no_grad():
            for way in WAYS:
                answers[way] = WAYS[way][0](net, label, 4.0)(x, t)
            alone = net(x, t, {"label": label})
        alpha, sigma = SCHEDULE.at(t, x)
        inside = low <= sigma / alpha <= high
        wanted = answers["classifier-free"] if inside else alone
        torch.testing.assert_close(answers["interval"], wanted)
        torch.testing.assert_close(
            answers["clipped"], answers["classifier-free"].clamp(-1, 1)
        )
        assert answers["dynamic"].abs().max() <= 1
        for way in ("rescaled", "classifier", "worse model"):
            assert not torch.allclose(answers[way], answers["classifier-free"])


def test_what_guidance_changes_is_scored_against_real_pictures(fashion):
    """Real pictures have diversity and contrast near 1; copies have none."""
    pictures, label = (part[:400] for part in fashion)
    found = obedience(pictures, label)
    assert found["outside"] == 0 and found["accuracy"] > 0.8
    assert 0.8 < found["diversity"] < 1.2 and 0.9 < found["contrast"] < 1.1
    flat = obedience(pictures[:1].expand(20, -1, -1, -1), torch.arange(20) % 10)
    assert flat["accuracy"] == 0.1 and flat["diversity"] < 1e-9
    double = obedience(2.5 * pictures, label)
    assert double["outside"] > 0.1
    asked = asked_for(pictures, label)
    assert min(asked) > 0.5 and asked_for(pictures, (label + 1) % 10)[1] < 0.1
    with pytest.raises(ValueError, match="two pictures"):
        obedience(pictures[:10], torch.arange(10))


def test_variance_within_classes_ignores_where_the_classes_lie():
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(4000) % 2
    z = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    spread = variance_within(2 * z + 50 * label[:, None], label)
    assert spread == pytest.approx(12, rel=0.05)  # 3 values of variance 4


def test_a_guided_run_is_of_one_seed():
    """The same seed, the same pictures, in batches or not; another, others."""
    build, _ = WAYS["classifier-free"]
    first, label = guided(build, 2.0, 2, seed=0)
    again, _ = guided(build, 2.0, 2, seed=0)
    other, _ = guided(build, 2.0, 2, seed=1)
    torch.testing.assert_close(first, again)
    assert label.tolist() == [0, 1]
    assert float((first - other).abs().mean()) > 0.05
