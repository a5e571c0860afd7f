"""Scores of generated pictures, on features of the shipped classifier.

Fashion-MNIST is not what Inception saw, so its features would mislead; these come from
a classifier of Fashion-MNIST that no generator is trained or selected with. All scores
depend on n: compare only figures of the same n.
"""

from functools import lru_cache

import torch
from torch import Tensor

from . import checkpoints
from .data import fashion_mnist
from .networks import Classifier
from .process import check_data, check_pictures

SCORER = "fashion-classifier"


@lru_cache(maxsize=1)
def scorer() -> Classifier:
    """Return the shipped classifier whose hidden layer gives the features."""
    return checkpoints.load(SCORER).requires_grad_(False)


@lru_cache(maxsize=1)
def _scale() -> float:
    """The features' typical size on real pictures, a fact of the scorer's file."""
    return float(checkpoints.facts(SCORER)["feature_scale"])


@torch.no_grad()
@torch.autocast("cpu", enabled=False)
def features(x: Tensor, batch: int = 500) -> Tensor:
    """Return features (N, 64) float64 of grey pictures (N, 1, 28, 28) in [-1, 1].

    Scaled to mean square 1 on the training pictures, and in float32 also within
    torch.autocast. Values outside [-1, 1] are clamped, as a screen would. Raises
    TypeError or ValueError for integers, other shapes, NaN, or values that look like
    0..255.
    """
    parts = _as_shown(x).split(batch)
    return torch.cat([scorer().features(part) for part in parts]).double() / _scale()


@torch.no_grad()
@torch.autocast("cpu", enabled=False)
def classify(x: Tensor, batch: int = 500) -> Tensor:
    """Return the classifier's class probabilities, (N, 10); all else as features."""
    parts = _as_shown(x).split(batch)
    return torch.cat([scorer()(part).softmax(1) for part in parts])


def _as_shown(x: Tensor) -> Tensor:
    check_pictures(x)
    return x.float().cpu().clamp(-1, 1)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of features (N, D).

    Heusel et al. (2017). Biased upward: about proportional to 1/n, so quote n.
    """
    _check_pair(a, b)
    cov_a, cov_b = a.T.cov(), b.T.cov()
    values, axes = torch.linalg.eigh(cov_a)
    root = axes * values.clamp(min=0).sqrt() @ axes.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    shift = (a.mean(0) - b.mean(0)).pow(2).sum()
    return float(shift + cov_a.trace() + cov_b.trace() - 2 * cross)


def extrapolated_frechet(
    a: Tensor, b: Tensor, parts: tuple[int, ...] = (1, 2, 4, 8), seed: int = 0
) -> tuple[float, float]:
    """Return F_inf and c of F(n) = F_inf + c / n, fitted over parts of the samples.

    a, b: features (N, D), the same N. Each is shuffled and cut into 1, 2, 4, ... parts;
    their mean distances are fitted by least squares. Chong and Forsyth (2020) vary only
    the generated sample. F_inf may lie below 0 by chance. Raises ValueError where a
    part has fewer than 2 D rows: there the bias is not yet proportional to 1 / n.
    """
    _check_pair(a, b)
    if len(a) != len(b) or len(a) // max(parts) < 2 * a.shape[1] or len(parts) < 2:
        raise ValueError(
            f"need as many a as b and 2 D = {2 * a.shape[1]} rows in each part, got "
            f"{len(a)} and {len(b)} in up to {max(parts)} parts"
        )
    generator = torch.Generator().manual_seed(seed)
    a, b = (x[torch.randperm(len(x), generator=generator)] for x in (a, b))
    rows, means = [], []
    for k in parts:
        n = len(a) // k
        pairs = zip(a.split(n)[:k], b.split(n)[:k], strict=True)
        rows.append([1.0, 1 / n])
        means.append(sum(frechet_distance(*pair) for pair in pairs) / k)
    A, y = torch.tensor(rows).double(), torch.tensor(means).double()
    f_inf, c = torch.linalg.lstsq(A, y[:, None]).solution.flatten().tolist()
    return f_inf, c


def kid(a: Tensor, b: Tensor) -> float:
    """Return the kernel distance, unbiased MMD^2 with kernel (x.y / D + 1)^3.

    a: (N, D), b: (M, D). Binkowski et al. (2018). About 0, also below, for equal laws.
    """
    _check_pair(a, b)
    n, m = len(a), len(b)
    within_a = (_kernel(a, a).sum() - _kernel_diagonal(a)) / (n * (n - 1))
    within_b = (_kernel(b, b).sum() - _kernel_diagonal(b)) / (m * (m - 1))
    return float(within_a + within_b - 2 * _kernel(a, b).mean())


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _kernel_diagonal(a: Tensor) -> Tensor:
    return ((a * a).sum(1) / a.shape[1] + 1).pow(3).sum()


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Return the share of fake within the real manifold, and of real within the fake's.

    A manifold is the union of balls to the k-th neighbour. Kynkaanniemi et al. (2019).
    Precision is easily fooled (outliers have large balls): prefer density_coverage.
    """
    _check_pair(real, fake)
    distance = torch.cdist(real, fake)  # (N, M)
    precision = (distance <= _radius(real, k)[:, None]).any(0)
    recall = (distance <= _radius(fake, k)[None]).any(1)
    return float(precision.double().mean()), float(recall.double().mean())


