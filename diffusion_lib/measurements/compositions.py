"""How often captions come true, those of held-out compositions too, and what fails.

The seeds are of captions and sampling noise: one trained network, so the spread says
nothing of what another training would give. Interrupted, the measurement goes on.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from .. import checkpoints
from ..captions import NOTHING, caption_pictures, true_of
from ..denoiser import Denoiser
from ..grammar import fits, meaning
from ..text_recipes import JUDGE, composed, judged
from .shared import Report, device, each_run, unfinished

N, SEEDS, CALLS = 200, 3, 20
KINDS, SCALES = {"seen": None, "looks": "looks", "pairs": "pairs"}, (1.0, 3.0, 5.0)
PARTS = ("number", "noun", "position", "look")


def first_failure(caption: str, seen: list[list[int]]) -> str:
    """Return the first of PARTS in which a canvas fails its caption; "" if it is true.

    In turn: are there as many garments as asked for, of the classes asked for, each at
    its place, and with the looks asked for? seen: label, brightness, shape, left and
    right.
    """
    scenes, labels = meaning(caption), [half[0] for half in seen]
    asked = [[NOTHING if g is None else g[0] for g in scene] for scene in scenes]
    passed = {
        "number": labels.count(NOTHING) in [named.count(NOTHING) for named in asked],
        "noun": sorted(labels) in [sorted(named) for named in asked],
        "position": labels in asked,
        "look": any(fits(scene, seen, NOTHING) for scene in scenes),
    }
    return next((part for part in PARTS if not passed[part]), "")


def failures(captions: Sequence[str], attributes: Tensor) -> dict[str, float]:
    """Return the share of captions that fail first in each of PARTS."""
    pairs = zip(captions, attributes.tolist(), strict=True)
    found = Counter(first_failure(*pair) for pair in pairs)
    return {part: found[part] / len(captions) for part in PARTS}


def one_run(denoiser: Denoiser, kind: str, scale: float, seed: int) -> dict[str, Any]:
    """Return the shares of N captions that come true, and that fail in each of PARTS.

    real: the share true of the real canvases that the captions were written for, where
    only the judge can fail.
    """
    judge = checkpoints.load(JUDGE)
    generator = torch.Generator().manual_seed(seed)
    canvases, captions, _ = caption_pictures("test", N, generator, KINDS[kind])
    with torch.autocast(device(), torch.bfloat16):
        pictures, true = composed(denoiser, judge, captions, scale, CALLS, seed)
        drawn, real = judged(judge, pictures), judged(judge, canvases)
    return {
        "kind": kind,
        "scale": scale,
        "true": float(true.double().mean()),
        "real": float(true_of(captions, real).double().mean()),
        **failures(captions, drawn),
    }


def compositions(report: Report) -> Iterator[dict[str, Any]]:
    """Have fashion-text paint captions of each kind, at each scale; judge the canvases.

    Yields after every run. The cost of another seed of training stands beside.
    """
    denoiser = checkpoints.load("fashion-text", device())
    rows = {f"{kind}, scale {s:g}": (kind, s) for kind, s in product(KINDS, SCALES)}
    before = unfinished("compositions", SEEDS * len(rows)) or {"runs": []}
    found = {"n": N, "calls": CALLS, "seeds": SEEDS, "trained_nets": 1}
    found["seconds_to_train_another"] = checkpoints.facts("fashion-text")["seconds"]
    found["runs"] = before["runs"]

    def run(row: str, seed: int) -> dict[str, Any]:
        return one_run(denoiser, *rows[row], seed)

    yield from each_run(found, rows, SEEDS, run, report, shown="true")
