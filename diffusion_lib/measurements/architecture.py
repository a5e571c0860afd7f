"""Other networks under the same recipe: what time, skips and attention are worth.

Unlabelled, because the perceptron knows no labels. Interrupted, the measurement goes on
where it was.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..data import fashion_mnist
from ..denoiser import Denoiser
from ..losses import denoising_loss
from ..networks import MLP, Transformer, UNet
from ..recipes import unlabelled_loss
from ..schedules import cosine_schedule
from ..training import shuffled, train
from .runs import each_run, run_folder, seed_by_seed
from .shared import Report, operations, painted_scores

LEVELS = tuple(range(50, 1000, 100))  # times at which the loss is measured
SETTINGS: dict[str, Any] = {
    "precision": "bf16",
    "ema": 0.98,
    "warmup": 100,
    "save_every": 50,
}


class Timeless(UNet):
    """The U-Net, always told the same time."""

    def forward(self, x: Tensor, u: Tensor, cond: Any = None) -> Tensor:
        """Return what the U-Net says at u = 0, (B, C, H, W)."""
        return super().forward(x, torch.zeros_like(u), cond)


class Perceptron(MLP):
    """784 -> 512 -> 512 -> 784, the first network of many tutorials."""

    channels = 1

    def __init__(self) -> None:
        super().__init__(784, width=512, layers=2)


NETS: dict[str, Callable[[], nn.Module]] = {
    "U-Net": UNet,
    "without time": Timeless,
    "without skips": partial(UNet, skips=False),
    "without attention": partial(UNet, attention="none"),
    "linear attention": partial(UNet, attention="linear"),
    "Fourier time": partial(UNet, time="fourier"),
    "ConvNeXt blocks": partial(UNet, block="ConvNeXtBlock", blocks=4),
    "transformer": Transformer,
    "perceptron": Perceptron,
}


def architecture(
    report: Report, steps: int = 200, n: int = 1000, seeds: int = 3, batch: int = 128
) -> Iterator[dict[str, Any]]:
    """Train each network for the same steps; score n pictures of 20 calls.

    Yields after every run. The loss is that of v at each of LEVELS, on n test pictures.
    """
    settings = {"steps": steps, "batch": batch, "n": n, "calls": 20}
    facts = {**settings, "seeds": seeds, "levels": LEVELS}
    found = {**facts, "nets": costs()}
    runs = seed_by_seed(NETS, seeds)

    def one_run(row: str, seed: int) -> dict[str, Any]:
        return trained_and_scored(row, seed, steps, n, batch)

    yield from each_run("architecture", found, runs, one_run, report)


def costs() -> dict[str, dict[str, float]]:
    """Return each net's millions of parameters and 10^9 operations for one picture."""
    nets = {name: build() for name, build in NETS.items()}
    return {
        name: {
            "millions": sum(p.numel() for p in net.parameters()) / 1e6,
            "gflop": operations(net) / 1e9,
        }
        for name, net in nets.items()
    }


def trained_and_scored(
    row: str, seed: int, steps: int, n: int, batch: int
) -> dict[str, Any]:
    """Train one network from one seed and score it; an interrupted training goes on."""
    torch.manual_seed(seed)
    denoiser = Denoiser(NETS[row](), cosine_schedule(), "v")
    batches = shuffled(*fashion_mnist("train"), size=batch, seed=seed)
    run = train(
        denoiser,
        unlabelled_loss,
        batches,
        steps,
        folder=run_folder("architecture", row, seed),
        seed=seed,
        **SETTINGS,
    )
    return {
        **painted_scores(run.ema, n, seed),
        "level_losses": level_losses(run.ema, n),
    }


@torch.no_grad()
def level_losses(denoiser: Denoiser, n: int) -> list[float]:
    """Return the mean loss at each of LEVELS, on the same pictures and noise."""
    x0 = fashion_mnist("test")[0][:n]
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    x0, eps = x0.to(next(denoiser.parameters())), eps.to(next(denoiser.parameters()))
    t = torch.ones(len(x0))
    return [
        float(denoising_loss(denoiser, x0, t=level * t, eps=eps).mean())
        for level in LEVELS
    ]
