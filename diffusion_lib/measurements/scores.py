"""The scores of the shipped pixel model."""

from typing import Any

import torch

from .. import checkpoints, metrics
from ..recipes import generate
from .shared import Report, device, summary


def scores(report: Report) -> dict[str, Any]:
    """Score fashion-unet: 2,000 pictures (3 seeds) and 10,000 (1), in 20 and 50 steps.

    Labels are spread evenly over the classes. Two rows are guided (two calls a step),
    a last one leaves the labels out.
    """
    denoiser = checkpoints.load("fashion-unet").to(device())
    rows = {}
    for name, n, steps, seeds, scale in [
        ("20 calls, n = 2,000", 2000, 20, 3, 1.0),
        ("50 calls, n = 2,000", 2000, 50, 3, 1.0),
        ("20 calls, n = 10,000", 10_000, 20, 1, 1.0),
        ("50 calls, n = 10,000", 10_000, 50, 1, 1.0),
        ("20 guided steps (1.5), n = 2,000", 2000, 20, 3, 1.5),
        ("20 guided steps (2), n = 2,000", 2000, 20, 3, 2.0),
        ("20 calls, n = 2,000, unlabelled", 2000, 20, 3, 1.0),
    ]:
        label = None if "unlabelled" in name else torch.arange(n) % 10
        runs = []
        for seed in range(seeds):
            pictures = generate(denoiser, n, steps, label, seed, scale=scale)
            runs.append({**metrics.scores(pictures), **_classes(pictures, label)})
            report(f"{name}, seed {seed}: Frechet {runs[-1]['frechet']:.3f}")
        rows[name] = summary(runs)
    return {"values": rows}


def _classes(pictures: torch.Tensor, label: torch.Tensor | None) -> dict[str, float]:
    """How many are recognised as asked, or the smallest and largest class's share."""
    guess = metrics.classify(pictures).argmax(1)
    if label is not None:
        return {"recognised": float((guess == label).double().mean())}
    share = guess.bincount(minlength=10).double() / len(guess)
    return {"smallest_class": float(share.min()), "largest_class": float(share.max())}
