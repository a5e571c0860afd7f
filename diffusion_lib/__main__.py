"""python -m diffusion_lib: train, sample, score, measure, list, data."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from . import checkpoints, data, measurements, metrics, recipes
from .checkpoints import Spec
from .denoiser import Denoiser
from .distillation import student_settings
from .measurements.shared import device
from .tokens import tokenise
from .training import shuffled, train

EXAMPLES = """examples:
  python -m diffusion_lib list
  python -m diffusion_lib sample fashion-unet --n 64 --label sneaker --scale 2
  python -m diffusion_lib sample fashion-text --prompt "a dark ankle boot" --scale 3
  python -m diffusion_lib score fashion-unet --n 2000 --calls 20
  python -m diffusion_lib train fashion-unet --folder runs/mine
  python -m diffusion_lib train --data my-pictures --size 32 --steps 3000
  python -m diffusion_lib sample runs/my-pictures/model.safetensors
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; errors of use become one line and exit status 2."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, TypeError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last save", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m diffusion_lib",
        description="Train, sample and score small diffusion models.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    _train_options(commands)
    _sample_options(commands)
    scored = _command(commands, "score", score, "Frechet, KID, ... of a checkpoint")
    scored.add_argument("name", help="a shipped name, a .safetensors file, or a folder")
    scored.add_argument("--n", type=int, default=2000, help="pictures (default 2,000)")
    scored.add_argument("--calls", type=int, default=20, help="network calls (20)")
    scored.add_argument("--seed", type=int, default=0)
    measured = _command(commands, "measure", measure, "write results/NAME.json")
    measured.add_argument("name", nargs="?", help="which; without it, the list")
    measured.add_argument("--stale", action="store_true", help="list outdated results")
    measured.add_argument("--anew", action="store_true", help="put the old one aside")
    _command(commands, "list", show, "what is shipped, and the recipes")
    _command(commands, "data", fetch, "find or download Fashion-MNIST")
    return parser


def _command(commands, name: str, run, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    return parser


def _train_options(commands) -> None:
    parser = _command(
        commands, "train", train_command, "a recipe, or your own pictures"
    )
    parser.add_argument("name", nargs="?", help="a recipe (see list)")
    parser.add_argument("--data", type=Path, help="a folder of your own pictures")
    parser.add_argument("--size", type=int, default=32, help="their side (32)")
    parser.add_argument("--channels", type=int, default=3, help="1 grey, 3 RGB (3)")
    parser.add_argument("--steps", type=int, help="default: the recipe's, or 3,000")
    parser.add_argument("--batch", type=int, default=64, help="with --data (64)")
    parser.add_argument("--start", help="a checkpoint to begin from")
    parser.add_argument("--folder", type=Path, help="state, log, result (runs/NAME)")
    parser.add_argument("--precision", choices=["no", "bf16", "fp16"])
    parser.add_argument("--seed", type=int, default=0)


def _sample_options(commands) -> None:
    parser = _command(commands, "sample", sample_command, "a grid of pictures, as PNG")
    parser.add_argument("name", help="a shipped name or a .safetensors file")
    parser.add_argument("--n", type=int, default=64, help="pictures (64)")
    parser.add_argument("--calls", type=int, default=20, help="network calls (20)")
    parser.add_argument("--label", help="a class, by name or number")
    parser.add_argument("--prompt", help="a caption, for a net that reads text")
    parser.add_argument("--scale", type=float, default=1.0, help="guidance (1 = none)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("samples.png"))


def train_command(options: argparse.Namespace) -> None:
    """Train a recipe, or a U-Net on the pictures of a folder."""
    if (options.name is None) == (options.data is None):
        raise ValueError("give a recipe's name or --data FOLDER, and not both")
    default = options.name or options.data.resolve().name
    folder = options.folder or Path("runs") / default
    changes = {"seed": options.seed}
    if options.precision:
        changes["precision"] = options.precision
    if options.data is not None:
        path = _train_pictures(options, folder, changes)
    else:
        steps = options.steps
        if steps is None:
            steps = recipes.named(options.name).steps
        with _progress(steps) as on_step:
            path = recipes.run_recipe(
                options.name, folder, steps, on_step, options.start, **changes
            )
    print(f"written: {path}")
    print(f"next: python -m diffusion_lib sample {path}")


def _train_pictures(options, folder: Path, changes: dict) -> Path:
    x = data.image_folder(options.data, options.size, options.channels)
    torch.manual_seed(options.seed)
    spec, module = _start(options.start, options.channels)
    steps = 3000 if options.steps is None else options.steps
    batch, digest = min(options.batch, len(x)), recipes.digest(x)
    batches = shuffled(x, size=batch, seed=options.seed)
    print(f"{len(x)} pictures of {options.size} x {options.size}")
    with _progress(steps) as on_step:
        run = train(
            module,
            recipes.unlabelled_loss,
            batches,
            steps,
            folder=folder,
            identity=f"pictures {digest[:12]}, batch {batch}, from {options.start}",
            on_step=on_step,
            **changes,
        )
    path = folder / "model.safetensors"
    told = {"pictures": len(x), "data": digest, "batch": batch}
    told |= {"steps": steps, "seed": options.seed}
    checkpoints.save(path, run.ema, spec, {"size": options.size, **told})
    pictures = recipes.generate(
        run.ema.eval(), 16, seed=options.seed, size=options.size
    )
    _save_grid(pictures, folder / "samples.png")
    return path


def _start(name: str | None, channels: int) -> tuple[Spec, Denoiser]:
    """A fresh U-Net, or a checkpoint to go on from, and how it is built."""
    if name is None:
        spec = Spec("UNet", {"channels": channels}, "cosine_schedule")
        return spec, spec.build()
    module = _denoiser(name)
    if module.net.channels != channels:
        raise ValueError(
            f"{name} paints pictures of {module.net.channels} channel(s), not "
            f"{channels}: give --channels {module.net.channels}"
        )
    return Spec(**checkpoints.facts(name)["spec"]), module


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[int, float], None]]:
    """A bar with the mean of the last losses."""
    from tqdm import tqdm

    mean = None

    def on_step(k: int, loss: float) -> None:
        nonlocal mean
        mean = loss if mean is None else 0.98 * mean + 0.02 * loss
        bar.update(k - bar.n)
        bar.set_postfix(loss=f"{mean:.4f}", refresh=False)

    with tqdm(total=steps, unit="step") as bar:
        yield on_step


