"""The command line's options and their help; `python -m diffusion_lib` runs them."""

import argparse
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .. import data

EXAMPLES = """examples:
  python -m diffusion_lib list
  python -m diffusion_lib sample fashion-unet --n 64 --label sneaker --scale 2
  python -m diffusion_lib sample fashion-text --prompt "a dark ankle boot" --scale 3
  python -m diffusion_lib score fashion-unet --n 2000 --calls 20
  python -m diffusion_lib train fashion-unet --folder runs/mine
  python -m diffusion_lib train --data my-pictures --size 32 --steps 3000
  python -m diffusion_lib sample runs/my-pictures
"""
OWN = {"size": 32, "channels": 3, "batch": 64}  # with --data; a recipe has its own
COMPARED = (
    "compared with Fashion-MNIST's test pictures (28 x 28, grey) on the features of "
    "fashion-classifier; Frechet and KID: smaller is better"
)


def parser() -> argparse.ArgumentParser:
    """Return the parser; the command asked for is options.command, or None."""
    root = argparse.ArgumentParser(
        prog="python -m diffusion_lib",
        description="Train, sample and score small diffusion models.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=_version())
    commands = root.add_subparsers(dest="command", metavar="command")
    _train_options(commands)
    _sample_options(commands)
    _score_options(commands)
    measured = _command(commands, "measure", "write results/NAME.json")
    measured.add_argument("name", nargs="?", help="which; without it, the list")
    measured.add_argument("--stale", action="store_true", help="list outdated results")
    measured.add_argument("--anew", action="store_true", help="put the old one aside")
    listed = _command(commands, "list", "what is shipped, and the recipes")
    listed.add_argument("--facts", action="store_true", help="all that files say, JSON")
    _command(commands, "data", "find or download Fashion-MNIST")
    return root


def _version() -> str:
    try:
        return f"diffusion-course {version('diffusion-course')}"
    except PackageNotFoundError:
        return "diffusion-course, not installed: run from its folder"


def _command(commands, name: str, text: str, more="") -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=f"{text}{more}")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"give a whole number from 1, not {text!r}")
    return int(text)


def _train_options(commands) -> None:
    more = (
        ". An interrupted run is saved every 100 steps: the same command goes on from "
        "there. Pictures of a folder are cropped to squares; what is transparent is "
        "laid on white."
    )
    text = "a recipe, or your own pictures"
    parser = _command(commands, "train", text, more)
    add = parser.add_argument
    add("name", nargs="?", help="a recipe (see list)")
    add("--data", type=Path, help="a folder of your own pictures, with its subfolders")
    add("--size", type=_count, help="with --data: their side, a multiple of 4 (32)")
    add("--channels", type=int, choices=[1, 3], help="with --data: 1 grey, 3 RGB (3)")
    add("--batch", type=_count, help="with --data: pictures a step (64)")
    add("--steps", type=_count, help="default: the recipe's, or 3,000")
    add("--start", help="a checkpoint to begin from, in a new folder")
    add("--folder", type=Path, help="for state, log, result (runs/NAME)")
    add(
        "--precision",
        choices=["no", "bf16", "fp16"],
        help="of most arithmetic: bf16 is faster where GPU or CPU has it, fp16 on "
        "older GPUs, no is float32 (the recipe's, or no)",
    )
    add("--seed", type=int, default=0, help="of weights, batches and noise (0)")


def _painter_options(parser: argparse.ArgumentParser, n: int) -> None:
    """What `sample` and `score` share."""
    parser.add_argument("--n", type=_count, default=n, help=f"pictures ({n:,})")
    parser.add_argument("--calls", type=_count, default=20, help="network calls (20)")
    text = "of the noise: the same seed, the same pictures (0)"
    parser.add_argument("--seed", type=int, default=0, help=text)


def _sample_options(commands) -> None:
    text = "a grid of pictures, as PNG"
    parser = _command(commands, "sample", text)
    add = parser.add_argument
    add("name", help="a shipped name, a .safetensors file, or a run's folder")
    _painter_options(parser, 64)
    classes = ", ".join(data.CLASSES)
    add("--label", help=f"a class, by name or by number from 0: {classes}")
    add("--prompt", help='for a net that reads text, like "a dark ankle boot"')
    text = "guidance towards --label or --prompt (1, none)"
    add("--scale", type=float, default=1.0, help=text)
    text = "the file (samples.png, or the first free of samples-2.png, ...)"
    add("--out", type=Path, help=text)


def _score_options(commands) -> None:
    text = "Frechet distance, KID, ... of a checkpoint's or a folder's pictures"
    parser = _command(commands, "score", text, f", {COMPARED}.")
    text = "a shipped name, a .safetensors file, a run's folder, or one of pictures"
    parser.add_argument("name", help=text)
    _painter_options(parser, 2000)
