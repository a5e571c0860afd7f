"""The scores of the shipped pixel model. Interrupted, the measurement goes on."""

from collections.abc import Iterator
from typing import Any

import torch

from .. import checkpoints, metrics
from ..denoiser import Denoiser
from ..recipes import generate
from .runs import each_run, seed_by_seed
from .shared import Report, device

SEEDS = 3
ROWS = {  # name: (pictures, steps, scale of guidance, which doubles the calls)
    "20 calls": (2000, 20, 1.0),
    "10 calls": (2000, 10, 1.0),
    "50 calls": (2000, 50, 1.0),
    "20 calls, guided (1.5)": (2000, 10, 1.5),
    "20 calls, guided (2)": (2000, 10, 2.0),
    "40 calls, guided (2)": (2000, 20, 2.0),
    "20 calls, unlabelled": (2000, 20, 1.0),
}
ONCE = {"20 calls, 10,000 pictures": (10_000, 20, 1.0)}  # one seed


def scores(report: Report) -> Iterator[dict[str, Any]]:
    """Score the pictures of fashion-unet. Yields after every run.

    Labels are spread evenly over the classes; the row "unlabelled" leaves them out.
    """
    denoiser = checkpoints.load("fashion-unet").to(device())
    runs = seed_by_seed(ROWS, SEEDS) + seed_by_seed(ONCE, 1)

    def one_run(row: str, seed: int) -> dict[str, Any]:
        return scored(denoiser, row, seed)

    yield from each_run("scores", {}, runs, one_run, report)


def scored(denoiser: Denoiser, row: str, seed: int) -> dict[str, Any]:
    """Paint and score the pictures of one row."""
    n, steps, scale = (ROWS | ONCE)[row]
    label = None if "unlabelled" in row else torch.arange(n) % 10
    pictures = generate(denoiser, n, steps, label, seed, scale=scale)
    return {**metrics.scores(pictures), **_classes(pictures, label)}


def _classes(pictures: torch.Tensor, label: torch.Tensor | None) -> dict[str, Any]:
    """How many are recognised as asked, or each class's share."""
    guess = metrics.classify(pictures).argmax(1)
    if label is not None:
        return {"recognised": float((guess == label).double().mean())}
    return {"shares": (guess.bincount(minlength=10) / len(guess)).tolist()}
