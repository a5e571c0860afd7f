"""The commands `sample` and `score`: pictures of a checkpoint."""

import argparse
from itertools import count
from pathlib import Path

import torch

from .. import checkpoints, data, metrics, recipes
from ..distillation import student_settings
from ..measurements.shared import device
from ..tokens import tokenise
from .options import COMPARED


def sample(options: argparse.Namespace) -> None:
    """Draw pictures from a checkpoint and save them as one PNG."""
    denoiser = generator(options.name)
    cond = _asked(options, denoiser.net)
    pictures = _painted(options, denoiser, cond, options.scale)
    save_grid(pictures, options.out or _unused(Path("samples.png")))


def takes_of(net) -> list[str]:
    """The conditions that can be given on the command line."""
    return [name for name in ("label", "text") if getattr(net, name, None) is not None]


def _asked(options: argparse.Namespace, net) -> dict[str, torch.Tensor]:
    """The label and the caption asked for, one for each picture."""
    asked = {"label": ("--label", options.label), "text": ("--prompt", options.prompt)}
    takes, cond = takes_of(net), {}
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
        size=shape_of(options.name, denoiser)[1:],
        **how,
    )


def shape_of(name: str, denoiser) -> tuple[int, int, int]:
    """What a generator paints, (C, H, W): 28 x 28 unless its file says otherwise."""
    net = denoiser.decoder or denoiser.net
    if not hasattr(net, "channels"):
        raise ValueError(f"{name} makes no pictures: its net has no channels")
    size = checkpoints.facts(name).get("size", 28)
    height, width = (size, size) if isinstance(size, int) else size
    return net.channels, height, width


def _unused(path: Path) -> Path:
    """The path, or with -2, -3, ... the first that is free."""
    if not path.exists():
        return path
    numbered = (path.with_stem(f"{path.stem}-{k}") for k in count(2))
    return next(other for other in numbered if not other.exists())


def save_grid(pictures: torch.Tensor, path: Path) -> None:
    """Write pictures (n, C, H, W) in [-1, 1] as one PNG, in about a square."""
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
        found = data.image_folder(options.name, 28, channels=1)
        by_lot = torch.Generator().manual_seed(options.seed)
        rows = torch.randperm(len(found), generator=by_lot)[: options.n]
        pictures = found[rows]
        told = f"{len(rows)} of the folder's {len(found)} pictures, drawn by lot, made "
        told += "grey and 28 x 28 where they were not"
    else:
        denoiser = generator(options.name)
        shape = shape_of(options.name, denoiser)
        if shape != (1, 28, 28):
            raise ValueError(
                f"{options.name} paints pictures of {by(shape)}: only 1 x 28 x 28 "
                "can be compared with Fashion-MNIST"
            )
        cond = {}
        if "label" in takes_of(denoiser.net):
            cond["label"] = torch.arange(options.n) % denoiser.net.classes
        pictures, told = _painted(options, denoiser, cond), "its pictures"
    if len(pictures) < 6:  # density and coverage look for a fifth neighbour
        raise ValueError(
            f"{len(pictures)} pictures are too few to score: give 6 or more"
        )
    scores = metrics.scores(pictures)
    print(f"{told}, {COMPARED}")
    for name, value in scores.items():
        print(f"{name:20s} {value:.5g}")


def by(shape: tuple[int, ...]) -> str:
    """Return the sides as "C x H x W"."""
    return " x ".join(map(str, shape))


def generator(name: str):
    """Return a checkpoint's denoiser. Raises ValueError if it generates nothing."""
    module = checkpoints.load(name, device())
    if not hasattr(module, "schedule"):
        raise ValueError(f"{name} is not a generator: it has no noise schedule")
    return module
