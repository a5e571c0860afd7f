"""Few calls: a student that is taught where the paths of its teacher end.

The denoising loss takes any pair of x_0 and eps, and teaches the mean of x_0 given
x_t = alpha x_0 + sigma eps. Drawn apart, many pairs share an x_t, and the mean is none
of them. Taken from one path of the probability-flow ODE, with x_0 its end and eps the
noise that makes x_t of it, one pair goes with each x_t: the mean is the end itself, the
consistency function (Song et al. 2023).
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from . import checkpoints, metrics
from .checkpoints import Spec
from .denoiser import Denoiser
from .grids import karras_times
from .guidance import given
from .losses import denoising_loss
from .process import eps_from_x0
from .recipes import RECIPES, Recipe, generate, sampling_times
from .samplers import Denoise, consistency_step, dpmpp_2m_step, trajectory
from .schedules import Schedule
from .training import shuffled

TEACHER = "fashion-unet"
CALLS, TAUGHT = 10, 7  # points of a teacher's path, and how many, from noise, are used
LOT = 512  # paths drawn at once
UNSEEN = 500_000  # a seed of noise that is no lot's, for scores
Points = tuple[Tensor, Tensor, Tensor]  # x0 and eps (B, ...), t (B,)


def paths(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    step: Callable = dpmpp_2m_step,
) -> Tensor:
    """Return x at every time of the grid (n + 1,), from x (B, ...): (n + 1, B, ...).

    Arguments and errors are those of `trajectory`; the step draws no noise.
    """
    frames = trajectory(denoise, schedule, x, times, step)
    return torch.stack([x, *(frame.x for frame in frames)])


def straightness(xs: Tensor, times: Tensor) -> Tensor:
    """Return how far paths are from their chords, (B,): 0 for lines at even speed.

    The mean over time of |dx/dt - (x_T - x_0) / T|^2, per value (Liu et al. 2023).
    xs: (n + 1, B, ...) at times (n + 1,), each step taken as a line, so n must be
    large. It depends on the schedule: a path that is straight in one is not in another.
    Raises ValueError where xs and times do not fit.
    """
    if xs.ndim < 3 or times.shape != xs.shape[:1] or len(times) < 2:
        raise ValueError(f"{tuple(xs.shape)} and {tuple(times.shape)} do not fit")
    flat, length = xs.flatten(2), times.diff()  # (n + 1, B, D), (n,)
    whole = (flat[-1] - flat[0]) / (times[-1] - times[0])
    gap = flat.diff(dim=0) / length[:, None, None] - whole
    return (length / length.sum()) @ gap.square().mean(2).to(length)


def path_points(schedule: Schedule, xs: Tensor, times: Tensor) -> Points:
    """Return (x0, eps, t) of every point of paths (n + 1, B, ...) but the ends.

    x0 is the end of the point's own path and eps the noise that makes the point of it:
    denoising_loss(student, x0, t=t, eps=eps) teaches the student where paths end.
    Rows (n B, ...), the first B at times[0]. Raises ValueError as `eps_from_x0`.
    """
    n, B = len(xs) - 1, xs.shape[1]
    t = times[:-1].repeat_interleave(B)
    x, x0 = xs[:-1].flatten(0, 1), xs[-1].repeat(n, *(1,) * (xs.ndim - 2))
    return x0, eps_from_x0(schedule, x, x0, t), t


@torch.no_grad()
def lesson(teacher: Denoiser, n: int, seed: int) -> tuple[Tensor, ...]:
    """Return (x0, eps, t, label): the noisiest TAUGHT points of n paths of a teacher.

    Of 28 x 28 pictures in CALLS calls each; labels at random, null among them.
    """
    schedule, times = teacher.schedule, sampling_times(teacher.schedule, CALLS)
    device = next(teacher.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    x = schedule.noise((n, teacher.net.channels, 28, 28), generator).to(device)
    label = torch.randint(teacher.net.classes + 1, (n,), generator=generator)
    with torch.autocast(device.type, torch.bfloat16):
        lots = [
            paths(given(teacher, {"label": asked}), schedule, part, times)
            for part, asked in zip(x.split(128), label.split(128), strict=True)
        ]
    points = path_points(schedule, torch.cat(lots, dim=1).cpu().float(), times)
    return *(value[: n * TAUGHT] for value in points), label.repeat(TAUGHT)


def taught(
    size: int, seed: int = 0, teacher: str = TEACHER
) -> Callable[[int], tuple[Tensor, ...]]:
    """Return batches(k) of points (x0, eps, t, label) on new paths of the teacher.

    LOT paths at a time, and their points dealt at random; the same seed and k give the
    same batch.
    """
    there = torch.accelerator.is_available()  # where `train` puts the student
    device = torch.accelerator.current_accelerator() if there else None
    module, each = checkpoints.load(teacher, device or "cpu"), LOT * TAUGHT // size

    @lru_cache(maxsize=1)
    def lot(number: int) -> Callable[[int], tuple[Tensor, ...]]:
        points = lesson(module, LOT, 1_000_003 * seed + number)
        return shuffled(*points, size=size, seed=number)

    return lambda k: lot(k // each)(k % each)


def few_step_loss(denoiser: Denoiser, batch: tuple[Tensor, ...]) -> Tensor:
    """The denoising loss on points of a teacher's paths and their labels, (B,)."""
    x0, eps, t, label = batch
    return denoising_loss(denoiser, x0, {"label": label}, t, eps)


