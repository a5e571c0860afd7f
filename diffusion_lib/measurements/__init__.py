"""Measurements too long for a page: results/NAME.json, each written by its function."""

import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

from ..ledger import code_hash, result, results_folder
from . import ablation, bits, scores
from .shared import Report, device

MEASUREMENTS = {  # name: the function, and the library's files its values depend on
    "scores": (scores.scores, ["samplers.py", "recipes.py", "metrics.py"]),
    "ablation": (
        ablation.ablation,
        ["training.py", "losses.py", "recipes.py", "samplers.py", "networks/*.py"],
    ),
    "bits": (bits.bits, ["likelihood.py", "process.py", "denoiser.py"]),
}


def measure(name: str, report: Report = lambda line: None) -> Path:
    """Run a measurement and write results/NAME.json; return its path.

    Raises ValueError for an unknown name.
    """
    if name not in MEASUREMENTS:
        raise ValueError(f"no measurement {name!r}: there are {sorted(MEASUREMENTS)}")
    function, files = MEASUREMENTS[name]
    start, code = time.perf_counter(), code_hash(*files)
    found = function(report)
    document = {
        "name": name,
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.perf_counter() - start),
        "machine": "one GPU" if device() == "cuda" else f"{os.cpu_count()} CPU cores",
        "versions": {p: version(p) for p in ("torch", "torchvision", "numpy")},
        "python": platform.python_version(),
        **found,
        "files": files,
        "code": code,
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
