"""What each term of the autoencoder's loss buys, for pictures rebuilt and for new ones.

Each autoencoder is trained for the same steps, and then a denoiser in its latents.
Interrupted, the measurement goes on where it was.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import metrics
from ..baselines import vae_loss
from ..data import fashion_mnist
from ..denoiser import Denoiser
from ..latent import autoencoder_loss, fit_scale, in_latents, reconstruction
from ..networks import Autoencoder, UNet
from ..recipes import RECIPES, focused_loss, generate
from ..schedules import cosine_schedule
from ..training import shuffled, train
from .runs import each_run, run_folder, seed_by_seed
from .shared import Report

STEPS, BATCH, N, SEEDS = 250, 128, 1000, 2
SETTINGS: dict[str, Any] = {"precision": "bf16", "ema": 0.98, "save_every": 50}
LOSSES: dict[str, Callable[..., Tensor]] = {
    "the recipe": autoencoder_loss,
    "no rate": partial(autoencoder_loss, kl=0.0),
    "a tenth of the rate": partial(autoencoder_loss, kl=1e-4),
    "ten times the rate": partial(autoencoder_loss, kl=1e-2),
    "no likeness": partial(autoencoder_loss, perceptual=0.0),
    "the bound": vae_loss,  # the rate's weight follows the error, no likeness
}


def autoencoder_study(report: Report) -> Iterator[dict[str, Any]]:
    """Train an autoencoder by each loss, score it, and what is generated through it.

    Yields after every run. frechet, ... are those of N new pictures in 20 calls;
    reconstruction holds those of N test pictures rebuilt.
    """
    found = {"n": N, "seeds": SEEDS, "steps": STEPS, "batch": BATCH, "calls": 20}
    runs = seed_by_seed(LOSSES, SEEDS)
    yield from each_run("autoencoder", found, runs, trained_and_scored, report)


def trained_and_scored(row: str, seed: int) -> dict[str, Any]:
    """Train both nets from one seed and score them; an interrupted run goes on."""
    torch.manual_seed(seed)
    x, label = fashion_mnist("train")
    batches = shuffled(x, label, size=BATCH, seed=seed)
    settings = {**SETTINGS, "seed": seed}
    folder = run_folder("autoencoder", row, seed)
    run = train(
        Autoencoder(),
        LOSSES[row],
        batches,
        STEPS,
        folder=folder / "autoencoder",
        **settings,
    )
    decoder = run.ema.eval().requires_grad_(False)
    scale = fit_scale(decoder, x[:5000])
    net = UNet(**RECIPES["fashion-latent"].spec.net_options)
    denoiser = Denoiser(net, cosine_schedule(), "v", decoder=decoder)
    loss = partial(in_latents, focused_loss)
    latent = train(
        denoiser, loss, batches, STEPS, folder=folder / "denoiser", **settings
    )
    pictures = generate(latent.ema.eval(), N, 20, torch.arange(N) % 10, seed)
    rebuilt = reconstruction(decoder, N)
    return {"scale": scale, "reconstruction": rebuilt, **metrics.scores(pictures)}
