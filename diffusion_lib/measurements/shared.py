"""What the measurements share: where they run, and how runs are summed up."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .. import metrics
from ..data import cache_folder
from ..denoiser import Denoiser
from ..ledger import result
from ..recipes import generate

Report = Callable[[str], None]


def device() -> str:
    """Return "cuda" where there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def unfinished(name: str, total: int) -> dict[str, Any] | None:
    """Return what an interrupted measurement left; None if nothing, or all is done."""
    try:
        before = result(name)
    except ValueError:
        return None
    return before if len(before["runs"]) < total else None


def each_run(
    found: dict[str, Any],
    rows: Iterable[str],
    seeds: int,
    one_run: Callable[[str, int], dict[str, Any]],
    report: Report,
    shown: str = "frechet",
) -> Iterator[dict[str, Any]]:
    """Make the runs that found["runs"] lacks, seed by seed; yield found after each.

    one_run(row, seed) -> its scores, among them the one to be shown.
    """
    done = {(run["row"], run["seed"]) for run in found["runs"]}
    for seed in range(seeds):
        for row in rows:
            if (row, seed) not in done:
                run = {"row": row, "seed": seed, **one_run(row, seed)}
                found["runs"].append(run)
                report(f"{row}, seed {seed}: {shown} {run[shown]:.2f}")
                yield found


def painted_scores(
    denoiser: Denoiser, n: int, seed: int, label: torch.Tensor | None = None
) -> dict[str, float]:
    """Return the scores of n pictures of 20 calls, painted in bfloat16.

    label: (n,), or None for pictures without labels.
    """
    with torch.autocast(device(), torch.bfloat16):
        pictures = generate(denoiser.eval(), n, 20, label, seed)
    return metrics.scores(pictures.float().clamp(-1, 1))


def operations(net: nn.Module) -> int:
    """Return the floating-point operations of one call for one 28 x 28 picture."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 1, 28, 28), torch.zeros(1))
    return counter.get_total_flops()


@contextmanager
def run_folder(measurement: str, row: str, seed: int) -> Iterator[Path]:
    """Give a folder from which a training resumes; remove it when all went well."""
    folder = cache_folder() / measurement / f"{row}, {seed}"
    yield folder
    shutil.rmtree(folder)