def sample_command(options: argparse.Namespace) -> None:
    """Draw pictures from a checkpoint and save them as one PNG."""
    denoiser = _denoiser(options.name)
    pictures = recipes.generate(
        denoiser,
        options.n,
        options.calls,
        seed=options.seed,
        scale=options.scale,
        cond=_asked(options, denoiser),
        size=checkpoints.facts(options.name).get("size", 28),
        **_how(options, denoiser),
    )
    _save_grid(pictures, options.out)


def _asked(options: argparse.Namespace, denoiser) -> dict[str, torch.Tensor]:
    """The label and the caption asked for, one for each picture."""
    cond = {}
    if options.label is not None:
        cond["label"] = torch.full((options.n,), _class_number(options.label))
    if options.prompt is not None:
        if getattr(denoiser.net, "text", None) is None:
            raise ValueError(f"{options.name} reads no text: leave --prompt out")
        cond["text"] = tokenise([options.prompt] * options.n)
    return cond


def _how(options: argparse.Namespace, denoiser) -> dict:
    """A student's own step and times; the usual ones for all else."""
    if not checkpoints.facts(options.name).get("student"):
        return {}
    return student_settings(denoiser.schedule, options.calls)


def _save_grid(pictures: torch.Tensor, path: Path) -> None:
    from torchvision.utils import save_image

    path.parent.mkdir(parents=True, exist_ok=True)
    columns = max(1, round(len(pictures) ** 0.5))
    save_image((pictures.clamp(-1, 1) + 1) / 2, path, nrow=columns)
    print(f"written: {path}")


def _class_number(text: str) -> int:
    names = [name.lower() for name in data.CLASSES]
    if text.isdigit() and int(text) < len(names):
        return int(text)
    found = [i for i, name in enumerate(names) if text.lower() in name.split("/")]
    if found or text.lower() in names:
        return found[0] if found else names.index(text.lower())
    raise ValueError(f"unknown class {text!r}: one of {data.CLASSES}, or 0 to 9")


def score(options: argparse.Namespace) -> None:
    """Print every score of a checkpoint's pictures, or of a folder of pictures."""
    if Path(options.name).is_dir():
        pictures = data.image_folder(options.name, 28, channels=1)[: options.n]
    else:
        denoiser = _denoiser(options.name)
        labelled = getattr(denoiser.net, "classes", None) is not None
        label = torch.arange(options.n) % 10 if labelled else None
        pictures = recipes.generate(
            denoiser,
            options.n,
            options.calls,
            label,
            options.seed,
            **_how(options, denoiser),
        )
    for name, value in metrics.scores(pictures).items():
        print(f"{name:20s} {value:.5g}")


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
    """List the shipped checkpoints with their facts, and the recipes."""
    for name in checkpoints.available():
        facts = checkpoints.facts(name)
        shown = ("note", "steps", "seconds", "date", "test_accuracy", "scores")
        print(name, json.dumps({k: facts[k] for k in shown if k in facts}, indent=1))
    print("recipes:", ", ".join(sorted(recipes.RECIPES)))


def fetch(options: argparse.Namespace) -> None:
    """Say where Fashion-MNIST lies, downloading it first if need be."""
    print(data.fashion_mnist_folder())


if __name__ == "__main__":
    sys.exit(main())
