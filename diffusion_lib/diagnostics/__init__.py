"""Diagnostics: find the bug in a sampler or in a trained denoiser, yours or ours.

For Gaussian data the exact denoiser is a straight line in x, so a correct sampler is
affine in its start and in every noise it draws: unit probes give the mean and the
deviation of what it makes exactly, without drawing a sample. How far those may be from
the data's is known, too: as far as correct samplers get on the same times.
"""

from .denoiser import run_denoiser
from .findings import Finding, failed, table
from .probes import from_eps, gaussian, moments
from .sampler import MIXTURE, ORACLES, mixture_samples, prior, run, w1

__all__ = [
    "MIXTURE",
    "ORACLES",
    "Finding",
    "failed",
    "from_eps",
    "gaussian",
    "mixture_samples",
    "moments",
    "prior",
    "run",
    "run_denoiser",
    "table",
    "w1",
]
