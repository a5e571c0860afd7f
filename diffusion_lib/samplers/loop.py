"""The one loop of every sampler."""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..process import check_data, is_finite
from ..schedules import Schedule
from .posterior import ddim_step

Denoise = Callable[[Tensor, Tensor | float], Tensor]  # x (B, ...), t -> x0_hat
Noise = Callable[[], Tensor]


class Frame(NamedTuple):
    """One moment of a trajectory: the time reached, x there, and the x_0 believed."""

    t: Tensor  # ()
    x: Tensor  # (B, ...)
    x0: Tensor  # (B, ...) the denoiser's answer that led here


def trajectory(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor | int,
    step: Callable = ddim_step,
    generator: torch.Generator | None = None,
) -> Iterator[Frame]:
    """Yield a Frame after every step, from x (B, ...) at times[0] to times[-1].

    times: (n + 1,) falling to 0 (or rising, for inversion with an ODE step), or n for
    schedule.times(n). The network is called at all but the last. generator: of the
    noise of stochastic steps; on any device. Raises ValueError for an empty x, times
    that repeat, turn back or start at 0, and at the end if x is NaN or infinite.
    """
    frames = _frames(denoise, schedule, x, times, step, generator)
    while True:
        with torch.no_grad():
            frame = next(frames, None)
        if frame is None:
            return
        yield frame


def _frames(denoise, schedule, x, times, step, generator) -> Iterator[Frame]:
    """As `trajectory`, for a caller that keeps no gradients."""
    check_data(x)
    times = checked_times(schedule, times)
    noise, state = noise_like(x, generator), None
    for t, s in pairwise(times.unbind()):
        x, x0, state = step(denoise, schedule, x, t, s, state, noise)
        yield Frame(s, x, x0)
    if not is_finite(x):
        raise ValueError(
            "the trajectory ended in NaN or infinite values: look at the net's output "
            "at the first time, and try more steps or clip_x0(denoise)"
        )


def noise_like(x: Tensor, generator: torch.Generator | None) -> Noise:
    """Return noise() -> N(0, I) of x's shape and type, drawn where the generator is."""
    device = x.device if generator is None else generator.device
    kind: dict[str, Any] = {"generator": generator, "device": device, "dtype": x.dtype}
    return lambda: torch.randn(x.shape, **kind).to(x.device)


def checked_times(schedule: Schedule, times: Tensor | int) -> Tensor:
    """Return the time grid as float64, or raise ValueError saying what is wrong."""
    if isinstance(times, int):
        return schedule.times(times)
    times = schedule.checked(times)
    if times.ndim != 1 or len(times) < 2:
        raise ValueError("times must list at least a start and an end, shape (n + 1,)")
    if times[0] == 0:
        raise ValueError("the first time is 0, where x is clean: start above it")
    steps = times.diff()
    if not (bool((steps < 0).all()) or bool((steps > 0).all())):
        raise ValueError("times must fall (or rise) at every step, without repeats")
    return times


def sample(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor | int,
    step: Callable = ddim_step,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the last x of `trajectory` (same arguments and errors), (B, ...)."""
    with torch.no_grad():
        frames = _frames(denoise, schedule, x, times, step, generator)
        (last,) = deque(frames, maxlen=1)
    return last.x
