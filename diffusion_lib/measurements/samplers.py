"""Quality against network calls: every sampler, the same network, the same noise.

Interrupted, the measurement goes on where it was.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from .. import checkpoints, grids, metrics, samplers
from ..recipes import generate, sampling_times
from ..schedules import Schedule
from .runs import each_run, seed_by_seed
from .shared import Report, device

CALLS, N, SEEDS = (5, 10, 20, 50), 1000, 3
ONE_CALL: dict[str, Callable] = {  # a step takes one network call
    "DDPM": samplers.ddpm_step,
    "DDPM, variance beta": partial(samplers.ddpm_step, variance="beta"),
    "DDIM": samplers.ddim_step,
    "Euler-Maruyama": samplers.reverse_sde_step,
    "DPM-Solver++ 2M": samplers.dpmpp_2m_step,
    "DPM-Solver++ 3M": samplers.dpmpp_3m_step,
    "SDE-DPM-Solver++ 2M": partial(samplers.dpmpp_2m_step, eta=1.0),
    "DEIS": samplers.deis_step,
    "UniPC": samplers.unipc_step,
    "UniPC of order 3": partial(samplers.unipc_step, order=3),
}
TWO_CALLS: dict[str, Callable] = {  # but for Heun's last
    "Heun": samplers.heun_step,
    "Heun, churned": samplers.churned(samplers.heun_step, 0.2),
    "DPM-Solver-2": samplers.dpm_solver_2_step,
    "DDIM, corrected": samplers.corrected(samplers.ddim_step, snr=0.1),
}
MORE_AT_FIRST = {"PLMS": samplers.plms_step}  # one more call at the first step
GRIDS: dict[str, Callable] = {
    "uniform": grids.uniform_times,
    "quadratic": grids.quadratic_times,
    "log-SNR": partial(grids.log_snr_times, first=-8.5, last=9.0),
}


def plans(schedule: Schedule) -> dict[str, tuple[int, Callable, torch.Tensor]]:
    """Return {row: (network calls, step, times)} of every run of the study."""
    found: dict[str, tuple[int, Callable, torch.Tensor]] = {}
    for calls in CALLS:
        for steps, group in (
            (calls, ONE_CALL),
            ((calls + 1) // 2, TWO_CALLS),
            (calls - 1, MORE_AT_FIRST),
        ):
            for name, step in group.items():
                found[f"{name}, {calls} calls"] = (
                    calls,
                    step,
                    sampling_times(schedule, steps),
                )
        for name, grid in GRIDS.items():
            row = f"DPM-Solver++ 2M, {name} times, {calls} calls"
            found[row] = calls, samplers.dpmpp_2m_step, grid(schedule, calls)
    return found


def sampler_study(report: Report) -> Iterator[dict[str, Any]]:
    """Score N labelled pictures of fashion-unet for each sampler, grid and budget.

    Karras' grid unless a row says another. Yields after every run.
    """
    denoiser = checkpoints.load("fashion-unet").to(device())
    rows = plans(denoiser.schedule)
    found = {"n": N, "seeds": SEEDS}
    label = torch.arange(N) % 10

    def one_run(row: str, seed: int) -> dict[str, Any]:
        calls, step, times = rows[row]
        with torch.autocast(device(), torch.bfloat16):
            pictures = generate(denoiser, N, calls, label, seed, step=step, times=times)
        inside = pictures.float().clamp(-1, 1)
        outside = float((pictures.abs() > 1.05).double().mean())
        return {"calls": calls, "outside": outside, **metrics.scores(inside)}

    yield from each_run("samplers", found, seed_by_seed(rows, SEEDS), one_run, report)
