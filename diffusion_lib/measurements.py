"""Measurements too long for a page: results/NAME.json, each written by its function."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from . import checkpoints, metrics
from .checkpoints import Spec
from .data import fashion_mnist
from .ledger import code_hash, result, results_folder
from .recipes import RECIPES, focused_loss, generate, label_loss
from .training import shuffled, train

Report = Callable[[str], None]


def scores(report: Report) -> dict[str, Any]:
    """Score fashion-unet: 2,000 pictures (3 seeds) and 10,000 (1), in 20 and 50 calls.

    Labels are spread evenly over the classes; a last row leaves them out.
    """
    denoiser = checkpoints.load("fashion-unet").to(_device())
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
    return {"values": rows, "files": ["samplers.py", "recipes.py", "metrics.py"]}


def _classes(pictures: torch.Tensor, label: torch.Tensor | None) -> dict[str, float]:
    """How many are recognised as asked, or the smallest and largest class's share."""
    guess = metrics.classify(pictures).argmax(1)
    if label is not None:
        return {"recognised": float((guess == label).double().mean())}
    share = guess.bincount(minlength=10).double() / len(guess)
    return {"smallest_class": float(share.min()), "largest_class": float(share.max())}


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
    files = ["training.py", "losses.py", "recipes.py", "samplers.py", "networks/*.py"]
    settings = {"steps": steps, "batch": recipe.batch, "calls": 20}
    return {"values": values, "n": n, "seeds": seeds, "files": files, **settings}


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Return each score's mean and standard deviation over runs, and their number."""
    table: dict[str, Any] = {"seeds": len(runs)}
    for key in runs[0]:
        values = [run[key] for run in runs]
        spread = statistics.stdev(values) if len(values) > 1 else None
        table[key] = {"mean": statistics.fmean(values), "sd": spread}
    return table


MEASUREMENTS = {"scores": scores, "ablation": ablation}


def measure(name: str, report: Report = lambda line: None) -> Path:
    """Run a measurement and write results/NAME.json; return its path.

    Raises ValueError for an unknown name.
    """
    if name not in MEASUREMENTS:
        raise ValueError(f"no measurement {name!r}: there are {sorted(MEASUREMENTS)}")
    start = time.perf_counter()
    found = MEASUREMENTS[name](report)
    document = {
        "name": name,
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.perf_counter() - start),
        "machine": "one GPU" if _device() == "cuda" else f"{os.cpu_count()} CPU cores",
        "versions": {p: version(p) for p in ("torch", "torchvision", "numpy")},
        "python": platform.python_version(),
        **found,
        "code": code_hash(*found["files"]),
    }
    path = results_folder() / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf8")
    os.replace(partial, path)
    return path


def stale() -> list[str]:
    """Return the results whose code has changed since they were measured."""
    names = sorted(path.stem for path in results_folder().glob("*.json"))
    return [n for n in names if code_hash(*result(n)["files"]) != result(n)["code"]]


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
