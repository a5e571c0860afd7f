"""Steps that draw from q(x_s | x_t, x_0), or q(x_s | x_0), with x0_hat for x_0."""

from ..process import Variance, posterior_coefficients, reverse_variance


def ddim_step(denoise, schedule, x, t, s, state=None, noise=None, eta: float = 0.0):
    """DDIM (Song et al. 2021): eta = 0 draws nothing, eta = 1 is DDPM's posterior.

    The same step is Euler's in sigma / alpha (eta = 0) and "ancestral Euler" (eta = 1).
    """
    x0 = denoise(x, t)
    a, b, std = posterior_coefficients(schedule, x, t, s, eta)
    x_s = x.mul(a).add_(x0, alpha=b)
    return (x_s + std * noise() if std > 0 else x_s), x0, state


def consistency_step(denoise, schedule, x, t, s, state=None, noise=None):
    """Go to the end and come back: x_s = alpha_s x0_hat + sigma_s z, with fresh z.

    Multistep consistency sampling (Song et al. 2023, Algorithm 1), for a student that
    answers with the end of a path. It forgets x_t, so a mean will not do.
    """
    x0, (alpha, sigma) = denoise(x, t), schedule.at(s, x)
    return (alpha * x0 + sigma * noise() if s > 0 else x0), x0, state


def ddpm_step(
    denoise,
    schedule,
    x,
    t,
    s,
    state=None,
    noise=None,
    variance: Variance = "beta_tilde",
):
    """Ancestral sampling (Ho et al. 2020, Algorithm 2), between any two times s < t.

    The mean is that of q(x_s | x_t, x0_hat). The variance is that posterior's
    ("beta_tilde"), that of q(x_t | x_s) ("beta"), or variance(schedule, t, s):
    `optimal_variance`, `interpolated_variance`. No noise is added at the step that
    ends at 0.
    """
    x0 = denoise(x, t)
    a, b, std = posterior_coefficients(schedule, x, t, s, eta=1.0)
    if variance != "beta_tilde":
        std = reverse_variance(variance, schedule, x, t, s) ** 0.5
    mean = x.mul(a).add_(x0, alpha=b)
    return (mean + std * noise() if s > 0 else mean), x0, state
