"""What noise between the stages of the cascade buys, and what it costs.

Interrupted, the measurement goes on where it was.
"""

from collections.abc import Iterator
from typing import Any

import torch

from .. import checkpoints, metrics
from ..cascade import generate_by_cascade, shrunk
from ..recipes import generate
from .runs import each_run, seed_by_seed
from .shared import Report, device

N, SEEDS, CALLS = 1000, 3, 10
NETS = ("fashion-small", "fashion-upsampler-14", "fashion-upsampler-28")
LEVELS = (0.0, 0.05, 0.1, 0.2, 0.4)


def cascade_study(report: Report) -> Iterator[dict[str, Any]]:
    """Score N labelled pictures of the cascade for each level, and of fashion-unet.

    CALLS calls a stage, and as many of fashion-unet (row "pixels"), all in bf16. named:
    the share that the scorer names as asked; to_small: root mean square distance of a
    picture, made small again, to its own 7 x 7. Yields after every run.
    """
    nets = [checkpoints.load(name, device()) for name in NETS]
    pixels, label = checkpoints.load("fashion-unet", device()), torch.arange(N) % 10
    rows = {"pixels": None, **{f"level {level:g}": level for level in LEVELS}}
    found = {"n": N, "seeds": SEEDS, "calls": CALLS}

    def one_run(row: str, seed: int) -> dict[str, Any]:
        level, told = rows[row], {}
        with torch.autocast(device(), torch.bfloat16):
            if level is None:
                x = generate(pixels, N, CALLS, label, seed)
            else:
                small, _, x = generate_by_cascade(
                    nets, N, label, calls=CALLS, level=level, seed=seed
                )
        x = x.float().clamp(-1, 1)
        if level is not None:
            gap = shrunk(x, small.shape[-1]) - small.float()
            told = {"level": level, "to_small": float(gap.square().mean().sqrt())}
        named = metrics.classify(x).argmax(1) == label
        share = float(named.double().mean())
        return {**told, "named": share, **metrics.scores(x)}

    yield from each_run("cascade", found, seed_by_seed(rows, SEEDS), one_run, report)
