"""Diffusion models, from scratch: the library of the course.

x_t = alpha_t x_0 + sigma_t eps. A model is a function denoise(x, t) -> x0_hat.
A sampler is a step function. Guidance is a wrapper.
"""

from . import checkpoints, data, diagnostics, ledger, metrics, networks, plotting
from .analytic import GaussianMixture, empirical_denoiser
from .checkpoints import Spec, available, facts, load, save
from .convert import convert_point, convert_time, on_schedule
from .data import CLASSES, fashion_mnist, image_folder
from .denoiser import PREDICTIONS, Denoiser
from .grids import karras_times, log_snr_times, quadratic_times, uniform_times
from .guidance import classifier_free, clip_x0, dynamic_threshold, given
from .ledger import check, glue, verify
from .likelihood import (
    bits_per_dim,
    decoder_nll,
    elbo,
    kl_term,
    ode_log_likelihood,
    optimal_variance,
    prior_kl,
    step_nats,
)
from .losses import denoising_loss, dropped, log_snr_normal, min_snr, snr
from .networks import MLP, Classifier, Transformer, UNet
from .plotting import style
from .process import (
    eps_from_x0,
    interpolated_variance,
    q_posterior,
    q_sample,
    q_step,
    score_from_x0,
)
from .samplers import (
    Frame,
    churned,
    corrected,
    ddim_step,
    ddpm_step,
    deis_step,
    dpm_solver_2_step,
    dpmpp_2m_step,
    dpmpp_3m_step,
    euler_step,
    heun_step,
    plms_step,
    reverse_sde_step,
    sample,
    trajectory,
    unipc_step,
)
from .schedules import (
    DiscreteSchedule,
    EDMSchedule,
    FlowSchedule,
    VPSchedule,
    constant_schedule,
    cosine_schedule,
    linear_schedule,
    quadratic_schedule,
    sigmoid_schedule,
)
from .training import Run, shuffled, train

__all__ = [
    "CLASSES",
    "MLP",
    "PREDICTIONS",
    "Classifier",
    "Denoiser",
    "DiscreteSchedule",
    "EDMSchedule",
    "FlowSchedule",
    "Frame",
    "GaussianMixture",
    "Run",
    "Spec",
    "Transformer",
    "UNet",
    "VPSchedule",
    "available",
    "bits_per_dim",
    "check",
    "checkpoints",
    "churned",
    "classifier_free",
    "clip_x0",
    "constant_schedule",
    "convert_point",
    "convert_time",
    "corrected",
    "cosine_schedule",
    "data",
    "ddim_step",
    "ddpm_step",
    "decoder_nll",
    "deis_step",
    "denoising_loss",
    "diagnostics",
    "dpm_solver_2_step",
    "dpmpp_2m_step",
    "dpmpp_3m_step",
    "dropped",
    "dynamic_threshold",
    "elbo",
    "empirical_denoiser",
    "eps_from_x0",
    "euler_step",
    "facts",
    "fashion_mnist",
    "given",
    "glue",
    "heun_step",
    "image_folder",
    "interpolated_variance",
    "karras_times",
    "kl_term",
    "ledger",
    "linear_schedule",
    "load",
    "log_snr_normal",
    "log_snr_times",
    "metrics",
    "min_snr",
    "networks",
    "ode_log_likelihood",
    "on_schedule",
    "optimal_variance",
    "plotting",
    "plms_step",
    "prior_kl",
    "q_posterior",
    "q_sample",
    "q_step",
    "quadratic_schedule",
    "quadratic_times",
    "reverse_sde_step",
    "sample",
    "save",
    "score_from_x0",
    "shuffled",
    "sigmoid_schedule",
    "snr",
    "step_nats",
    "style",
    "train",
    "trajectory",
    "uniform_times",
    "unipc_step",
    "verify",
]
