"""One denoiser for every parameterisation: y = a x_0 + b eps, solved for x_0."""

from typing import Any

import torch
from torch import Tensor, nn

from .networks.blocks import Cond
from .schedules import Schedule


def _edm(alpha, sigma, data_std):
    norm = data_std * (sigma**2 + (alpha * data_std) ** 2) ** 0.5
    return sigma / norm, -alpha * data_std**2 / norm


def _v(alpha, sigma, data_std):
    norm = (alpha**2 + sigma**2) ** 0.5
    return -sigma / norm, alpha / norm


PREDICTIONS = {
    "x0": lambda alpha, sigma, data_std: (1.0, 0.0),
    "eps": lambda alpha, sigma, data_std: (0.0, 1.0),
    "v": _v,  # Salimans and Ho (2022)
    "flow": lambda alpha, sigma, data_std: (-1.0, 1.0),
    "edm": _edm,  # Karras et al. (2022), table 1
}


class Denoiser(nn.Module):
    """denoiser(x_t, t, cond) -> estimate of E[x_0 | x_t], whatever the net predicts.

    net: net(x (B, ...), u (B,), cond) -> (B, ...), fed x at unit variance.
    prediction: "x0", "eps", "v", "flow" or "edm": what the net's output stands for.
    data_std: deviation of the data; used by "edm" alone.
    decoder: what turns the x_0 of this denoiser into pictures (an Autoencoder), or None
    where they are pictures already. Samplers never see it.
    Raises ValueError for "eps" on a schedule that ends without signal (alpha < 1e-3).
    """

    net: Any  # nn.Module knows nothing of .channels or .null
    decoder: Any

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        prediction: str = "v",
        data_std: float = 1.0,
        decoder: nn.Module | None = None,
    ):
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(
                f"unknown prediction {prediction!r}: choose from {list(PREDICTIONS)}"
            )
        alpha_end, _ = schedule.at(schedule.t_max, torch.empty(1))
        if prediction == "eps" and alpha_end < 1e-3:
            raise ValueError(
                f"prediction 'eps' divides by alpha = {alpha_end:.1e} at t_max "
                "on this schedule, so its error would be multiplied a thousandfold and "
                "more: use prediction='v', or a schedule that ends above 1e-3"
            )
        self.net, self.schedule = net, schedule
        self.prediction, self.data_std = prediction, data_std
        self.decoder = decoder

    def coefficients(self, t: Tensor | float, x: Tensor) -> tuple:
        """Return (alpha, sigma, a, b), broadcast to x: the output is a x_0 + b eps."""
        alpha, sigma = self.schedule.at(t, x)
        a, b = PREDICTIONS[self.prediction](alpha, sigma, self.data_std)
        return alpha, sigma, a, b

    def output(self, x: Tensor, t: Tensor | float, cond: Cond | None = None) -> Tensor:
        """Return the net's raw output at x_t (B, ...), t () or (B,), t > 0.

        Raises ValueError at t = 0, or if the net answers in another shape; TypeError
        for an integer x, or one of another precision than the net.
        """
        if not x.is_floating_point():
            raise TypeError(f"x is {x.dtype}: scale 0..255 to [-1, 1], x / 127.5 - 1")
        alpha, sigma = self.schedule.at(t, x)
        if sigma == 0 if isinstance(sigma, float) else bool((sigma == 0).any()):
            raise ValueError("the denoiser is not defined at t = 0: x is clean there")
        data_std = self.data_std if self.prediction == "edm" else 1.0
        scale = ((alpha * data_std) ** 2 + sigma**2) ** -0.5
        unit = isinstance(scale, float) and abs(scale - 1) < 1e-12
        u = self.schedule.embed_at(t, x)
        try:
            y = self.net(x if unit else scale * x, u, cond)
        except RuntimeError as error:
            weight = next(self.net.parameters(), x)
            if weight.dtype == x.dtype or torch.is_autocast_enabled(x.device.type):
                raise
            raise TypeError(
                f"x is {x.dtype}, the net's weights are {weight.dtype}: use "
                f"x.to({weight.dtype})"
            ) from error
        if y.shape != x.shape:
            raise ValueError(
                f"the net answered {tuple(y.shape)} for an input of {tuple(x.shape)}: "
                "it must return a tensor of the input's shape"
            )
        return y.to(x.dtype)

    def target(self, x0: Tensor, eps: Tensor, t: Tensor | float) -> Tensor:
        """Return what the net should say: a x_0 + b eps."""
        _, _, a, b = self.coefficients(t, x0)
        return a * x0 + b * eps

    def forward(self, x: Tensor, t: Tensor | float, cond: Cond | None = None) -> Tensor:
        """Return x0_hat = (b x - sigma y) / (b alpha - sigma a), (B, ...), for t > 0.

        Raises ValueError at t = 0, where there is nothing to denoise.
        """
        y = self.output(x, t, cond)
        alpha, sigma, a, b = self.coefficients(t, x)
        divisor = b * alpha - sigma * a
        x0 = b / divisor * x
        if isinstance(sigma, float):  # one pass over the data less
            return torch.add(x0, y, alpha=-sigma / divisor)
        return x0 - sigma / divisor * y

    def null(self, cond: Cond) -> Cond:
        """Return cond with every condition that can be dropped replaced by its null."""
        if not cond or not hasattr(self.net, "null"):
            raise ValueError(
                "no conditions to drop: none were given, or this net knows none"
            )
        return self.net.null(cond)
