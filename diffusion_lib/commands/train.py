"""The command `train`: a recipe, or a U-Net on the pictures of a folder."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .. import checkpoints, data, recipes
from ..checkpoints import Spec
from ..denoiser import Denoiser
from ..training import shuffled, train
from .options import OWN
from .paint import generator, save_grid


def train_command(options: argparse.Namespace) -> None:
    """Train a recipe, or a U-Net on the pictures of a folder."""
    if (options.name is None) == (options.data is None):
        raise ValueError("give a recipe's name or --data FOLDER, and not both")
    given = {name: getattr(options, name) for name in OWN}
    given = {name: value for name, value in given.items() if value is not None}
    if given and options.data is None:
        raise ValueError(f"--{next(iter(given))} needs --data: a recipe has its own")
    default = options.name or options.data.resolve().name
    folder = options.folder or Path("runs") / default
    changes = {"seed": options.seed, "save_every": 100}
    if options.precision:
        changes["precision"] = options.precision
    if options.data is not None:
        path = _train_pictures(options, folder, changes, **{**OWN, **given})
    else:
        path = _train_recipe(options, folder, changes)
    print(f"written: {path}")
    print(f"next: python -m diffusion_lib sample {path}")


def _train_recipe(options, folder: Path, changes: dict) -> Path:
    steps = options.steps
    if steps is None:
        steps = recipes.named(options.name).steps
    with _progress(steps, folder) as on_step:
        return recipes.run_recipe(
            options.name, folder, steps, on_step, options.start, **changes
        )


def _train_pictures(
    options, folder: Path, changes: dict, size: int, channels: int, batch: int
) -> Path:
    torch.manual_seed(options.seed)
    spec, module = _start(options.start, channels)
    _check_size(size, getattr(module.net, "factor", 1))
    x = data.image_folder(options.data, size, channels)
    steps = 3000 if options.steps is None else options.steps
    batch, digest = min(batch, len(x)), recipes.digest(x)
    print(f"{len(x)} pictures of {size} x {size}, {batch} at each of {steps} steps")
    with _progress(steps, folder) as on_step:
        run = train(
            module,
            recipes.unlabelled_loss,
            shuffled(x, size=batch, seed=options.seed),
            steps,
            folder=folder,
            identity=f"pictures {digest[:12]} of {channels} x {size} x {size}, "
            f"batch {batch}, from {options.start}",
            on_step=on_step,
            **changes,
        )
    told = {"pictures": len(x), "data": digest, "batch": batch, "size": size}
    told |= {"steps": steps, "seed": options.seed}
    return _saved(folder / checkpoints.MODEL, run.ema, spec, told)


def _saved(path: Path, denoiser: Denoiser, spec: Spec, told: dict) -> Path:
    checkpoints.save(path, denoiser, spec, told)
    pictures = recipes.generate(denoiser, 16, seed=told["seed"], size=told["size"])
    save_grid(pictures, path.with_name("samples.png"))
    return path


def _check_size(size: int, factor: int) -> None:
    if size % factor:
        near = [k for k in (size - size % factor, size - size % factor + factor) if k]
        raise ValueError(
            f"--size {size} is not a multiple of {factor}, as the network's halving "
            f"needs: give --size {' or '.join(map(str, near))}"
        )


def _start(name: str | None, channels: int) -> tuple[Spec, Denoiser]:
    """A fresh U-Net, or a checkpoint to go on from, and how it is built."""
    if name is None:
        spec = Spec("UNet", {"channels": channels}, "cosine_schedule")
        return spec, spec.build()
    module = generator(name)
    if module.decoder is not None:
        raise ValueError(f"{name} works on latents: start from a net of pixels")
    if module.net.channels != channels:
        raise ValueError(
            f"{name} paints pictures of {module.net.channels} channel(s), not "
            f"{channels}: give --channels {module.net.channels}"
        )
    return Spec(**checkpoints.facts(name)["spec"]), module


@contextmanager
def _progress(steps: int, folder: Path) -> Iterator[Callable[[int, float], None]]:
    """A bar with the mean of the last losses; says what was done before."""
    from tqdm import tqdm

    mean = None

    def on_step(k: int, loss: float) -> None:
        nonlocal mean
        if mean is None and k > 1:
            bar.initial = bar.n = k - 1
            bar.write(f"going on from step {k - 1:,}, saved in {folder}")
        mean = loss if mean is None else 0.98 * mean + 0.02 * loss
        bar.update(k - bar.n)
        bar.set_postfix(loss=f"{mean:.4f}", refresh=False)

    with tqdm(total=steps, unit="step", delay=0.1) as bar:  # none before an error
        yield on_step
    if mean is None:
        print(f"nothing left to train: {folder} holds all {steps:,} steps")
