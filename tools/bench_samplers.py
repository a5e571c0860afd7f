"""The samplers that `bench` compares: what they cost besides the network."""

import time
from collections.abc import Callable
from functools import partial

import denoising_diffusion_pytorch.denoising_diffusion_pytorch as lucidrains
import diffusers
import smalldiffusion
import torch
from accelerate import Accelerator
from bench_networks import Tasks, timed
from torch import nn

import diffusion_lib as dl

BATCHES = (64, 250)  # pictures that the samplers work on; `generate` takes 250
CALLS = 50  # steps of a trajectory

OURS = (
    dl.ddim_step,
    dl.ddpm_step,
    dl.heun_step,
    dl.dpm_solver_2_step,
    dl.dpmpp_2m_step,
    dl.dpmpp_3m_step,
    dl.unipc_step,
    dl.deis_step,
    dl.plms_step,
)
THEIRS = (  # schedulers of diffusers
    "DDIMScheduler",
    "DDPMScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "PNDMScheduler",
)

Sampler = tuple["Fake", Callable[[], object]]  # the network, and a whole trajectory


class Fake(nn.Module, smalldiffusion.ModelMixin):
    """A network that costs nothing: counts its calls and returns one fixed tensor.

    It answers the call itself, past torch's hooks, which belong to no sampler.
    """

    channels, out_dim, self_condition, input_dims = 1, 1, False, (1, 28, 28)

    def __init__(self, batch: int):
        super().__init__()
        self.answer, self.calls = pictures(batch).clamp(-1, 1), 0

    def __call__(self, x, t=None, cond=None):
        """Return the fixed tensor."""
        self.calls += 1
        return self.answer


def pictures(batch: int) -> torch.Tensor:
    """Return noise of the size of so many pictures."""
    return torch.randn(batch, 1, 28, 28)


def sampler_tasks() -> Tasks:
    """Return what measures the samplers' cost a network call, in fused updates.

    Form "direct": the network says what the sampler takes most directly (x0; for
    smalldiffusion the noise). Form "v": it says v, and turning that into x0 counts.
    The fused update itself is measured in microseconds.
    """
    torch.zeros(7_500_000)  # as a real network's: from now on freed memory is kept
    tasks: Tasks = {}
    for batch in BATCHES:
        unit = partial(fused_update, batch)
        tasks["overhead", "fused update", f"direct, {batch}"] = unit
        for form in ("direct", "v"):
            samplers = {**our_samplers(form, batch), **peers(form, batch)}
            for name, (fake, run) in samplers.items():
                key = "overhead", name, f"{form}, {batch}"
                tasks[key] = partial(in_updates, fake, run)
    return tasks


def fused_update(batch: int, repeats: int = 2 * CALLS) -> float:
    """Return the microseconds of x <- a x + b e, the least that a sampler can do."""
    x, e = pictures(batch), pictures(batch)
    with torch.no_grad():
        start = time.perf_counter()
        for _ in range(repeats):
            x = torch.add(0.9 * x, e, alpha=0.1)
        return (time.perf_counter() - start) / repeats * 1e6


def in_updates(fake: Fake, run: Callable[[], object], repeats: int = 4) -> float:
    """Return what whole trajectories cost a network call, in fused updates.

    The call of the fake network itself is taken off. The unit is measured right before
    and right after.
    """
    calls, batch = fake.calls, len(fake.answer)
    before = fused_update(batch)
    seconds = timed(lambda: [run() for _ in range(repeats)])
    calls = fake.calls - calls
    seconds -= timed(lambda: [fake(None) for _ in range(calls)])
    return 2e6 * seconds / calls / (before + fused_update(batch))


def our_samplers(form: str, batch: int) -> dict[str, Sampler]:
    """Return our samplers; "direct" is denoise(x, t) -> x0, "v" a whole Denoiser."""
    schedule, x, samplers = dl.linear_schedule(), pictures(batch), {}
    for step in OURS:
        fake = Fake(batch)
        denoise = fake if form == "direct" else dl.Denoiser(fake, schedule, "v")
        run = partial(dl.sample, denoise, schedule, x, CALLS, step)
        samplers["ours: " + step.__name__.removesuffix("_step")] = fake, run
    return samplers


def peers(form: str, batch: int) -> dict[str, Sampler]:
    """Return the peers' samplers."""
    samplers = {
        f"diffusers: {name.removesuffix('Scheduler')}": of_diffusers(name, form, batch)
        for name in THEIRS
    }
    samplers["denoising-diffusion-pytorch: ddim_sample"] = of_lucidrains(form, batch)
    samplers["smalldiffusion: samples, DDIM"] = of_smalldiffusion(form, batch, mu=0.0)
    samplers["smalldiffusion: samples, DDPM"] = of_smalldiffusion(form, batch, mu=0.5)
    return samplers


def of_diffusers(name: str, form: str, batch: int) -> Sampler:
    """Return a scheduler, unclipped, in the loop that its pipelines run.

    PNDMScheduler does not take x0; most directly it takes the noise.
    """
    direct = "epsilon" if name == "PNDMScheduler" else "sample"
    prediction = direct if form == "direct" else "v_prediction"
    scheduler = getattr(diffusers, name)(prediction_type=prediction)
    if name == "PNDMScheduler":
        scheduler.register_to_config(skip_prk_steps=True)
    if "clip_sample" in scheduler.config:
        scheduler.register_to_config(clip_sample=False)
    fake, start = Fake(batch), pictures(batch)

    def run():
        scheduler.set_timesteps(CALLS)
        x = start * scheduler.init_noise_sigma
        with torch.no_grad():
            for t in scheduler.timesteps:
                output = fake(scheduler.scale_model_input(x, t), t)
                x = scheduler.step(output, t, x).prev_sample

    return fake, run


def of_lucidrains(form: str, batch: int) -> Sampler:
    """Return GaussianDiffusion.ddim_sample (it always clips x0), no progress bar."""
    lucidrains.tqdm = lambda steps, **_: steps
    fake = Fake(batch)
    diffusion = lucidrains.GaussianDiffusion(
        fake,
        image_size=28,
        sampling_timesteps=CALLS,
        objective="pred_x0" if form == "direct" else "pred_v",
        beta_schedule="linear",
        auto_normalize=False,
    )
    return fake, partial(diffusion.ddim_sample, (batch, 1, 28, 28))


def of_smalldiffusion(form: str, batch: int, mu: float) -> Sampler:
    """Return `samples`; mu = 0 is DDIM, 0.5 DDPM. It also draws noise where mu = 0."""
    fake = Fake(batch) if form == "direct" else smalldiffusion.PredV(Fake)(batch)
    sigmas = smalldiffusion.ScheduleDDPM().sample_sigmas(CALLS)
    x, accelerator = pictures(batch) * sigmas[0], Accelerator(cpu=True)

    def run():
        for _ in smalldiffusion.samples(
            fake, sigmas, mu=mu, xt=x, accelerator=accelerator
        ):
            pass

    return fake, run
