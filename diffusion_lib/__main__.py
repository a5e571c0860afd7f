"""python -m diffusion_lib: train, sample, score, measure, list, data."""

import argparse
import json
import os
import sys
import textwrap

from . import checkpoints, data, measurements, recipes
from .commands.options import parser
from .commands.paint import by, sample, score, shape_of, takes_of
from .commands.train import train_command
from .networks import Upsampler


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
        again = "the same command"
        again += " without --anew" if getattr(options, "anew", False) else ""
        on = f"; {again} goes on from the last save, if there was one" if long else ""
        print(f"stopped{on}", file=sys.stderr)
        return 130
    return 0


def measure(options: argparse.Namespace) -> None:
    """Run a measurement, or list those there are, or those out of date."""
    if options.stale or options.name is None:
        names = measurements.stale() if options.stale else measurements.MEASUREMENTS
        print("\n".join(names) or "every result is up to date")
        return
    path = measurements.measure(options.name, print, options.anew)
    print(f"written: {path}" if path.exists() else f"nothing written to {path}")


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
    takes = ["a picture"] if shown else takes_of(module.net) or ["none"]
    return by(shape_of(name, module)), ", ".join(takes)


def fetch(options: argparse.Namespace) -> None:
    """Say where Fashion-MNIST lies, downloading it first if need be."""
    print(data.fashion_mnist_folder())


COMMANDS = {
    "train": train_command,
    "sample": sample,
    "score": score,
    "measure": measure,
    "list": show,
    "data": fetch,
}

if __name__ == "__main__":
    sys.exit(main())
