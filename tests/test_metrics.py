"""Metrics: closed forms, limits, and a scorer that tells faults apart."""

import math

import pytest
import torch
from torchvision.transforms.functional import gaussian_blur

from diffusion_lib import data, metrics
from diffusion_lib.metrics import (
    copied,
    density_coverage,
    extrapolated_frechet,
    features,
    frechet_distance,
    kid,
    nearest_neighbours,
    precision_recall,
)


def draws(*shape):
    return torch.randn(shape, dtype=torch.float64)


def whitened(n, D):
    """A sample whose mean is 0 and covariance I exactly."""
    x = draws(n, D)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T


def test_frechet_of_gaussians_in_closed_form():
    """|m|^2 + tr(A + B - 2 (A B)^(1/2)), with A, B of common axes and with none."""
    x, shift = whitened(50, 3), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    a, b = torch.tensor([[1.0, 2.0, 3.0], [0.5, 4.0, 3.0]], dtype=torch.float64)
    expected = float(shift.pow(2).sum() + (a - b).pow(2).sum())
    assert frechet_distance(x * a, x * b + shift) == pytest.approx(expected, rel=1e-9)
    turn = torch.linalg.qr(draws(3, 3)).Q
    product = torch.diag(a**2) @ turn @ torch.diag(b**2) @ turn.T
    root = torch.linalg.eigvals(product).sqrt().real.sum()  # another route than eigh
    expected = float(a.pow(2).sum() + b.pow(2).sum() - 2 * root)
    assert frechet_distance(x * a, x * b @ turn.T) == pytest.approx(expected, rel=1e-7)


def test_frechet_is_zero_for_the_same_and_symmetric():
    a, b = draws(40, 4), 2 * draws(60, 4) + 1
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    few = frechet_distance(draws(3, 8), draws(3, 8))  # covariances without full rank
    assert math.isfinite(few) and few > 0


def test_frechet_is_biased_upward_like_1_over_n():
    small, large = (
        sum(frechet_distance(draws(n, 8), draws(n, 8)) for _ in range(10)) / 10
        for n in (250, 1000)
    )
    assert small / large == pytest.approx(4, rel=0.25)


def test_the_extrapolated_frechet_has_no_bias():
    """Gaussians at distance 1: c = 2 tr S + sum_ij l_i l_j (1 + d_ij) / (l_i + l_j).

    That is D^2 / 2 + 5 D / 2 for S = I. One small sample alone is far off.
    """
    D, n, shift = 8, 800, torch.tensor([1.0] + 7 * [0.0]).double()
    pairs = [(draws(n, D), draws(n, D) + shift) for _ in range(12)]
    fits = torch.tensor([extrapolated_frechet(*pair) for pair in pairs])
    mean, spread = fits.mean(0), fits.std(0) / 12**0.5
    assert abs(mean[0] - 1) < 4 * spread[0] < 0.2
    assert abs(mean[1] - (D**2 / 2 + 5 * D / 2)) < 4 * spread[1] < 20
    plain = sum(frechet_distance(a[:100], b[:100]) for a, b in pairs) / 12
    assert plain > 1.3


def test_extrapolation_is_a_straight_line_through_exact_points(monkeypatch):
    """Where F(n) = 2 + 30 / n exactly, that is what is found."""
    monkeypatch.setattr(metrics, "frechet_distance", lambda a, b: 2 + 30 / len(a))
    found = extrapolated_frechet(draws(240, 3), draws(240, 3), (1, 3, 10))
    assert found == pytest.approx((2, 30), rel=1e-6)


def test_nearest_neighbours_are_those_of_all_distances():
    x, train = draws(30, 1, 4, 4), draws(700, 1, 4, 4)
    distance, index = nearest_neighbours(x, train)
    every = torch.cdist(x.flatten(1), train.flatten(1))
    assert torch.equal(index, every.argmin(1))
    torch.testing.assert_close(distance, every.min(1).values)


