"""Measurements too long for a page: results/NAME.json, each written by its function."""

import inspect
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..checkpoints import written_whole
from ..ledger import PACKAGE, code_hash, result, results_folder
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
from .runs import stored
from .shared import Report, device

CORE = ["data.py", "denoiser.py", "process.py", "schedules.py", "grids.py"]
SCORER = "checkpoints/fashion-classifier.safetensors"
SAMPLED = ["samplers/*.py", "metrics.py", SCORER]
TRAINED = ["training.py", "losses.py", "recipes.py", "networks/*.py", *SAMPLED]
FASHION = "checkpoints/fashion-unet.safetensors"
TEXT = "checkpoints/fashion-text.safetensors"
WORDS = ["captions.py", "grammar.py", "tokens.py", "text_recipes.py", TEXT]

# name: the function, and the library's files its values depend on, beside its own
# module and CORE
MEASUREMENTS: dict[str, tuple[Callable, list[str]]] = {
    "scores": (scores.scores, ["guidance.py", "recipes.py", FASHION, *SAMPLED]),
    "ablation": (ablation.ablation, TRAINED),
    "architecture": (architecture.architecture, TRAINED),
    "quality": (quality.quality, ["baselines.py", "measurements/peers.py", *TRAINED]),
    "memorisation": (memorisation.memorisation, TRAINED),
    "samplers": (samplers.sampler_study, [FASHION, *SAMPLED]),
    "guidance": (guidance.guidance_study, ["guidance.py", FASHION, *SAMPLED]),
    "cascade": (cascade.cascade_study, ["cascade.py", FASHION, *SAMPLED]),
    "compositions": (compositions.compositions, [*WORDS, *SAMPLED]),
    "fine-tuning": (
        fine_tuning.fine_tuning,
        ["lora.py", "concept.py", "training.py", *WORDS],
    ),
    "autoencoder": (
        autoencoder.autoencoder_study,
        ["latent.py", "baselines.py", *TRAINED],
    ),
    "bits": (bits.bits, ["likelihood.py", FASHION]),
}


def measure(name: str, report: Report = lambda line: None, anew: bool = False) -> Path:
    """Run a measurement and write results/NAME.json; return its path.

    One that is made of runs is written after each, and makes only those that the file
    lacks; anew puts the file aside as NAME.before first.

    Raises ValueError for an unknown name, if the file's settings are others, or if
    there is a NAME.before already.
    """
    if name not in MEASUREMENTS:
        raise ValueError(f"no measurement {name!r}: there are {sorted(MEASUREMENTS)}")
    function, files = MEASUREMENTS[name][0], depends_on(name)
    start, code = time.perf_counter(), code_hash(*files)
    path = results_folder() / f"{name}.json"
    before = path.with_suffix(".before")
    if anew and before.exists():
        raise ValueError(
            f"{before} is there from an earlier --anew: leave --anew out to go on with "
            "that, or move the file away to begin again"
        )
    if anew and path.exists():
        os.replace(path, before)
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
        for run in document.get("runs", []):
            run.setdefault("code", code)
        write(path, document)
    return path


def depends_on(name: str) -> list[str]:
    """Return the library's files on which a measurement's values depend."""
    function, files = MEASUREMENTS[name]
    path = Path(inspect.getfile(function))
    own = [path.relative_to(PACKAGE).as_posix()] if PACKAGE in path.parents else []
    return [*own, *CORE, *files]


def machine() -> str:
    """Return what measured: "one GPU", or how many CPU cores."""
    return "one GPU" if device() == "cuda" else f"{os.cpu_count()} CPU cores"


def write(path: Path, document: dict[str, Any]) -> None:
    """Write a result as a whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf8")


def stale() -> list[str]:
    """Return the results of which the code of some run has changed since."""
    return [name for name in MEASUREMENTS if stored(name) and _is_stale(name)]


def _is_stale(name: str) -> bool:
    found, code = result(name), code_hash(*depends_on(name))
    return any(
        run.get("code", found["code"]) != code for run in found.get("runs", [found])
    )