def few_step_times(schedule: Schedule, calls: int) -> Tensor:
    """Return the times of a student's calls: 0.8 <= sigma / alpha <= 80, then 0.

    One call is at 80, two at 80 and 0.8; those of four are on the teacher's paths.
    """
    return karras_times(schedule, calls, sigma_min=0.8, sigma_max=80.0)


def generate_in_few(
    denoiser: Denoiser,
    n: int,
    calls: int = 4,
    label: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """Return n pictures of a student in 1 to 10 calls or so, (n, C, 28, 28).

    label: (n,) int64, or None. From the noise that `recipes.generate` starts from.
    """
    how = student_settings(denoiser.schedule, calls)
    return generate(denoiser, n, calls, label, seed, **how)


def student_settings(schedule: Schedule, calls: int) -> dict[str, Any]:
    """Return the step and times by which `recipes.generate` samples a student."""
    return {"step": consistency_step, "times": few_step_times(schedule, calls)}


def few_step_facts(denoiser: Denoiser, x: Tensor) -> dict[str, Any]:
    """Return the scores of 2,000 pictures, 200 a class, in 1, 2 and 4 calls.

    And the teacher's from the same noise, in 1, 2, 4 and CALLS calls, and in 2 and 4 at
    the student's times.
    """
    label, teacher = torch.arange(2000) % 10, checkpoints.load(TEACHER)

    def at_its_times(model: Denoiser, n: int, calls: int, label: Tensor, seed: int):
        times = few_step_times(model.schedule, calls)
        return generate(model, n, calls, label, seed, times=times)

    def scored(draw: Callable, model: Denoiser, counts: tuple[int, ...]):
        return {
            str(n): metrics.scores(draw(model, 2000, n, label, UNSEEN)) for n in counts
        }

    return {
        "student": True,
        "scores": scored(generate_in_few, denoiser, (1, 2, 4)),
        "teacher": scored(generate, teacher, (1, 2, 4, CALLS)),
        "teacher_at_the_same_times": scored(at_its_times, teacher, (2, 4)),
    }


RECIPES |= {
    "fashion-few-step": Recipe(
        Spec("UNet", {"classes": 10}, "cosine_schedule", {"T": 1000}, "v"),
        few_step_loss,
        batch=128,
        steps=3500,
        settings={"precision": "bf16", "ema": 0.998, "rate": 1e-3},
        note="fashion-unet distilled to 1, 2 and 4 calls: where do its paths end?",
        facts=few_step_facts,
        batches=taught,
        make=partial(checkpoints.load, TEACHER),
    ),
}