def test_a_training_picture_is_its_own_neighbour_at_no_distance(fashion):
    """Also in float32, where |x|^2 + |y|^2 - 2xy would leave a remainder."""
    x = fashion[0][:600]
    distance, index = nearest_neighbours(x.flip(0), x)
    assert torch.equal(index, torch.arange(600).flip(0))
    assert float(distance.max()) == 0


def test_copies_are_near_one_picture_and_far_from_all_others():
    train = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 8.0]])
    x = torch.tensor([[0.9, 0.0], [1.1, 0.0], [0.0, 8.0], [2.0, 0.0]])
    assert copied(x, train).tolist() == [True, False, True, False]
    assert copied(x, train, share=0.5).tolist() == [True, True, True, False]
    twice = torch.cat([train, train])
    assert not copied(x, twice).any()  # as its docstring says


def test_kid_is_the_sum_over_pairs():
    """The definition, pair by pair, without the pairs of a thing with itself."""
    a, b = draws(5, 3), draws(4, 3)

    def k(x, y):
        return float((x @ y / 3 + 1) ** 3)

    def mean(pairs):
        return sum(k(x, y) for x, y in pairs) / len(pairs)

    within = [
        mean([(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j])
        for x in (a, b)
    ]
    across = mean([(x, y) for x in a for y in b])
    assert kid(a, b) == pytest.approx(sum(within) - 2 * across, rel=1e-9)


def test_kid_is_unbiased():
    """Equal laws: 0 within four standard errors, below zero about half the time."""
    values = torch.tensor([kid(draws(60, 4), draws(60, 4)) for _ in range(200)])
    assert abs(float(values.mean())) < 4 * float(values.std()) / 200**0.5
    assert 0.25 < float((values < 0).double().mean()) < 0.75
    assert kid(draws(60, 4), draws(60, 4) + 1) > 5 * float(values.std())


@pytest.mark.parametrize("score", [precision_recall, density_coverage])
def test_a_law_covers_itself_and_not_what_is_far(score):
    real, same = draws(300, 3), draws(300, 3)
    far = score(real, same + 100)
    assert far == (0.0, 0.0)
    near = score(real, same)
    assert near[0] == pytest.approx(0.95, abs=0.1) and near[1] > 0.85


def test_precision_and_recall_tell_missing_modes_from_bad_samples():
    low, high = draws(300, 2), draws(300, 2) + 50
    both, half = torch.cat([low, high]), draws(600, 2)
    precision, recall = precision_recall(both, half)
    assert precision > 0.9 and recall == pytest.approx(0.5, abs=0.05)
    precision, recall = precision_recall(half, both)
    assert precision == pytest.approx(0.5, abs=0.05) and recall > 0.9
    assert density_coverage(both, half)[1] == pytest.approx(0.5, abs=0.05)


def test_manifolds_are_balls_to_the_kth_neighbour():
    """On a line, reals of radius 1, 1 and 3, fakes of radius 4.5, 2 and 2."""
    real = torch.tensor([[0.0], [1.0], [4.0]])
    fake = torch.tensor([[2.5], [7.0], [9.0]])
    real = torch.cat([real, torch.tensor([[-3.0]])])  # of radius 3, out of all reach
    precision, recall = precision_recall(real, fake, k=1)
    assert precision == pytest.approx(2 / 3)  # 4's ball has radius 3: [1, 7]
    assert recall == pytest.approx(3 / 4)  # 2.5's ball is [-2, 7]: 0, 1 and 4
    density, coverage = density_coverage(real, fake, k=1)
    assert (density, coverage) == pytest.approx((2 / 3, 1 / 4))


@pytest.fixture(scope="module")
def scale():
    """Features of real pictures, and the distance of other real ones from them."""
    x, _ = data.fashion_mnist("train")
    real = features(x[2000:4000])
    return x[:2000], real, frechet_distance(features(x[:2000]), real)


@pytest.mark.parametrize(
    "fault, times",
    [
        (lambda x: torch.randn(x.shape), 300),
        (lambda x: gaussian_blur(x, 7, 0.7), 40),
        (lambda x: torch.cat([x[:1000], x[1000:].flip(-1)]), 14),
    ],
    ids=["noise", "blur of 0.7 px", "half mirrored"],
)
def test_the_scorer_tells(scale, fault, times):
    x, real, floor = scale
    assert frechet_distance(features(fault(x)), real) >= times * floor


def test_features_are_few_of_unit_size_and_know_the_garment(fashion):
    x, label = fashion
    f = features(x[:2000])
    assert f.shape[1] <= 128 and f.dtype == torch.float64
    assert float(f.pow(2).mean()) == pytest.approx(1, abs=0.1)
    probabilities = metrics.classify(x[:2000])
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2000))
    right = (probabilities.argmax(1) == label[:2000]).double().mean()
    assert float(right) > 0.88