def density_coverage(real: Tensor, fake: Tensor, k: int = 5) -> tuple[float, float]:
    """Return density and coverage, both near 1 for equal laws. Naeem et al. (2020)."""
    _check_pair(real, fake)
    inside = torch.cdist(real, fake) <= _radius(real, k)[:, None]  # (N, M)
    return float(inside.double().sum(0).mean() / k), float(
        inside.any(1).double().mean()
    )


def nearest_neighbours(x: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """Return each picture's distance to the nearest training picture, and its index.

    x: (N, ...), train: (M, ...) -> (N,) Euclidean, of all values together, and (N,).
    """
    distance, index = _nearest(x, train, 1)
    return distance[:, 0], index[:, 0]


def copied(x: Tensor, train: Tensor, share: float = 1 / 3) -> Tensor:
    """Return which pictures are copies of a training picture, (N,) bool.

    A copy is closer to its nearest training picture than a share of the distance to the
    second nearest: the criterion of Yoon et al. (2023). One that occurs twice in the
    training set hides its copies.
    """
    distance, _ = _nearest(x, train, 2)
    return distance[:, 0] < share * distance[:, 1]


def _nearest(x: Tensor, train: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Distances and indices of the k nearest rows of train, nearest first, (N, k)."""
    check_data(x)
    check_data(train)
    if x.shape[1:] != train.shape[1:] or len(train) < k:
        raise ValueError(
            f"expected pictures of one shape and {k} to compare with at least, got "
            f"{tuple(x.shape)} and {tuple(train.shape)}"
        )
    x, train = x.flatten(1), train.flatten(1)
    size, found = train.square().sum(1), []
    for part in x.split(250):  # (250, M) at a time
        index = (size - 2 * part @ train.T).topk(k, largest=False).indices
        distance = (part[:, None] - train[index]).norm(dim=2)  # exact, not rounded
        distance, order = distance.sort(dim=1)
        found.append((distance, index.gather(1, order)))
    return torch.cat([d for d, _ in found]), torch.cat([i for _, i in found])


def sharpness(x: Tensor) -> float:
    """Return the mean square of the discrete Laplacian of pictures (N, C, H, W).

    Blur lowers it, noise raises it: compare with real pictures' value.
    """
    check_data(x)
    inside = x[..., 1:-1, 1:-1]
    around = x[..., 2:, 1:-1] + x[..., :-2, 1:-1] + x[..., 1:-1, 2:] + x[..., 1:-1, :-2]
    return float((around - 4 * inside).double().square().mean())


@lru_cache(maxsize=4)
def _real_sharpness(n: int, split: str) -> float:
    return sharpness(fashion_mnist(split)[0][:n])


@lru_cache(maxsize=4)
def real_features(n: int, split: str = "test") -> Tensor:
    """Return the features of the first n pictures of a split of Fashion-MNIST."""
    return features(fashion_mnist(split)[0][:n])


def scores(pictures: Tensor, split: str = "test") -> dict[str, float]:
    """Return every score of pictures (N, 1, 28, 28) against as many real ones.

    The floor is what real pictures of the other split reach; sharpness is over that of
    real pictures. At most 10,000 count.
    """
    n = min(len(pictures), 10_000)
    fake, real = features(pictures[:n]), real_features(n, split)
    other = real_features(n, "train" if split == "test" else "test")
    density, coverage = density_coverage(real, fake)
    precision, recall = precision_recall(real, fake)
    floor = frechet_distance(other, real)
    frechet = frechet_distance(fake, real)
    edges = sharpness(_as_shown(pictures[:n])) / _real_sharpness(n, split)
    return {
        "n": n,
        "frechet": frechet,
        "frechet_floor": floor,
        "frechet_over_floor": frechet / floor,
        "kid": kid(fake, real),
        "sharpness": edges,
        "density": density,
        "coverage": coverage,
        "precision": precision,
        "recall": recall,
    }


def _radius(a: Tensor, k: int) -> Tensor:
    """The distance of each row to its k-th neighbour, (N,)."""
    if not 1 <= k < len(a):
        raise ValueError(f"k must lie between 1 and {len(a) - 1}, got {k}")
    return torch.cdist(a, a).kthvalue(k + 1, dim=1).values


def _check_pair(a: Tensor, b: Tensor) -> None:
    check_data(a)
    check_data(b)
    if (
        a.ndim != 2
        or b.ndim != 2
        or a.shape[1] != b.shape[1]
        or min(len(a), len(b)) < 2
    ):
        raise ValueError(
            f"expected two tables of features (N, D) with N >= 2, got {tuple(a.shape)} "
            f"and {tuple(b.shape)}: pass metrics.features(pictures)"
        )
