"""One noise level under every notation: times, points and denoisers converted.

What a model knows depends on the ratio alpha_t / sigma_t alone. DDPM's index, the time
of a continuous VP chain, Karras' sigma and the time of a flow are four names for it.
"""

import torch
from torch import Tensor

from .samplers import Denoise
from .schedules import Schedule

_SLACK = 1e-6  # of log-SNR: rounding in a time converted there and back


def convert_time(t: Tensor | float, old: Schedule, new: Schedule) -> Tensor:
    """Return the time at which `new` has the log-SNR that `old` has at t, float64.

    t: any shape; t = 0 (data) stays 0. Raises ValueError for a level noisier than
    new.t_max, which has no time there.
    """
    log_snr = old.log_snr(t)
    lowest = new.log_snr(new.t_max)
    if bool((log_snr < lowest - _SLACK).any()):
        raise ValueError(
            f"log-SNR {float(log_snr.min()):.4g} is noisier than the other schedule "
            f"ever gets ({float(lowest):.4g} at its t_max): start at an earlier time"
        )
    return new.time_at(log_snr)


def convert_point(
    x: Tensor, t: Tensor | float, old: Schedule, new: Schedule
) -> tuple[Tensor, Tensor]:
    """Return (x', t'): the noisy x (B, ...) of `old` as `new` writes it, t () or (B,).

    x' = x sigma' / sigma, which is x alpha' / alpha at equal SNR but defined where
    alpha = 0. Raises ValueError at t = 0 and as `convert_time`.
    """
    if bool((torch.as_tensor(t) == 0).any()):
        raise ValueError("at t = 0 there is no noise to rescale by: x is the data")
    t_new = convert_time(t, old, new)
    return x * (new(t_new, x)[1] / old(t, x)[1]), t_new


def on_schedule(denoise: Denoise, own: Schedule, schedule: Schedule) -> Denoise:
    """Return the same denoiser for x and t in the notation of another schedule.

    denoise(x, t) expects x and t of `own`; the answer, an x_0, needs no conversion.
    """
    return lambda x, t: denoise(*convert_point(x, t, schedule, own))
