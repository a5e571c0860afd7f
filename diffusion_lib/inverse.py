"""Inverse problems: which x_0 are likely, given y = A x_0 + noise?

Wrappers of denoise functions and of steps, for any sampler and any schedule. A is a
plain linear function of a batch, A(x (B, ...)) -> (B, ...): a mask, a blur, a pooling.
y has the shape of A(x), or broadcasts to it; its noise is white, of a known deviation.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .process import posterior_coefficients, q_sample, q_step
from .samplers import Denoise, checked_times
from .schedules import Schedule

Operator = Callable[[Tensor], Tensor]
BELIEFS = ("point", "isotropic", "tweedie")


def isotropic_variance(schedule: Schedule, t: Tensor | float, x: Tensor, data_std=1.0):
    """Return r_t^2, the variance of x_0 given x_t if x_0 ~ N(m, data_std^2 I).

    To broadcast against x (B, ...). Song et al. (2023, PiGDM) have data_std = 1.
    """
    alpha, sigma = schedule(t, x)
    return (data_std * sigma) ** 2 / ((data_std * alpha) ** 2 + sigma**2)


def posterior_guided(
    denoise: Denoise,
    schedule: Schedule,
    operator: Operator,
    y: Tensor,
    noise: float,
    belief: str = "isotropic",
    scale: float = 1.0,
    data_std: float = 1.0,
    rounds: int = 10,
) -> Denoise:
    """Add sigma^2 / alpha grad_x log N(y; A x0_hat(x), A C A^T + noise^2 I) to x0_hat.

    C is what is believed of the spread of x_0 given x_t. "point": none (DPS, Chung et
    al. 2023; needs noise > 0). "isotropic": r_t^2 I (PiGDM, Song et al. 2023).
    "tweedie": sigma^2 / alpha d x0_hat / dx, the covariance itself (Rozet et al. 2024):
    exact for Gaussian data. rounds: at most, of conjugate gradients; each is one more
    pass back through the net for "tweedie" alone. Where alpha = 0 nothing is added.
    """
    if belief not in BELIEFS or not (noise > 0 or noise == 0 and belief != "point"):
        raise ValueError(f"belief {belief!r}, noise {noise}: one of {BELIEFS}, >= 0")

    def guided(x: Tensor, t: Tensor | float) -> Tensor:
        alpha, sigma = schedule(t, x)
        if not bool((alpha > 0).all()):
            return denoise(x, t)
        gain, r2 = sigma**2 / alpha, isotropic_variance(schedule, t, x, data_std)
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            x0 = denoise(at, t)
            seen = operator(x0)
        spread: Callable = {
            "point": lambda v: 0.0,
            "isotropic": lambda v: operator(r2 * _back(seen, x0, v)),
            "tweedie": lambda v: operator(gain * _back(seen, at, v)),
        }[belief]
        gap = (y - seen).detach()
        v = conjugate_gradients(lambda v: spread(v) + noise**2 * v, gap, rounds)
        return x0.detach() + scale * gain * _back(seen, at, v)

    return guided


def _back(seen: Tensor, to: Tensor, v: Tensor) -> Tensor:
    """Return v times the derivative of seen by `to`, of the shape of `to`."""
    return torch.autograd.grad(seen, to, v, retain_graph=True)[0]


def projected(
    denoise: Denoise,
    schedule: Schedule,
    operator: Operator,
    y: Tensor,
    noise: float = 0.0,
    data_std: float = 1.0,
    rounds: int = 10,
) -> Denoise:
    """Return x0_hat corrected as if x_0 ~ N(x0_hat, r_t^2 I); no gradient of a net.

    x0_hat + r^2 A^T (r^2 A A^T + noise^2 I)^-1 (y - A x0_hat). With noise = 0 each
    answer fits y, and what A does not see is left alone (Wang et al. 2023, DDNM); for a
    mask this is `inpaint`.
    """

    def denoise_fitting(x: Tensor, t: Tensor | float) -> Tensor:
        x0, r2 = denoise(x, t), isotropic_variance(schedule, t, x, data_std)
        with torch.enable_grad():
            at = x0.detach().requires_grad_()
            seen = operator(at)

        def matrix(v: Tensor) -> Tensor:
            return operator(r2 * _back(seen, at, v)) + noise**2 * v

        v = conjugate_gradients(matrix, (y - seen).detach(), rounds)
        return x0 + r2 * _back(seen, at, v)

    return denoise_fitting


def conjugate_gradients(matrix: Operator, right: Tensor, rounds: int) -> Tensor:
    """Return about matrix^-1 right, (B, ...), for each example of a batch.

    matrix: linear, symmetric and positive on each example. An example whose direction
    of search is not (a net's Jacobian need not be) stops where it is.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1).reshape(-1, *(1,) * (a.ndim - 1))

    v, rest = torch.zeros_like(right), right
    direction, size = rest, dot(rest, rest)
    done = size * torch.finfo(right.dtype).eps ** 2  # as exact as numbers are
    for _ in range(rounds):
        image = matrix(direction)
        curve = dot(direction, image)
        step = torch.where((curve > 0) & (size > done), size / curve, 0.0)
        if not bool((step > 0).any()):
            break
        v, rest = v + step * direction, rest - step * image
        before, size = size, torch.where(step > 0, dot(rest, rest), 0.0)
        direction = rest + torch.where(before > 0, size / before, 0.0) * direction
    return v


def nudged(step: Callable, operator: Operator, y: Tensor, size: float) -> Callable:
    """Return a step followed by x_s - size grad |y - A x0_hat(x_t)|: DPS as published.

    Chung et al. (2023), Algorithm 1, moves by a gradient of the squared norm over the
    norm, twice this for their zeta; their code by this. The gradient is by x_t.
    """

    def both(denoise, schedule, x, t, s, state=None, noise=None):
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            x0 = denoise(at, t)
            gap = (y - operator(x0)).flatten(1).norm(dim=1)
            (slope,) = torch.autograd.grad(gap.sum(), at)
        known = x0.detach()

        def asked(z, u):  # the step's first question is answered already
            return known if z is x else denoise(z, u)

        x_s, x0, state = step(asked, schedule, x, t, s, state, noise)
        return x_s - size * slope, x0, state

    return both


def replaced(step: Callable, known: Tensor, mask: Tensor, rounds: int = 1) -> Callable:
    """Return a step after which x_s is a fresh draw of q(x_s | known) where mask.

    Song et al. (2021, SDE), appendix I.2. rounds > 1: then noise x_s back to t and step
    again, so often in all, except at s = 0 (RePaint, Lugmayr et al. 2022). known, mask:
    (B, ...) or what broadcasts to it. Each round costs the calls of the step.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")

    def both(denoise, schedule, x, t, s, state=None, noise=None):
        for left in reversed(range(rounds if s > 0 else 1)):
            x_s, x0, after = step(denoise, schedule, x, t, s, state, noise)
            drawn = q_sample(schedule, known.to(x).expand_as(x), s, noise())
            x_s = torch.where(mask.to(x.device).bool(), drawn, x_s)
            x = q_step(schedule, x_s, s, t, noise()) if left else x_s
        return x, x0, after

    return both


def gaussian_fit(
    schedule: Schedule, operator: Operator, y: Tensor, noise: float, data_std=1.0
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return fit(x0_hat, t) = log N(y; A x0_hat, (r_t^2 + noise^2) I), (B,).

    Up to a constant that all examples share. At t = 0 it is log p(y | x_0), before only
    a guess of log p(y | x_t). Raises ValueError unless noise > 0.
    """
    if not noise > 0:
        raise ValueError(f"a likelihood needs noise > 0, got {noise}")

    def fit(x0: Tensor, t: Tensor) -> Tensor:
        r2 = isotropic_variance(schedule, t, x0, data_std)
        gap = (y - operator(x0)).flatten(1).square().sum(1)
        return -gap / (2 * (r2.flatten() + noise**2)).to(gap)

    return fit


def particle_step(
    fit: Callable[[Tensor, Tensor], Tensor], propose: Denoise | None = None
) -> Callable:
    """Return an ancestral step for a batch of particles, weighted by fit and resampled.

    Twisted diffusion sampling (Wu et al. 2023). All examples are particles of one
    problem. fit(x0_hat, t) -> (B,) guesses log p(y | x_t), and is log p(y | x_0) at
    t = 0: any guess is legal, a good one needs fewer particles. propose: the denoise
    function whose step is taken, the model's own by default; a guided one is corrected
    for by its weight. As B grows, the law of any one particle becomes that of the
    model's chain given y. Two calls a step with propose, else one (and one more).
    """

    def step(denoise, schedule, x, t, s, state=None, noise=None):
        old = x.new_zeros(len(x))  # log weights, and fit at t
        x0, fit_t, weight = (denoise(x, t), old, old) if state is None else state
        a, b, std = posterior_coefficients(schedule, x, t, s)
        mean = a * x + b * x0
        if std > 0:
            shift = 0.0 if propose is None else b * (propose(x, t) - x0)
            z = noise()
            x_s = mean + shift + std * z
            ratio = (z**2 - ((x_s - mean) / std) ** 2) / 2
            weight = weight + ratio.flatten(1).sum(1)
        x_s = x_s if std > 0 else mean
        x0_s = denoise(x_s, s) if s > 0 else x_s
        fit_s = fit(x0_s, s)
        weight = weight + fit_s - fit_t
        kept = resampled(weight, noise, always=bool(s == 0))
        weight = weight if kept is None else torch.zeros_like(weight)
        rows = torch.arange(len(x), device=x.device) if kept is None else kept
        return x_s[rows], x0[rows], (x0_s[rows], fit_s[rows], weight)

    return step


def resampled(log_weight: Tensor, noise: Callable, always: bool) -> Tensor | None:
    """Return the rows kept, (B,): systematic resampling by log_weight (B,).

    None where the effective number 1 / sum w^2 is above half of all, unless always.
    """
    weight = log_weight.double().softmax(0)
    n = len(weight)
    if not always and 1 / weight.square().sum() > n / 2:
        return None
    offset = torch.special.ndtr(noise().flatten()[0].double())  # uniform in (0, 1)
    places = (torch.arange(n, device=weight.device) + offset) / n
    return torch.searchsorted(weight.cumsum(0), places).clamp(max=n - 1)


def edited(
    schedule: Schedule, x0: Tensor, strength: float, times: Tensor | int, eps: Tensor
) -> tuple[Tensor, Tensor]:
    """Return x_t and the times left: noise x0 so far, to be sampled from there.

    SDEdit (Meng et al. 2022), "image to image": the last `strength` (a share in (0, 1])
    of the grid's steps are left. eps ~ N(0, I) of x0's shape. What is returned goes to
    `sample` as x and times.
    """
    times = checked_times(schedule, times)
    left = round(strength * (len(times) - 1))
    if not (0 < strength <= 1 and left):
        raise ValueError(
            f"strength {strength} of {len(times) - 1} steps leaves none, or too many"
        )
    times = times[-left - 1 :]
    return q_sample(schedule, x0, times[0], eps), times
