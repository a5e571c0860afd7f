"""From pictures to latents of a quarter of their sides, and back."""

import torch
from torch import Tensor, nn

from .classifier import stage


class Autoencoder(nn.Module):
    """encode(x (B, C, H, W)) -> latents (B, latent, H/4, W/4); decode(z) -> pictures.

    Convolutions alone, so it takes pictures of any sides that `factor` = 4 divides, and
    a place of the latents stands for what lies around its place in the picture.
    posterior(x) is q(z | x) before `scale`, a number kept with the weights: one over
    the deviation of the means on training pictures, 1 until it is measured, see
    `latent.fit_scale`. Rombach et al. (2022), section 3.1. Raises ValueError for other
    channels or sides, or a width that 8 does not divide.
    """

    factor = 4
    scale: Tensor

    def __init__(self, channels: int = 1, latent: int = 4, width: int = 56):
        super().__init__()
        if width % 8 or width < 8:
            raise ValueError(f"width must be a multiple of 8, got {width}")
        self.channels, self.latent = channels, latent
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.SiLU(),
            *stage(16, width),
            *stage(width, 2 * width),
            nn.Conv2d(2 * width, 2 * latent, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent, 2 * width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            *rise(2 * width, width),
            *rise(width, 32),
            nn.Conv2d(32, channels, 3, padding=1),
            nn.Tanh(),
        )
        self.register_buffer("scale", torch.ones(()))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log std of q(z | x), unscaled, (B, latent, H/4, W/4) each."""
        shape, sides = tuple(x.shape), x.shape[2:]
        if x.ndim != 4 or x.shape[1] != self.channels or not all(sides):
            raise ValueError(f"expected (B, {self.channels}, H, W), got {shape}")
        if any(side % self.factor for side in sides):
            raise ValueError(f"sides {tuple(sides)} must be multiples of {self.factor}")
        mean, log_std = self.encoder(x).chunk(2, dim=1)
        return mean, log_std

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents of pictures: the posterior's mean, at unit variance."""
        return self.scale * self.posterior(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Return the pictures of latents (B, latent, h, w), within [-1, 1]."""
        if z.ndim != 4 or z.shape[1] != self.latent:
            shape = tuple(z.shape)
            raise ValueError(f"expected latents (B, {self.latent}, h, w), got {shape}")
        return self.decoder(z / self.scale)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the picture of a sample of q(z | x), its mean, and its log std."""
        mean, log_std = self.posterior(x)
        z = mean + log_std.exp() * torch.randn_like(mean)
        return self.decoder(z), mean, log_std


def rise(channels: int, out: int) -> list[nn.Module]:
    """Twice the resolution between convolutions: `stage` the other way."""
    return [
        nn.GroupNorm(8, channels),
        nn.SiLU(),
        nn.Upsample(scale_factor=2.0),
        nn.Conv2d(channels, out, 3, padding=1),
        nn.GroupNorm(8, out),
        nn.SiLU(),
        nn.Conv2d(out, out, 3, padding=1),
        nn.GroupNorm(8, out),
        nn.SiLU(),
    ]
