"""Recipes: how each shipped checkpoint is made, from data to file."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import checkpoints, data, metrics
from .checkpoints import Spec
from .denoiser import Cond, Denoiser
from .grids import karras_times
from .guidance import classifier_free, given
from .losses import denoising_loss, dropped, log_snr_normal
from .process import check_pictures
from .samplers import dpmpp_2m_step, sample
from .schedules import Schedule
from .training import Run, shuffled, train


@dataclass(frozen=True)
class Recipe:
    """Everything that makes a checkpoint: module, loss, data, settings of the loop."""

    spec: Spec
    loss: Callable[[Any, Any], Tensor]  # of the module, a batch
    batch: int
    steps: int
    settings: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    facts: Callable[[Any, Tensor], dict[str, Any]] | None = None
    batches: Callable[..., Callable[[int], Any]] | None = None  # of size, seed
    make: Callable[[], nn.Module] | None = None  # what to begin with, if not fresh


def label_loss(
    denoiser: Denoiser,
    batch: tuple[Tensor, Tensor],
    times: Tensor | None = None,
    drop: float = 0.15,
    weight: Callable[[Denoiser, Tensor], Tensor] | None = None,
) -> Tensor:
    """The denoising loss on (pictures, labels), a share of the labels dropped, (B,).

    Raises ValueError for pictures beyond 50, or a label that is no class.
    """
    x0, label = batch
    check_pictures(x0)
    if bool((label >= denoiser.net.classes).any()):
        raise ValueError(
            f"labels must be 0 to {denoiser.net.classes - 1}, got {int(label.max())}"
        )
    cond = dropped(denoiser, {"label": label}, drop)
    return denoising_loss(denoiser, x0, cond, times, weight=weight)


def focused_times(schedule: Schedule, n: int) -> Tensor:
    """Return n times whose log-SNR is N(1.6, 2.4^2), where the work is; (n,).

    In units of sigma / alpha: log-normal with mean -0.8, deviation 1.2, near the
    density of Karras et al. (2022); a tenth of the times stays uniform.
    """
    return log_snr_normal(schedule, n, mean=1.6, std=2.4)


def focused_loss(denoiser: Denoiser, batch: tuple[Tensor, Tensor]) -> Tensor:
    """`label_loss` at `focused_times`, (B,)."""
    times = focused_times(denoiser.schedule, len(batch[0]))
    return label_loss(denoiser, batch, times)


def unlabelled_loss(denoiser: Denoiser, batch: tuple[Tensor, ...]) -> Tensor:
    """The denoising loss of batch[0] at `focused_times`, without labels, (B,).

    Raises ValueError for pictures beyond 50.
    """
    check_pictures(batch[0])
    times = focused_times(denoiser.schedule, len(batch[0]))
    return denoising_loss(denoiser, batch[0], t=times)


def generate(
    denoiser: Denoiser,
    n: int,
    calls: int = 20,
    label: Tensor | None = None,
    seed: int = 0,
    batch: int = 250,
    *,
    scale: float = 1.0,
    size: int | tuple[int, int] = 28,
    cond: Cond | None = None,
    step: Callable = dpmpp_2m_step,
    times: Tensor | None = None,
) -> Tensor:
    """Return n pictures, by DPM-Solver++(2M) in `calls` steps, (n, C, H, W).

    label: (n,) int64, or None for unlabelled pictures; cond: any other condition, each
    tensor (n, ...); size: the side, or (H, W), of pictures; latents are decoded at the
    end; scale: of classifier-free guidance, 1 for none, else each step takes two calls.
    step and times replace sampler and grid.
    The same seed gives the same noise whatever the net. Values are not clipped.
    """
    schedule, device = denoiser.schedule, next(denoiser.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    sides = (size, size) if isinstance(size, int) else size
    factor = 1 if denoiser.decoder is None else denoiser.decoder.factor
    if any(side % factor for side in sides):
        raise ValueError(f"size {size}: the decoder needs sides that {factor} divides")
    shape = (n, denoiser.net.channels, *(side // factor for side in sides))
    noise = schedule.noise(shape, generator)
    told = (cond or {}) if label is None else {**(cond or {}), "label": label}
    times = sampling_times(schedule, calls) if times is None else times
    pictures = []
    for rows in torch.arange(n).split(batch):
        part = {name: value[rows].to(device) for name, value in told.items()}
        denoise = given(denoiser, part or None)
        if scale != 1:
            denoise = classifier_free(denoiser, part, scale)
        x = sample(denoise, schedule, noise[rows].to(device), times, step, generator)
        pictures.append(decoded(denoiser, x).cpu())
    return torch.cat(pictures)


@torch.no_grad()
def decoded(denoiser: Denoiser, x0: Tensor) -> Tensor:
    """Return the pictures of what a sampler made, (B, C, H, W): x0 or its decoding."""
    return x0 if denoiser.decoder is None else denoiser.decoder.decode(x0)


def sampling_times(schedule: Schedule, calls: int) -> Tensor:
    """Return the grid used for scores: Karras' with 0.01 <= sigma / alpha <= 80."""
    return karras_times(schedule, calls, sigma_min=0.01, sigma_max=80.0)


