"""The recipe of the shipped pixel model, changed in one thing or a pair at a time.

Every variant gets the same number of operations, so a wider net takes fewer steps.
Interrupted, the measurement goes on where it was.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import Spec
from ..data import fashion_mnist
from ..denoiser import Denoiser
from ..losses import min_snr
from ..networks import UNet
from ..recipes import RECIPES, focused_loss, label_loss
from ..training import shuffled, train
from .runs import each_run, run_folder, seed_by_seed
from .shared import Report, operations, painted_scores

RECIPE = "the recipe"
WEIGHTS = (RECIPE, "constant rate")
WIDTH = 64


@dataclass(frozen=True)
class Variant:
    """What may differ from the recipe."""

    schedule: str = "cosine_schedule"
    prediction: str = "v"
    data_std: float = 1.0
    loss: Callable = focused_loss
    width: int = WIDTH
    falls: bool = True


def mirrored_loss(denoiser: Denoiser, batch: tuple[Tensor, Tensor]) -> Tensor:
    """`focused_loss` of pictures of which every second one is mirrored, (B,)."""
    x0, label = batch
    some = torch.arange(len(x0)).to(x0.device) % 2 == 0
    flipped = torch.where(some[:, None, None, None], x0.flip(-1), x0)
    return focused_loss(denoiser, (flipped, label))


VARIANTS = {
    RECIPE: Variant(),
    "uniform times": Variant(loss=label_loss),
    "uniform times, min-SNR weights": Variant(
        loss=partial(label_loss, weight=min_snr())
    ),
    "linear schedule": Variant("linear_schedule"),
    "linear schedule, eps": Variant("linear_schedule", "eps"),
    "EDM's prediction": Variant(prediction="edm", data_std=0.7),
    "straight lines": Variant("FlowSchedule", "flow"),
    "mirrored pictures": Variant(loss=mirrored_loss),
    "constant rate": Variant(falls=False),
    "width 32": Variant(width=32),
    "width 48": Variant(width=48),
    "width 96": Variant(width=96),
}


def ablation(
    report: Report, steps: int = 250, n: int = 1000, seeds: int = 3
) -> Iterator[dict[str, Any]]:
    """Train every variant for the operations of `steps` steps of the recipe; score n.

    Yields after every run. The rows of WEIGHTS are also scored without the average.
    """
    batch = RECIPES["fashion-unet"].batch
    found = {"steps": steps, "batch": batch, "n": n, "calls": 20, "seeds": seeds}
    runs = seed_by_seed(VARIANTS, seeds)

    def one_run(row: str, seed: int) -> dict[str, Any]:
        ours, its = (
            operations(UNet(width=width, classes=10))
            for width in (WIDTH, VARIANTS[row].width)
        )
        return trained_and_scored(row, seed, round(steps * ours / its), n)

    yield from each_run("ablation", found, runs, one_run, report)


def trained_and_scored(row: str, seed: int, steps: int, n: int) -> dict[str, Any]:
    """Train one variant from one seed and score it; an interrupted training goes on."""
    variant, recipe = VARIANTS[row], RECIPES["fashion-unet"]
    torch.manual_seed(seed)
    denoiser = Spec(
        "UNet",
        {"classes": 10, "width": variant.width},
        variant.schedule,
        {},
        variant.prediction,
        variant.data_std,
    ).build()
    batches = shuffled(*fashion_mnist("train"), size=recipe.batch, seed=seed)
    settings = {**recipe.settings, "ema": 0.98, "falls": variant.falls}
    settings |= {"seed": seed, "save_every": 50}
    folder = run_folder("ablation", row, seed)
    run = train(denoiser, variant.loss, batches, steps, folder=folder, **settings)
    label = torch.arange(n) % 10
    found = {"steps": steps, **painted_scores(run.ema, n, seed, label)}
    if row in WEIGHTS:
        raw = painted_scores(run.model, n, seed, label)
        found |= {f"{key}_without_average": value for key, value in raw.items()}
    return found
