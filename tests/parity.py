"""The schedulers of diffusers on our oracle: what the parity tests share.

Their tables and some of their states are in single precision, whatever they are given.
`in_double` lends their code double precision: what is left is the algorithm.
"""

import inspect
import sys
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from textwrap import dedent
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import SCHEDULES, planar

from diffusion_lib.process import eps_from_x0
from diffusion_lib.samplers import sample
from diffusion_lib.schedules import EDMSchedule

MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("diffusers") is None, reason="diffusers comes with the extra 'bench'"
    ),
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.algorithm_types=dpmsolver:FutureWarning"),
]
STEPS = 20
RATIOS = EDMSchedule(sigma_max=1e5)  # of x / alpha, with sigma / alpha as its time
OWN_NAMES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
D2 = "D2 = (1.0 /", "D2 = (2.0 /"  # the second derivative is twice the difference
HALF = "(2.0 * h) ** 2 - 0.5", "(2.0 * h) ** 2 + 0.5"  # its share, with noise
close = partial(torch.testing.assert_close, rtol=0, atol=1e-6)


class Double:
    """A module whose float32 is its float64."""

    def __init__(self, module):
        self.module, self.float32 = module, module.float64

    def __getattr__(self, name):
        """Return the rest of it as it is."""
        return getattr(self.module, name)


@contextmanager
def in_double(kind):
    """Let the module of that scheduler compute in double precision."""
    import diffusers

    module = sys.modules[getattr(diffusers, kind).__module__]
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with patch.multiple(module, create=True, torch=Double(torch), np=Double(np)):
            yield
    finally:
        torch.set_default_dtype(default)


def precision(kind, own):
    """Their own precision, or double."""
    return nullcontext() if own else in_double(kind)


def peer(kind, chain=None, steps=STEPS, **options):
    """A scheduler with its grid set, and with the table of our chain."""
    import diffusers

    if chain is not None:
        options["trained_betas"] = chain.beta[1:].tolist()
    scheduler = getattr(diffusers, kind)(**options)
    scheduler.set_timesteps(steps)
    return scheduler


def own_peer(kind, name, **options):
    """The same with the table that they make under that name."""
    options |= {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": OWN_NAMES[name]}
    return peer(kind, **options)


def rewritten(kind, *faults):
    """Patch the text of that scheduler's third-order update: (found once, meant)."""
    import diffusers

    kind = getattr(diffusers, kind)
    method = kind.multistep_dpm_solver_third_order_update
    source = dedent(inspect.getsource(method))
    for found, meant in faults:
        assert source.count(found) == 1
        source = source.replace(found, meant)
    space = dict(vars(sys.modules[kind.__module__]))
    exec(source, space)
    return patch.object(kind, method.__name__, space[method.__name__])


def their_run(scheduler, answer, y, until=None, noise=None, **options):
    """Their loop from y (B, D): answer(z, clock) is the network, in their terms.

    noise: returns more options for every step, drawn anew.
    """
    scale = getattr(scheduler, "scale_model_input", lambda y, clock: y)
    for clock in scheduler.timesteps[:until]:
        out, more = answer(scale(y, clock), clock), noise() if noise else {}
        y = scheduler.step(out, clock, y, **options, **more).prev_sample
    return y


def by_row(scheduler, chain, law=None):
    """Return their network: eps at a row of their table, which is our row + 1."""
    denoise = (law or planar()).denoiser(chain)

    def answer(z, row):
        t = row.double() + 1
        return eps_from_x0(chain, z, denoise(z, t), t)

    return answer


def by_level(scheduler, chain):
    """The same where they ask between the rows: eps at their sigma / alpha."""
    denoise = planar().denoiser(RATIOS)

    def answer(z, row):
        levels = getattr(scheduler, "sigmas_interpol", scheduler.sigmas)
        if scheduler.state_in_first_order:
            levels = scheduler.sigmas
        t = levels[scheduler.step_index].double()
        x = z * (1 + t**2) ** 0.5
        return eps_from_x0(RATIOS, x, denoise(x, t), t)

    return answer


def as_generator():
    """Noise from a generator like the one that our run is given."""
    generator = torch.Generator().manual_seed(1)
    return lambda: {"generator": generator}


def as_tensor():
    """The same noise, drawn outside: their own draws are in single precision."""
    generator = torch.Generator().manual_seed(1)
    like = {"generator": generator, "dtype": torch.float64}
    return lambda: {"variance_noise": torch.randn(16, 2, **like)}


@dataclass(frozen=True)
class Case:
    """A scheduler on one of our chains, and the step of ours that it should be."""

    kind: str
    step: Callable
    options: dict = field(default_factory=dict)
    given: dict = field(default_factory=dict)  # to their step
    noise: Callable | None = None
    network: Callable = by_row
    end: float = 0.0  # our last time
    until: int | None = None  # how many steps are compared
    own: tuple[float, float] = (1e-5, 1e-4)  # bounds with their linear, cosine table

    def __str__(self):
        """Name the scheduler and what sets it apart."""
        skipped = ("clip_sample", "set_alpha_to_one", "skip_prk_steps")
        told = {
            k: v for k, v in (self.options | self.given).items() if k not in skipped
        }
        return " ".join([self.kind, *(f"{k}={v}" for k, v in told.items())])

    def both(self, name, own=False):
        """Return their x and ours, (16, 2), at the end of the run."""
        chain = SCHEDULES[name]
        x = torch.randn(16, 2, dtype=torch.float64, generator=seeded(0))
        options = {"timestep_spacing": "trailing"} | self.options
        with precision(self.kind, own):
            scheduler = (
                own_peer(self.kind, name, **options)
                if own
                else peer(self.kind, chain, **options)
            )
            noise = self.noise() if self.noise else None
            answer = self.network(scheduler, chain)
            one, first = torch.ones_like(x), scheduler.timesteps[0]
            y = x / scheduler.scale_model_input(one, first)  # some keep x / alpha
            y = their_run(scheduler, answer, y, self.until, noise, **self.given)
        return y, self.ours(scheduler, chain, x)

    def ours(self, scheduler, chain, x):
        """Return our run on their grid; where they go by levels, that of x / alpha."""
        times = scheduler.timesteps.double().unique_consecutive() + 1
        if self.network is by_level:
            x = x / chain(times[0], x)[0]
            chain, times = RATIOS, scheduler.sigmas.double().unique_consecutive()
        else:
            times = torch.cat([times, times.new_tensor([self.end])])
        times = times if self.until is None else times[: self.until + 1]
        denoise = planar().denoiser(chain)
        return sample(denoise, chain, x, times, self.step, seeded(1))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def gap(pair):
    """Return the largest difference."""
    return float((pair[0].double() - pair[1]).abs().max())
