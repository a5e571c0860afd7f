"""A cascade: small pictures first, then nets that double their sides.

Ho et al. (2022). Each upsampler is trained on small pictures with noise on them, and
told how much, so that it forgives the faults of those that were generated.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .checkpoints import Spec
from .denoiser import Cond, Denoiser
from .guidance import given
from .losses import denoising_loss
from .process import q_sample
from .recipes import (
    RECIPES,
    Recipe,
    focused_times,
    generate,
    label_loss,
    sampling_times,
)
from .samplers import dpmpp_2m_step, sample
from .schedules import Schedule

HIGHEST = 0.4  # share of t_max: the most noise put on small pictures in training


def shrunk(x: Tensor, size: int) -> Tensor:
    """Return pictures (B, C, H, W) as means over squares, (B, C, size, size).

    Raises ValueError unless size divides the sides, and they are equal.
    """
    if x.shape[-1] != x.shape[-2] or x.shape[-1] % size:
        raise ValueError(f"size {size} must divide the sides of {tuple(x.shape)}")
    return F.avg_pool2d(x, x.shape[-1] // size)


def told(
    schedule: Schedule, low_res: Tensor, level: Tensor | float, eps: Tensor
) -> Cond:
    """Return an upsampler's condition: low_res (B, C, h, w) noised to time level.

    level: () or (B,), a time of the schedule; 0 for none.
    """
    noisy = q_sample(schedule, low_res, level, eps)
    return {"low_res": noisy, "level": schedule.embed_at(level, low_res)}


def small_loss(
    denoiser: Denoiser, batch: tuple[Tensor, Tensor], size: int = 7
) -> Tensor:
    """`label_loss` on (pictures, labels) made small, (B,)."""
    times = focused_times(denoiser.schedule, len(batch[0]))
    return label_loss(denoiser, (shrunk(batch[0], size), batch[1]), times)


def upsampler_loss(
    denoiser: Denoiser, batch: tuple[Tensor, ...], size: int = 28
) -> Tensor:
    """The denoising loss at `size`, shown half that size under noise, (B,).

    The level is uniform from 0 to HIGHEST of t_max, its own for each picture.
    """
    schedule = denoiser.schedule
    x0, low = shrunk(batch[0], size), shrunk(batch[0], size // 2)
    level = HIGHEST * schedule.t_max * torch.rand(len(x0), dtype=torch.float64)
    cond = told(schedule, low, level, torch.randn_like(low))
    return denoising_loss(denoiser, x0, cond, focused_times(schedule, len(x0)))


def upsample(
    denoiser: Denoiser,
    low_res: Tensor,
    calls: int = 20,
    level: float = 0.1,
    seed: int = 0,
    batch: int = 250,
) -> Tensor:
    """Return pictures of twice the sides of low_res (N, C, h, w), not clipped.

    level: noise put on low_res first, a share of t_max, 0 to HIGHEST. By
    DPM-Solver++(2M); the same seed gives the same noise. Raises ValueError for a level
    that training did not see.
    """
    if not 0 <= level <= HIGHEST:
        raise ValueError(f"level must lie in [0, {HIGHEST}], got {level}")
    schedule, device = denoiser.schedule, next(denoiser.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    shape = (*low_res.shape[:2], *(2 * side for side in low_res.shape[2:]))
    noise = schedule.noise(shape, generator)
    eps = torch.randn(low_res.shape, generator=generator).to(low_res)
    times, pictures = sampling_times(schedule, calls), []
    for rows in torch.arange(len(low_res)).split(batch):
        small = told(schedule, low_res[rows], level * schedule.t_max, eps[rows])
        denoise = given(denoiser, {k: v.to(device) for k, v in small.items()})
        x = noise[rows].to(device)
        pictures.append(sample(denoise, schedule, x, times, dpmpp_2m_step).cpu())
    return torch.cat(pictures)


def generate_by_cascade(
    nets: Sequence[Denoiser],
    n: int,
    label: Tensor | None = None,
    size: int = 7,
    calls: int = 20,
    level: float = 0.1,
    seed: int = 0,
) -> list[Tensor]:
    """Return n pictures of each stage: of the first net, then of each upsampler.

    label: (n,) int64 for the first net, or None. Each stage is clipped to [-1, 1]
    before the next is shown it.
    """
    stages = [generate(nets[0], n, calls, label, seed, size=size).clamp(-1, 1)]
    for k, net in enumerate(nets[1:], 1):
        bigger = upsample(net, stages[-1], calls, level, seed + k)
        stages.append(bigger.clamp(-1, 1))
    return stages


COSINE = ("cosine_schedule", {"T": 1000}, "v")
RECIPES |= {
    "fashion-small": Recipe(
        Spec(
            "Transformer",
            {"width": 96, "depth": 5, "heads": 4, "patch": 1, "classes": 10},
            *COSINE,
        ),
        small_loss,
        batch=256,
        steps=2700,
        settings={"precision": "bf16", "ema": 0.998},
        note="class-conditional 7 x 7 pictures, the first stage of the cascade",
        facts=lambda module, x: {"size": 7},
    ),
    "fashion-upsampler-14": Recipe(
        Spec("Upsampler", {"width": 96, "multipliers": [1]}, *COSINE),
        partial(upsampler_loss, size=14),
        batch=128,
        steps=6000,
        settings={"precision": "bf16", "ema": 0.998},
        note="7 x 7 to 14 x 14, second stage of the cascade; noise on what it is shown",
        facts=lambda module, x: {"size": 14},
    ),
    "fashion-upsampler-28": Recipe(
        Spec("Upsampler", {"width": 48}, *COSINE),
        partial(upsampler_loss, size=28),
        batch=128,
        steps=3000,
        settings={"precision": "bf16", "ema": 0.998},
        note="14 x 14 to 28 x 28, last stage of the cascade; noise on what it is shown",
        facts=lambda module, x: {"size": 28},
    ),
}
