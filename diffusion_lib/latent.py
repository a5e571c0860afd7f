"""Diffusion in the latents of an autoencoder (Rombach et al. 2022).

First the autoencoder is trained and its scale measured, then a denoiser of its latents:
by the losses, the networks and the samplers of pictures.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checkpoints, metrics
from .baselines import kl_to_normal
from .checkpoints import Spec
from .data import fashion_mnist
from .denoiser import Denoiser
from .networks import Autoencoder, NoisyClassifier
from .recipes import RECIPES, Recipe, focused_loss, generator_facts
from .text_recipes import captioned, captioned_for_the_judge, text_facts, text_loss
from .tokens import VOCABULARY
from .training import shuffled

CRITIC = "fashion-noisy-classifier"  # its features judge likeness in training


def autoencoder_loss(
    autoencoder: Autoencoder,
    batch: tuple[Tensor, ...],
    kl: float = 1e-3,
    perceptual: float = 0.1,
) -> Tensor:
    """Return squared error, likeness and rate of pictures batch[0], weighted, (B,).

    kl: weight of the nats per pixel; 2 s^2 makes it the bound of a decoder with noise
    of deviation s. perceptual: weight of `unlike`; 0 leaves it out.
    """
    x = batch[0]
    x_hat, mean, log_std = autoencoder(x)
    x_hat = x_hat.float()
    loss = (x_hat - x).square().flatten(1).mean(1)
    if perceptual:
        loss = loss + perceptual * unlike(x_hat, x)
    return loss + kl * kl_to_normal(mean, log_std) / x[0].numel()


def unlike(x: Tensor, y: Tensor) -> Tensor:
    """Return how far pictures differ in the eyes of a classifier, 0 to 4 a map, (B,).

    Squared distances of its features at each place, brought to unit length, as in
    Zhang et al. (2018), without their weights of channels. The classifier is the
    shipped noisy one, told the least noise; the scorer is the judge, and is not asked.
    """
    critic = _critic(x.device)
    u = x.new_full(x.shape[:1], 1e-3)
    pairs = zip(critic.maps(x, u), critic.maps(y, u), strict=True)
    gaps = [F.normalize(a, dim=1) - F.normalize(b, dim=1) for a, b in pairs]
    half, quarter = (gap.square().sum(1).mean((1, 2)) for gap in gaps)
    return half + quarter


@lru_cache(maxsize=1)
def _critic(device: torch.device) -> NoisyClassifier:
    return checkpoints.load(CRITIC, device).requires_grad_(False)


@torch.no_grad()
def fit_scale(autoencoder: Autoencoder, x: Tensor) -> float:
    """Set autoencoder.scale so that the latents of x have unit variance; return it."""
    device = autoencoder.scale.fill_(1).device
    parts = [autoencoder.encode(part.to(device)) for part in x.split(500)]
    latents = torch.cat(parts)
    return float(autoencoder.scale.copy_(1 / latents.std()))


@torch.no_grad()
def autoencoder_facts(autoencoder: Autoencoder, x: Tensor) -> dict[str, Any]:
    """Measure the scale on training pictures, set it, and score the test pictures."""
    scale = fit_scale(autoencoder, x[:10_000])
    return {"scale": scale, "reconstruction": reconstruction(autoencoder)}


@torch.no_grad()
def reconstruction(autoencoder: Autoencoder, n: int = 2000) -> dict[str, float]:
    """Return what n test pictures lose on the way, and what the latents hold.

    rmse, of pixels in [-1, 1]; unlike; nats: mean KL of a picture's posterior; noise:
    root mean square of its deviation, over that of the means; then `metrics.scores`
    of the decoded means. Those compare with the first n test pictures, so others are
    rebuilt here: a picture beside its own copy would score too well. Raises ValueError
    unless 1 <= n <= 5,000.
    """
    if not 1 <= n <= 5000:
        raise ValueError(f"n = {n}: of 10,000 pictures at most half can be rebuilt")
    x = fashion_mnist("test")[0][n : 2 * n].to(autoencoder.scale.device)
    parts = [autoencoder.posterior(part) for part in x.split(500)]
    mean, log_std = (torch.cat(part) for part in zip(*parts, strict=True))
    latents = autoencoder.scale * mean
    x_hat = torch.cat([autoencoder.decode(part) for part in latents.split(500)])
    return {
        "rmse": float((x_hat - x).square().mean().sqrt()),
        "unlike": float(unlike(x_hat, x).mean()),
        "nats": float(kl_to_normal(mean, log_std).mean()),
        "noise": float((2 * log_std).exp().mean().sqrt() / mean.std()),
        **metrics.scores(x_hat),
    }


def pictures_and_canvases(size: int, seed: int = 0) -> Callable[[int], tuple]:
    """Return batches(k): `size` pictures, or in turn half as many canvases of two."""
    pictures = shuffled(*fashion_mnist("train"), size=size, seed=seed)
    canvases = captioned(size // 2, seed)
    return lambda k: canvases(k // 2) if k % 2 else pictures(k // 2)


def in_latents(
    loss: Callable[..., Tensor], denoiser: Denoiser, batch: tuple[Tensor, ...]
) -> Tensor:
    """Return a loss of the latents of pictures batch[0], in place of the pictures."""
    x, *told = batch
    with torch.no_grad():
        latents = denoiser.decoder.to(x.device).encode(x)
    return loss(denoiser, (latents, *told))


FLAT = {"channels": 4, "stride": 1, "multipliers": [1]}  # the U-Net at 7 x 7 alone
LATENT = ("cosine_schedule", {"T": 1000}, "v", 1.0, "fashion-vae")
RECIPES |= {
    "fashion-vae": Recipe(
        Spec("Autoencoder"),
        autoencoder_loss,
        batch=128,
        steps=1800,
        settings={"precision": "bf16", "ema": 0.995},
        note="pictures and canvases to latents of a quarter of the sides, and back",
        facts=autoencoder_facts,
        batches=pictures_and_canvases,
    ),
    "fashion-latent": Recipe(
        Spec("UNet", {**FLAT, "width": 120, "classes": 10}, *LATENT),
        partial(in_latents, focused_loss),
        batch=128,
        steps=13_000,
        settings={"precision": "bf16", "ema": 0.998},
        note="class-conditional, on the latents of fashion-vae; 15% of labels dropped",
        facts=generator_facts,
    ),
    "fashion-latent-text": Recipe(
        Spec(
            "UNet",
            {**FLAT, "width": 112, "text": {"words": len(VOCABULARY)}},
            *LATENT,
        ),
        partial(in_latents, text_loss),
        batch=96,
        steps=7000,
        settings={"precision": "bf16", "ema": 0.998},
        note="canvases from captions, on the latents of fashion-vae; 15% dropped",
        facts=text_facts,
        batches=captioned_for_the_judge,
    ),
}
