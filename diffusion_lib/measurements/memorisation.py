"""The dial of memorisation: one recipe, trained on 16 pictures, then on more and more.

Interrupted, the measurement goes on where it was.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import metrics
from ..data import fashion_mnist
from ..denoiser import Denoiser
from ..losses import denoising_loss
from ..networks import UNet
from ..recipes import generate, unlabelled_loss
from ..schedules import cosine_schedule
from ..training import shuffled, train
from .runs import each_run, run_folder, seed_by_seed
from .shared import Report, device

SIZES = (16, 128, 1024, 60_000)
SETTINGS: dict[str, Any] = {"precision": "bf16", "ema": 0.98, "save_every": 50}
HELD_OUT = 500  # test pictures


def memorisation(
    report: Report, steps: int = 500, n: int = 250, seeds: int = 2, batch: int = 64
) -> Iterator[dict[str, Any]]:
    """Train the U-Net without labels on the first N pictures; look for copies.

    Each run trains for the same steps, whatever N, and generates n pictures in 20
    calls. Yields after every run.
    """
    settings = {"steps": steps, "batch": batch, "n": n, "calls": 20}
    found = {**settings, "seeds": seeds, "held_out": HELD_OUT}

    def one_run(row: str, seed: int) -> dict[str, Any]:
        return trained_and_compared(int(row), seed, steps, n, batch)

    runs = seed_by_seed(map(str, SIZES), seeds)
    yield from each_run("memorisation", found, runs, one_run, report)


def trained_and_compared(
    size: int, seed: int, steps: int, n: int, batch: int
) -> dict[str, Any]:
    """Train on the first pictures from one seed; an interrupted training goes on."""
    torch.manual_seed(seed)
    denoiser = Denoiser(UNet(), cosine_schedule(), "v")
    x = fashion_mnist("train")[0][:size]
    often = x.repeat(-(-batch // size), 1, 1, 1)  # a batch may hold a picture twice
    batches = shuffled(often, size=batch, seed=seed)
    run = train(
        denoiser,
        unlabelled_loss,
        batches,
        steps,
        folder=run_folder("memorisation", str(size), seed),
        seed=seed,
        **SETTINGS,
    )
    model = run.ema.eval()
    with torch.autocast(device(), torch.bfloat16):
        pictures = generate(model, n, 20, seed=seed).float().clamp(-1, 1)
    return {**compared(pictures, x), **losses(model, x), "seconds": run.seconds}


def compared(pictures: Tensor, x: Tensor) -> dict[str, float]:
    """Return how near pictures are to the training pictures x, beside unseen ones.

    A ratio of 1: as far as real pictures that the training did not see; 0: copies.
    """
    unseen = fashion_mnist("test")[0][:HELD_OUT]
    near, near_unseen = (
        float(metrics.nearest_neighbours(p, x)[0].mean()) for p in (pictures, unseen)
    )
    return {
        **metrics.scores(pictures),
        "distance": near,
        "distance_held_out": near_unseen,
        "ratio": near / near_unseen,
        "copies": float(metrics.copied(pictures, x).double().mean()),
        "copies_held_out": float(metrics.copied(unseen, x).double().mean()),
    }


@torch.no_grad()
def losses(denoiser: Denoiser, x: Tensor) -> dict[str, float]:
    """Return the loss in v on training and on test pictures, same times, same noise.

    As many of each as are held out, training pictures repeated if they are fewer; times
    spread evenly.
    """
    unseen = fashion_mnist("test")[0][:HELD_OUT]
    seen = x[torch.arange(HELD_OUT) % len(x)]
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(unseen.shape, generator=generator)
    order = torch.randperm(HELD_OUT, generator=generator)
    times = torch.linspace(1, denoiser.schedule.t_max, HELD_OUT).round()[order]
    to = next(denoiser.parameters())
    return {
        name: float(denoising_loss(denoiser, x0.to(to), t=times, eps=eps.to(to)).mean())
        for name, x0 in (("train_loss", seen), ("test_loss", unseen))
    }
