"""The scores of the shipped pixel model."""

from typing import Any

import torch

from .. import checkpoints, metrics
from ..recipes import generate
from .shared import Report, device, summary


def scores(report: Report) -> dict[str, Any]:
    """Score fashion-unet: 2,000 pictures (3 seeds) and 10,000 (1), in 20 and 50 calls.

    Labels are spread evenly over the classes; a last row leaves them out.
    """
    denoiser = checkpoints.load("fashion-unet").to(device())
    rows = {}
    for n, calls, seeds, labelled in [
        (2000, 20, 3, True),
        (2000, 50, 3, True),
        (10_000, 20, 1, True),
        (10_000, 50, 1, True),
        (2000, 20, 3, False),
    ]:
        label = torch.arange(n) % 10 if labelled else None
        name = f"{calls} calls, n = {n:,}" + ("" if labelled else ", unlabelled")
        runs = []
        for seed in range(seeds):
            pictures = generate(denoiser, n, calls, label, seed)
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
