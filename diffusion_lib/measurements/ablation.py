"""The same network trained four ways: what prediction and times are worth."""

from typing import Any

import torch

from .. import metrics
from ..checkpoints import Spec
from ..data import fashion_mnist
from ..recipes import RECIPES, focused_loss, generate, label_loss
from ..training import shuffled, train
from .shared import Report

ABLATION = {
    "v, uniform times": (("cosine_schedule", "v", 1.0), label_loss),
    "v, focused times": (("cosine_schedule", "v", 1.0), focused_loss),
    "edm, focused times": (("cosine_schedule", "edm", 0.7), focused_loss),
    "flow, uniform times": (("FlowSchedule", "flow", 1.0), label_loss),
}


def ablation(
    report: Report, steps: int = 250, n: int = 1000, seeds: int = 2
) -> dict[str, Any]:
    """Train the same U-Net four ways for the same steps; score each in 20 calls."""
    x, label = fashion_mnist("train")
    recipe, values = RECIPES["fashion-unet"], {}
    for name, ((schedule, prediction, data_std), loss) in ABLATION.items():
        spec = Spec("UNet", {"classes": 10}, schedule, {}, prediction, data_std)
        runs = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            batches = shuffled(x, label, size=recipe.batch, seed=seed)
            settings = {**recipe.settings, "ema": 0.98, "seed": seed}
            run = train(spec.build(), loss, batches, steps, **settings)
            pictures = generate(run.ema, n, 20, torch.arange(n) % 10, seed)
            runs.append(metrics.scores(pictures))
            report(f"{name}, seed {seed}: Frechet {runs[-1]['frechet']:.3f}")
        values[name] = {key: [run[key] for run in runs] for key in ("frechet", "kid")}
    settings = {"steps": steps, "batch": recipe.batch, "calls": 20}
    return {"values": values, "n": n, "seeds": seeds, **settings}