def test_features_do_not_depend_on_the_batch_and_see_what_a_screen_shows(fashion):
    x = fashion[0][:50]
    torch.testing.assert_close(features(x, 7), features(x, 50), rtol=1e-3, atol=1e-4)
    assert torch.equal(features(2 * x), features((2 * x).clamp(-1, 1)))


def test_scores_do_not_depend_on_what_surrounds_them(fashion):
    """Half precision that is meant for a sampler reaches neither these nor a cache."""
    x, plain = fashion[0][:50], metrics.real_features(50)
    metrics.real_features.cache_clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(metrics.real_features(50), plain)
        assert torch.equal(features(x), plain)
        inside = metrics.classify(x)
    assert torch.equal(inside, metrics.classify(x))
    metrics.real_features.cache_clear()


def test_scores_of_real_pictures_are_near_the_floor(fashion):
    told = metrics.scores(data.fashion_mnist("train")[0][:600])
    assert told["n"] == 600
    assert told["frechet_over_floor"] == pytest.approx(1, abs=0.5)
    assert told["coverage"] > 0.85 and told["frechet"] > told["frechet_floor"] / 2
    worse = metrics.scores(torch.randn(600, 1, 28, 28))
    assert worse["frechet_over_floor"] > 50 and worse["coverage"] < 0.05


F, P = torch.zeros(4, 3), torch.zeros(2, 1, 28, 28)


@pytest.mark.parametrize("score", [frechet_distance, kid, precision_recall])
@pytest.mark.parametrize(
    "a, b, message",
    [
        (F, F[:, :2], "two tables of features"),
        (P, P, "two tables of features"),
        (F[:1], F, "N >= 2"),
        (F, F[:0], "expected a batch"),
        (F * math.nan, F, "NaN or infinite"),
    ],
)
def test_tables_that_do_not_fit_are_refused(score, a, b, message):
    with pytest.raises(ValueError, match=message):
        score(a, b)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: features(P[:, 0]), r"\(B, 1, 28, 28\)"),
        (lambda: features(P.expand(2, 3, 28, 28)), r"\(B, 1, 28, 28\)"),
        (lambda: features(P[:0]), "expected a batch"),
        (lambda: features(P * math.nan), "NaN or infinite"),
        (lambda: features(P + 255), "x / 127.5 - 1"),
        (lambda: metrics.classify(P + 255), "x / 127.5 - 1"),
        (lambda: metrics.classify(P[..., :20]), r"\(B, 1, 28, 28\)"),
        (lambda: precision_recall(F, F, k=4), "between 1 and 3, got 4"),
        (lambda: density_coverage(F, F, k=0), "between 1 and 3, got 0"),
        (lambda: extrapolated_frechet(F, F), "2 D = 6 rows"),
        (lambda: extrapolated_frechet(draws(48, 3), draws(50, 3)), "48 and 50"),
        (lambda: extrapolated_frechet(draws(48, 3), draws(48, 3), (1,)), "need"),
        (lambda: nearest_neighbours(P, P[..., :20]), "pictures of one shape"),
        (lambda: copied(P, P[:1]), "2 to compare with"),
        (lambda: nearest_neighbours(P * math.nan, P), "NaN or infinite"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("score", [features, metrics.classify])
def test_integer_pictures_are_refused(score):
    with pytest.raises(TypeError, match="127.5"):
        score(torch.full_like(P, 255, dtype=torch.uint8))