def generator_facts(denoiser: Denoiser, x: Tensor) -> dict[str, Any]:
    """Return the scores of 2,000 pictures, 200 a class, in 20 calls."""
    label = torch.arange(2000) % 10
    return {"scores": metrics.scores(generate(denoiser, 2000, 20, label))}


RECIPES = {
    "fashion-unet": Recipe(
        Spec("UNet", {"classes": 10}, "cosine_schedule", {"T": 1000}, "v"),
        focused_loss,
        batch=128,
        steps=5000,
        settings={"precision": "bf16", "ema": 0.998},
        note="class-conditional pixel model, 15% of the labels dropped, no mirroring",
        facts=generator_facts,
    ),
}


def run_recipe(
    name: str,
    folder: str | Path,
    steps: int | None = None,
    on_step: Callable[[int, float], None] | None = None,
    start: str | Path | None = None,
    save_every: int = 500,
    **changes: Any,
) -> Path:
    """Train a named recipe and return the checkpoint written, folder/NAME.safetensors.

    steps, start (a checkpoint to begin from) and changes replace the recipe's own. An
    interrupted run goes on from its last save in folder. Raises ValueError for an
    unknown name, or a start that is built otherwise.
    """
    recipe = named(name)
    x, label = data.fashion_mnist("train")
    settings = {"seed": 0, **recipe.settings, **changes}
    torch.manual_seed(settings["seed"])
    make = recipe.make or recipe.spec.build
    module = make() if start is None else _begun(name, recipe.spec, start)
    deal = recipe.batches or partial(shuffled, x, label)
    batches = deal(size=recipe.batch, seed=settings["seed"])
    identity = f"{name}, pictures {digest(x)[:12]}, batch {recipe.batch}, from {start}"
    steps = recipe.steps if steps is None else steps
    run = train(
        module,
        recipe.loss,
        batches,
        steps,
        folder=folder,
        identity=identity,
        save_every=save_every,
        on_step=on_step,
        **settings,
    )
    facts = described(recipe, run, steps, settings, x)
    if recipe.facts is not None:
        facts |= recipe.facts(run.ema.cpu(), x)
    path = Path(folder) / f"{name}.safetensors"
    checkpoints.save(path, run.ema, recipe.spec, facts)
    return path


def named(name: str) -> Recipe:
    """Return a recipe by name, or raise ValueError listing the names."""
    if name not in RECIPES:
        raise ValueError(f"no recipe {name!r}: there are {sorted(RECIPES)}")
    return RECIPES[name]


def _begun(name: str, spec: Spec, start: str | Path) -> nn.Module:
    """A checkpoint to begin from, if it is built as the recipe's."""
    theirs = asdict(Spec(**checkpoints.facts(start)["spec"]))
    for key, ours in asdict(spec).items():
        if theirs[key] != ours:
            raise ValueError(
                f"{start} has {key} = {theirs[key]!r}, {name} {ours!r}: start from a "
                "checkpoint that is built as the recipe's"
            )
    return checkpoints.load(start)


def digest(x: Tensor) -> str:
    """Return the SHA-256 of pictures, to tell one set from another."""
    return hashlib.sha256(x.numpy().tobytes()).hexdigest()


def described(recipe: Recipe, run: Run, steps: int, settings, x: Tensor) -> dict:
    """Return the facts that travel in a checkpoint's header."""
    return {
        "note": recipe.note,
        "steps": steps,
        "batch": recipe.batch,
        "settings": settings,
        "spec": asdict(recipe.spec),
        "data": digest(x),
        "first_losses": run.losses[:20],
        "last_loss": sum(run.losses[-100:]) / len(run.losses[-100:]),
        "seconds": round(run.seconds),
        "torch": torch.__version__.split("+")[0],
        "date": time.strftime("%Y-%m-%d"),
    }
