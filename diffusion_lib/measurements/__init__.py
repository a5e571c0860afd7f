"""Measurements too long for a page: results/NAME.json, each written by its function."""

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..ledger import code_hash, result, results_folder
from . import (
    ablation,
    architecture,
    autoencoder,
    bits,
    cascade,
    compositions,
    fine_tuning,
    guidance,
    memorisation,
    quality,
    samplers,
    scores,
)
from .shared import Report, device

# name: the function, and the library's files its values depend on
MEASUREMENTS: dict[str, tuple[Callable, list[str]]] = {
    "scores": (scores.scores, ["samplers/*.py", "recipes.py", "metrics.py"]),
    "ablation": (
        ablation.ablation,
        ["training.py", "losses.py", "recipes.py", "samplers/*.py", "networks/*.py"],
    ),
    "architecture": (
        architecture.architecture,
        ["training.py", "losses.py", "recipes.py", "samplers/*.py", "networks/*.py"],
    ),
    "quality": (
        quality.quality,
        ["training.py", "losses.py", "samplers/*.py", "metrics.py", "networks/*.py"],
    ),
    "memorisation": (
        memorisation.memorisation,
        ["training.py", "losses.py", "recipes.py", "metrics.py", "networks/*.py"],
    ),
    "samplers": (samplers.sampler_study, ["samplers/*.py", "metrics.py"]),
    "guidance": (
        guidance.guidance_study,
        ["guidance.py", "measurements/guidance.py", "samplers/*.py", "metrics.py"],
    ),
    "cascade": (
        cascade.cascade_study,
        ["cascade.py", "measurements/cascade.py", "samplers/*.py", "metrics.py"],
    ),
    "compositions": (
        compositions.compositions,
        [
            "captions.py",
            "grammar.py",
            "tokens.py",
            "text_recipes.py",
            "measurements/compositions.py",
            "samplers/*.py",
        ],
    ),
    "fine-tuning": (
        fine_tuning.fine_tuning,
        [
            "lora.py",
            "concept.py",
            "captions.py",
            "text_recipes.py",
            "training.py",
            "measurements/fine_tuning.py",
        ],
    ),
    "autoencoder": (
        autoencoder.autoencoder_study,
        [
            "latent.py",
            "baselines.py",
            "measurements/autoencoder.py",
            "networks/*.py",
            "samplers/*.py",
            "metrics.py",
        ],
    ),
    "bits": (bits.bits, ["likelihood.py", "process.py", "denoiser.py"]),
}


def measure(name: str, report: Report = lambda line: None) -> Path:
    """Run a measurement and write results/NAME.json; return its path.

    One that yields what it has found so far is written each time, and may go on from
    there when it was interrupted.

    Raises ValueError for an unknown name.
    """
    if name not in MEASUREMENTS:
        raise ValueError(f"no measurement {name!r}: there are {sorted(MEASUREMENTS)}")
    function, files = MEASUREMENTS[name]
    start, code = time.perf_counter(), code_hash(*files)
    path = results_folder() / f"{name}.json"
    found = function(report)
    for part in found if isinstance(found, Iterator) else [found]:
        document = {
            "name": name,
            "date": time.strftime("%Y-%m-%d"),
            "seconds": round(time.perf_counter() - start),
            "machine": machine(),
            "versions": {p: version(p) for p in ("torch", "torchvision", "numpy")},
            "python": platform.python_version(),
            **part,
            "files": files,
            "code": code,
        }
        write(path, document)
    return path


def machine() -> str:
    """Return what measured: "one GPU", or how many CPU cores."""
    return "one GPU" if device() == "cuda" else f"{os.cpu_count()} CPU cores"


def write(path: Path, document: dict[str, Any]) -> None:
    """Write a result as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf8")
    os.replace(partial, path)


def stale() -> list[str]:
    """Return the results whose code has changed since they were measured."""
    names = sorted(path.stem for path in results_folder().glob("*.json"))
    return [n for n in names if code_hash(*MEASUREMENTS[n][1]) != result(n)["code"]]
