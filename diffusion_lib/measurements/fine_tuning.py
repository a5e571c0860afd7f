"""What a handful of pictures teaches a text model, and what it costs the rest.

Interrupted, the measurement goes on where it was.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import checkpoints
from ..concept import WORD, learnt, lessons, own_samples, turned
from ..denoiser import Denoiser
from ..lora import add_lora, add_word, merged
from ..networks import Classifier
from ..text_recipes import JUDGE, text_loss
from ..tokens import tokenise
from ..training import train
from .runs import each_run, seed_by_seed
from .shared import Report, device

STEPS, SEEDS = (25, 100, 400), 3
FEW, KEPT, BATCH = 12, 48, 16  # pictures of the concept, own samples, of both a step


class Method(NamedTuple):
    """What learns besides the word's vector, at which peak rate.

    rank: of a low-rank update of the cross-attentions, 0 for none; all: every weight;
    keep: prior preservation, by the base's own samples.
    """

    rate: float
    rank: int = 0
    all: bool = False
    keep: bool = False


METHODS = {
    "word": Method(2e-2),
    "rank 1": Method(1.2e-2, rank=1),
    "rank 4": Method(1.2e-2, rank=4),
    "rank 16": Method(1.2e-2, rank=16),
    "rank 4, kept": Method(1.2e-2, rank=4, keep=True),
    "all": Method(3e-4, all=True),
    "all, kept": Method(3e-4, all=True, keep=True),
}


def fine_tuning(report: Report) -> Iterator[dict[str, Any]]:
    """Teach "turned" by each method in 25, 100 and 400 steps, 3 seeds; score each run.

    That of the longest training of all weights, first seed, holds "spectra": the
    singular values of the change of each weight matrix.
    """
    base, judge = checkpoints.load("fashion-text"), checkpoints.load(JUDGE)
    drawn = turned(FEW, torch.Generator().manual_seed(0))
    few = drawn.pictures, tokenise(drawn.captions, new=(WORD,))
    kept = own_samples(base, KEPT)
    pairs = product(METHODS, STEPS)
    rows = {f"{way}, {steps} steps": (way, steps) for way, steps in pairs}
    found = {"base": base_learnt(judge)}
    runs = seed_by_seed(rows, SEEDS)

    def one_run(row: str, seed: int) -> dict[str, Any]:
        way, steps = rows[row]
        keep = kept if METHODS[way].keep else None
        module = taught(METHODS[way], lessons(few, BATCH, keep, seed), steps, seed)
        run = {"method": way, "steps": steps, **learnt(merged(module), judge)}
        if (way, steps, seed) == ("all", STEPS[-1], 0):
            run["spectra"] = spectra(module, base)
        return run

    yield from each_run("fine-tuning", found, runs, one_run, report, "asked")


def base_learnt(judge: Classifier) -> dict[str, float]:
    """Return the scores of the model that knows the word, but was never taught it."""
    named = checkpoints.load("fashion-text")
    add_word(named, WORD, like="dark")
    return learnt(merged(named), judge)


def taught(method: Method, batches, steps: int, seed: int) -> Denoiser:
    """Return the text model after steps of a method, its new word first like "dark".

    The scale 4 / rank makes first steps of Adam as long at every rank.
    """
    torch.manual_seed(seed)
    denoiser = checkpoints.load("fashion-text").to(device())
    add_word(denoiser, WORD, like="dark")
    if method.rank:
        add_lora(denoiser, method.rank, scale=4 / method.rank)
    elif method.all:
        denoiser.requires_grad_(True)
    settings: dict[str, Any] = {"warmup": 5, "weight_decay": 0.0, "seed": seed}
    train(denoiser, text_loss, batches, steps, rate=method.rate, **settings)
    return denoiser.cpu()


def spectra(module: nn.Module, base: nn.Module) -> dict[str, list[float]]:
    """Return the singular values of every weight matrix's change, by its name."""
    before, found = dict(base.named_parameters()), {}
    for name, value in merged(module).named_parameters():
        if value.ndim > 1 and value.shape == before[name].shape:
            change = (value - before[name]).detach().flatten(1)
            found[name] = torch.linalg.svdvals(change).tolist()
    return found
