"""Laws whose denoiser is known exactly at every t.

A Gaussian mixture, of which score and density are known, too; a finite set of
pictures, the law that a training set is if it is taken at its word; and what a linear
sampler does to a mean and a covariance.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .schedules import Schedule


class GaussianMixture:
    """sum_k weights_k N(means_k, std^2 I), or with a full covariance for each part.

    means: (K, D); std: a number, or cov: (K, D, D) or (D, D); weights: (K,), default
    equal. std = 0 is a set of points. Raises ValueError where these do not fit.
    """

    def __init__(
        self,
        means: Tensor,
        std: float | None = None,
        weights: Tensor | None = None,
        cov: Tensor | None = None,
    ):
        if means.ndim != 2 or (std is None) == (cov is None):
            raise ValueError("give means of shape (K, D) and either std or cov")
        if not means.is_floating_point() or not bool(torch.isfinite(means).all()):
            raise ValueError("means must be finite floating-point numbers")
        K, D = means.shape
        cov = _covariances(K, D, std, cov).to(means)
        weights = torch.ones(K, dtype=means.dtype) if weights is None else weights
        if weights.shape != (K,) or bool((weights < 0).any()) or weights.sum() <= 0:
            raise ValueError(f"weights must be {K} numbers >= 0, not all 0")
        self.means, self.weights = means, weights.to(means) / weights.sum()
        self.cov = cov  # (K, D, D)
        self.variances, self.axes = torch.linalg.eigh(self.cov)  # (K, D), (K, D, D)
        largest = self.variances.abs().amax(1, keepdim=True)
        rounding = 10 * D * torch.finfo(means.dtype).eps * largest
        if bool((self.variances < -rounding).any()):
            raise ValueError("a covariance has a negative eigenvalue")
        self.variances = self.variances.clamp(min=0)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return n draws, (n, D)."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator).to(self.means)
        along = self.variances[k].sqrt() * z
        return self.means[k] + torch.einsum("nij,nj->ni", self.axes[k], along)

    def _parts(self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float):
        """For x (B, D): log weight + log density (B, K); offsets on the axes; vars."""
        if x.ndim != 2 or x.shape[1] != self.means.shape[1]:
            raise ValueError(
                f"x must have shape (B, {self.means.shape[1]}), got {tuple(x.shape)}"
            )
        alpha, sigma = (
            torch.as_tensor(value, dtype=x.dtype, device=x.device).reshape(-1, 1, 1)
            for value in (alpha, sigma)
        )
        offset = x[:, None] - alpha * self.means.to(x)  # (B, K, D)
        along = torch.einsum("kij,bki->bkj", self.axes.to(x), offset)
        var = alpha**2 * self.variances.to(x) + sigma**2  # (B or 1, K, D)
        log_density = -0.5 * (along**2 / var + var.log() + math.log(2 * math.pi))
        return self.weights.to(x).log() + log_density.sum(-1), along, var, alpha

    def log_prob(
        self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float
    ) -> Tensor:
        """Return log p(x_t) in nats, (B,), where x_t = alpha x_0 + sigma eps.

        x: (B, D); alpha, sigma: numbers, (), (B, 1) or (B,), as schedules return them.
        """
        return self._parts(x, alpha, sigma)[0].logsumexp(1)

    def responsibilities(
        self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float
    ) -> Tensor:
        """Return p(part k | x_t), (B, K)."""
        return self._parts(x, alpha, sigma)[0].softmax(1)

    def given(self, matrix: Tensor, y: Tensor, noise: float) -> "GaussianMixture":
        """Return the law of x_0 given y = matrix x_0 + noise eps: again a mixture.

        matrix: (M, D), y: (M,). Each part is conditioned as a Gaussian; its weight is
        multiplied by its density at y. noise = 0 is allowed where matrix cov matrix^T
        can be inverted. Raises ValueError for shapes that do not fit or noise < 0.
        """
        if matrix.shape[1:] != self.means.shape[1:] or y.shape != matrix.shape[:1]:
            raise ValueError(f"{tuple(matrix.shape)} and {tuple(y.shape)} do not fit")
        if not noise >= 0:
            raise ValueError(f"noise must be >= 0, got {noise}")
        M, matrix = len(y), matrix.to(self.means)
        seen = matrix @ self.cov @ matrix.T + noise**2 * torch.eye(M).to(self.means)
        gain = torch.linalg.solve(seen, matrix @ self.cov).mT  # (K, D, M)
        gap = y.to(self.means) - self.means @ matrix.T  # (K, M)
        fit = torch.linalg.solve(seen, gap[..., None])[..., 0]
        log_weights = self.weights.log() - (gap * fit).sum(1) / 2
        log_weights = log_weights - torch.linalg.slogdet(seen).logabsdet / 2
        means = self.means + torch.einsum("kdm,km->kd", gain, gap)
        kept = torch.eye(self.means.shape[1]).to(gain) - gain @ matrix  # (K, D, D)
        spread = kept @ (self.axes * self.variances.sqrt()[:, None])
        cov = spread @ spread.mT + noise**2 * gain @ gain.mT  # never below 0
        cov = (cov + cov.mT) / 2
        return GaussianMixture(means, weights=log_weights.softmax(0), cov=cov)

    def denoiser(self, schedule: Schedule) -> Callable[..., Tensor]:
        """Return the exact denoise(x, t) = E[x_0 | x_t], x (B, D), t () or (B,)."""

        def denoise(x: Tensor, t: Tensor | float, cond=None) -> Tensor:
            logits, along, var, alpha = self._parts(x, *schedule(t, x))
            gain = alpha * self.variances.to(x) / var * along
            mean = self.means.to(x) + torch.einsum(
                "kij,bkj->bki", self.axes.to(x), gain
            )
            return (logits.softmax(1)[..., None] * mean).sum(1)

        return denoise


def empirical_denoiser(
    x_train: Tensor, schedule: Schedule, batch: int = 100
) -> Callable[..., Tensor]:
    """Return denoise(x, t) = E[x_0 | x_t] if x_0 is one of x_train, each as likely.

    x_train: (N, ...); x: (B, ...), t: () or (B,). A mean of all N pictures, weighted by
    N(x_t; alpha x_0, sigma^2 I): what minimises the training loss at every t. The same
    as a GaussianMixture with std = 0, without its (N, D, D) numbers. Computed `batch`
    rows at a time. Raises ValueError at t = 0, for other shapes and for no pictures.
    """
    if x_train.ndim < 2 or not x_train.is_floating_point() or not x_train.numel():
        raise ValueError(f"expected pictures (N, ...), got {tuple(x_train.shape)}")

    def denoise(x: Tensor, t: Tensor | float, cond=None) -> Tensor:
        if x.shape[1:] != x_train.shape[1:]:
            raise ValueError(f"x is {tuple(x.shape)}, pictures {tuple(x_train.shape)}")
        alpha, sigma = (
            v.to(x).reshape(-1, 1).expand(len(x), 1) for v in schedule(t, x)
        )
        if bool((sigma <= 0).any()):
            raise ValueError("t = 0: nothing is hidden there, so nothing to denoise")
        flat = x_train.flatten(1).to(x)
        size = flat.square().sum(1)  # (N,)
        means = [
            ((a * part @ flat.T - a**2 * size / 2) / s**2).softmax(1) @ flat
            for part, a, s in zip(
                *(v.split(batch) for v in (x.flatten(1), alpha, sigma)), strict=True
            )
        ]
        return torch.cat(means).reshape(x.shape)

    return denoise


def linear_moments(
    step: Callable,
    denoise: Callable[..., Tensor],
    schedule: Schedule,
    times: Tensor,
    mean: Tensor,
    cov: Tensor,
    draws: int = 1,
) -> tuple[Tensor, Tensor]:
    """Push a mean (D,) and covariance (D, D) along a sampler that is linear in x.

    Exact, without one random number: each step is asked what it does to 0, to the unit
    vectors, and to a unit in each of its draws of noise (at most `draws` calls of
    noise()). Steps are linear if the denoiser is, as for one Gaussian; they must not
    remember. Returns mean and covariance at times[-1].
    """
    D, one = len(mean), torch.eye(len(mean)).to(mean)
    for t, s in zip(times[:-1].unbind(), times[1:].unbind(), strict=True):
        units = torch.zeros(draws, 1 + D + draws * D, D).to(mean)
        for j in range(draws):
            units[j, 1 + D * (1 + j) : 1 + D * (2 + j)] = one
        x = torch.zeros_like(units[0])
        x[1 : 1 + D] = one
        with torch.no_grad():
            x_s, _, _ = step(denoise, schedule, x, t, s, None, iter(units).__next__)
        of_x, of_noise = (x_s[1:] - x_s[0]).split([D, draws * D])
        mean = x_s[0] + mean @ of_x
        cov = of_x.T @ cov @ of_x + of_noise.T @ of_noise
    return mean, cov


def _covariances(K: int, D: int, std: float | None, cov: Tensor | None) -> Tensor:
    """Return (K, D, D) from a common deviation, one matrix or K of them."""
    if cov is None:
        if std is None or not 0 <= std < math.inf:
            raise ValueError(f"std must be a number >= 0, got {std}")
        cov = std**2 * torch.eye(D, dtype=torch.float64)
    if cov.shape not in ((D, D), (K, D, D)):
        raise ValueError(f"cov must be ({D}, {D}) or ({K}, {D}, {D}): {cov.shape}")
    if not torch.allclose(cov, cov.mT):  # NaN fails, too
        raise ValueError("a covariance must be symmetric")
    return cov.expand(K, D, D)
