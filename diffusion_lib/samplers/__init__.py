"""Samplers: one loop, and a step function for each method.

A step takes x from time t to s and returns (x_s, x0_hat, state). It sees the model only
as denoise(x, t); `state` is its own memory, None at the start; `noise()` draws from the
loop's generator and is not called by deterministic steps.
"""

from .loop import Denoise, Frame, Noise, checked_times, noise_like, sample, trajectory
from .multistep import deis_step, dpmpp_2m_step, dpmpp_3m_step, plms_step, unipc_step
from .ode import dpm_solver_2_step, euler_step, heun_step
from .posterior import consistency_step, ddim_step, ddpm_step
from .stochastic import churned, corrected, reverse_sde_step

__all__ = [
    "Denoise",
    "Frame",
    "Noise",
    "checked_times",
    "churned",
    "consistency_step",
    "corrected",
    "ddim_step",
    "ddpm_step",
    "deis_step",
    "dpm_solver_2_step",
    "dpmpp_2m_step",
    "dpmpp_3m_step",
    "euler_step",
    "heun_step",
    "noise_like",
    "plms_step",
    "reverse_sde_step",
    "sample",
    "trajectory",
    "unipc_step",
]
