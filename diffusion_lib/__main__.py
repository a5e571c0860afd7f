"""python -m diffusion_lib: train, sample, score, measure, list, data."""

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch

from . import checkpoints, data, measurements, metrics, recipes
from .checkpoints import Spec
from .denoiser import Denoiser
from .distillation import student_settings
from .measurements.shared import device
from .networks import Upsampler
from .options import COMPARED, OWN, parser
from .tokens import tokenise
from .training import shuffled, train


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; errors of use become one line and exit status 2."""
    known = parser()
    options = known.parse_args(arguments)
    if options.command is None:
        known.print_help()
        return 2
    try:
        COMMANDS[options.command](options)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        long = options.command in ("train", "measure")
        on = "; the same command goes on from the last save" if long else ""
        print(f"stopped{on}", file=sys.stderr)
        return 130
    return 0


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
    _save_grid(pictures, path.with_name("samples.png"))
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
    module = _denoiser(name)
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


def sample_command(options: argparse.Namespace) -> None:
    """Draw pictures from a checkpoint and save them as one PNG."""
    denoiser = _denoiser(options.name)
    cond = _asked(options, denoiser.net)
    pictures = _painted(options, denoiser, cond, options.scale)
    _save_grid(pictures, options.out or _unused(Path("samples.png")))


def _takes(net: Any) -> list[str]:
    """The conditions that can be given on the command line."""
    return [name for name in ("label", "text") if getattr(net, name, None) is not None]


def _asked(options: argparse.Namespace, net) -> dict[str, torch.Tensor]:
    """The label and the caption asked for, one for each picture."""
    asked = {"label": ("--label", options.label), "text": ("--prompt", options.prompt)}
    takes, cond = _takes(net), {}
    for name, (flag, value) in asked.items():
        if value is not None and name not in takes:
            only = f", only {takes[0]!r}" if takes else ""
            raise ValueError(f"{options.name} reads no {name}{only}: leave {flag} out")
    if options.label is not None:
        cond["label"] = torch.full((options.n,), _class_number(options.label))
    if options.prompt is not None:
        cond["text"] = tokenise([options.prompt] * options.n)
    if options.scale != 1 and not cond:
        add = " or ".join(asked[name][0] for name in takes)
        change = f"add {add}" if add else "this net reads neither: leave --scale out"
        raise ValueError(
            f"--scale {options.scale:g} guides towards --label or --prompt: {change}"
        )
    return cond


def _painted(options, denoiser, cond: dict, scale: float = 1.0) -> torch.Tensor:
    """Pictures of the size that the checkpoint names; a student's in its own steps."""
    how = {}
    if checkpoints.facts(options.name).get("student"):
        how = student_settings(denoiser.schedule, options.calls)
    return recipes.generate(
        denoiser,
        options.n,
        options.calls,
        seed=options.seed,
        scale=scale,
        cond=cond,
        size=_shape(options.name, denoiser)[1:],
        **how,
    )


def _shape(name: str, denoiser) -> tuple[int, int, int]:
    """What a generator paints, (C, H, W): 28 x 28 unless its file says otherwise."""
    size = checkpoints.facts(name).get("size", 28)
    height, width = (size, size) if isinstance(size, int) else size
    return (denoiser.decoder or denoiser.net).channels, height, width


def _unused(path: Path) -> Path:
    """The path, or with -2, -3, ... the first that is free."""
    if not path.exists():
        return path
    numbered = (path.with_stem(f"{path.stem}-{k}") for k in count(2))
    return next(other for other in numbered if not other.exists())


def _save_grid(pictures: torch.Tensor, path: Path) -> None:
    from torchvision.utils import save_image

    path.parent.mkdir(parents=True, exist_ok=True)
    columns = max(1, round(len(pictures) ** 0.5))
    save_image((pictures.clamp(-1, 1) + 1) / 2, path, nrow=columns)
    print(f"written: {path}")


def _class_number(text: str) -> int:
    names = [name.lower() for name in data.CLASSES]
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    found = [i for i, name in enumerate(names) if text.lower() in name.split("/")]
    if found or text.lower() in names:
        return found[0] if found else names.index(text.lower())
    raise ValueError(f"unknown class {text!r}: one of {data.CLASSES}, or 0 to 9")


def score(options: argparse.Namespace) -> None:
    """Print every score of a checkpoint's pictures, or of a folder of pictures."""
    if Path(options.name).is_dir() and not checkpoints.is_known(options.name):
        pictures = data.image_folder(options.name, 28, channels=1)[: options.n]
        told = "the folder's pictures, made grey and 28 x 28 where they were not"
    else:
        denoiser = _denoiser(options.name)
        shape = _shape(options.name, denoiser)
        if shape != (1, 28, 28):
            raise ValueError(
                f"{options.name} paints pictures of {_times(shape)}: only 1 x 28 x 28 "
                "can be compared with Fashion-MNIST"
            )
        cond = {}
        if "label" in _takes(denoiser.net):
            cond["label"] = torch.arange(options.n) % denoiser.net.classes
        pictures, told = _painted(options, denoiser, cond), "its pictures"
    if len(pictures) < 6:  # density and coverage look for a fifth neighbour
        raise ValueError(
            f"{len(pictures)} pictures are too few to score: give 6 or more"
        )
    found = metrics.scores(pictures)
    print(f"{told}, {COMPARED}")
    for name, value in found.items():
        print(f"{name:20s} {value:.5g}")


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _denoiser(name: str):
    module = checkpoints.load(name, device())
    if not hasattr(module, "schedule"):
        raise ValueError(f"{name} is not a generator: it has no noise schedule")
    return module


def measure(options: argparse.Namespace) -> None:
    """Run a measurement, or list those there are, or those out of date."""
    if options.stale or options.name is None:
        names = measurements.stale() if options.stale else measurements.MEASUREMENTS
        print("\n".join(names) or "every result is up to date")
        return
    path = measurements.measure(options.name, print, options.anew)
    print(f"complete: {path}" if path.exists() else f"nothing written to {path}")


def show(options: argparse.Namespace) -> None:
    """List the shipped checkpoints, a line each or all facts, and the recipes."""
    for name in checkpoints.available():
        facts = checkpoints.facts(name)
        if options.facts:
            shown = ("note", "steps", "seconds", "date", "test_accuracy", "scores")
            told = {k: facts[k] for k in shown if k in facts}
            print(name, json.dumps(told, indent=1))
        else:
            paints, takes = _summary(name, checkpoints.load(name))
            note = textwrap.shorten(facts.get("note", ""), 50, placeholder=" ...")
            print(f"{name:26s}{paints:13s}{takes:14s}{note}")
    print("recipes:", ", ".join(sorted(recipes.RECIPES)))


def _summary(name: str, module) -> tuple[str, str]:
    """What a checkpoint paints, and the conditions it takes."""
    if not hasattr(module, "schedule"):
        return "", "no generator"
    shown = isinstance(module.net, Upsampler)
    takes = ["a picture"] if shown else _takes(module.net) or ["none"]
    return _times(_shape(name, module)), ", ".join(takes)


def fetch(options: argparse.Namespace) -> None:
    """Say where Fashion-MNIST lies, downloading it first if need be."""
    print(data.fashion_mnist_folder())


COMMANDS = {
    "train": train_command,
    "sample": sample_command,
    "score": score,
    "measure": measure,
    "list": show,
    "data": fetch,
}

if __name__ == "__main__":
    sys.exit(main())
