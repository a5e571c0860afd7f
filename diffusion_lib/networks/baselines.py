"""The two classic rivals of diffusion: a variational autoencoder and a GAN.

Both are made of the same convolutional encoder and decoder, of 28 x 28 pictures.
"""

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """encoder(x (B, channels, 28, 28)) -> (B, out), by way of 14 x 14 and 7 x 7.

    norm: group norm, which a critic of single pictures does without.
    """

    def __init__(self, out: int, width: int = 64, channels: int = 1, norm: bool = True):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, width, 4, stride=2, padding=1),
            *_layer(width, width, norm),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            *_layer(2 * width, 2 * width, norm),
            nn.Flatten(),
            nn.Linear(2 * width * 7 * 7, out),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out)."""
        if x.ndim != 4 or x.shape[2:] != (28, 28):
            raise ValueError(f"expected pictures (B, C, 28, 28), got {tuple(x.shape)}")
        return self.body(x)


class Decoder(nn.Module):
    """decoder(z (B, latent)) -> pictures (B, channels, 28, 28) in [-1, 1]."""

    def __init__(self, latent: int, width: int = 64, channels: int = 1):
        super().__init__()
        self.latent = latent
        self.body = nn.Sequential(
            nn.Linear(latent, 2 * width * 7 * 7),
            nn.Unflatten(1, (2 * width, 7, 7)),
            *_layer(2 * width, 2 * width),
            nn.Upsample(scale_factor=2.0),
            nn.Conv2d(2 * width, width, 3, padding=1),
            *_layer(width, width),
            nn.Upsample(scale_factor=2.0),
            nn.Conv2d(width, 32, 3, padding=1),
            nn.GroupNorm(8, 32),
            nn.SiLU(),
            nn.Conv2d(32, channels, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Return pictures (B, channels, 28, 28)."""
        if z.ndim != 2 or z.shape[1] != self.latent:
            raise ValueError(f"expected (B, {self.latent}), got {tuple(z.shape)}")
        return self.body(z)


class VAE(nn.Module):
    """A variational autoencoder (Kingma, Welling 2014): q(z | x) = N(mean, std^2)."""

    def __init__(self, latent: int = 32, width: int = 64):
        super().__init__()
        self.encoder = Encoder(2 * latent, width)
        self.decoder = Decoder(latent, width)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and log std of q(z | x), (B, latent) each."""
        mean, log_std = self.encoder(x).chunk(2, dim=1)
        return mean, log_std

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the reconstruction of a sample of q(z | x), the mean, the log std."""
        mean, log_std = self.encode(x)
        z = mean + log_std.exp() * torch.randn_like(mean)
        return self.decoder(z), mean, log_std

    def generate(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return the decoder's means for n draws of the prior, (n, 1, 28, 28)."""
        return _decoded(self.decoder, n, generator)


class GAN(nn.Module):
    """A generator and its critic (Goodfellow et al. 2014)."""

    def __init__(self, latent: int = 64, width: int = 64):
        super().__init__()
        self.decoder = Decoder(latent, width)
        self.critic = Encoder(1, width, norm=False)

    def generate(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return n pictures, (n, 1, 28, 28)."""
        return _decoded(self.decoder, n, generator)


def _decoded(decoder: Decoder, n: int, generator: torch.Generator | None) -> Tensor:
    z = torch.randn(n, decoder.latent, generator=generator)
    device = next(decoder.parameters()).device
    return torch.cat([decoder(part.to(device)) for part in z.split(250)]).float()


def _layer(channels: int, out: int, norm: bool = True) -> list[nn.Module]:
    """Norm and nonlinearity, a convolution, and the same again."""
    return [
        *([nn.GroupNorm(8, channels)] if norm else []),
        nn.SiLU(),
        nn.Conv2d(channels, out, 3, padding=1),
        *([nn.GroupNorm(8, out)] if norm else []),
        nn.SiLU(),
    ]
