"""What the measurements share: where they run, and how runs are summed up."""

import statistics
from collections.abc import Callable
from typing import Any

import torch

Report = Callable[[str], None]


def device() -> str:
    """Return "cuda" where there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Return each score's mean and standard deviation over runs, and their number."""
    table: dict[str, Any] = {"seeds": len(runs)}
    for key in runs[0]:
        values = [run[key] for run in runs]
        spread = statistics.stdev(values) if len(values) > 1 else None
        table[key] = {"mean": statistics.fmean(values), "sd": spread}
    return table
