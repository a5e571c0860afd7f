"""How often captions come true, those of held-out compositions too, and what fails.

Held-out captions ask for more than most of the training's do, so each is also turned
into one of training by a single change: the control. The seeds are of captions and
sampling noise: one trained network, so the spread says nothing of what another training
would give. Interrupted, the measurement goes on.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from .. import checkpoints
from ..captions import NOTHING, asks_for_held_out, caption_pictures, true_of
from ..denoiser import Denoiser
from ..grammar import fits, meaning
from ..text_recipes import JUDGE, judged, painted
from .runs import each_run, seed_by_seed
from .shared import Report, device

N, SEEDS, CALLS, SCALES = 150, 3, 20, (1.0, 3.0, 5.0)
KINDS = ("seen", "looks", "looks control", "pairs", "pairs control")
CHANGES = {  # what makes a held-out caption one of training: a dark boot a light one
    "looks": {"dark": "light", "dim": "pale"}
    | dict.fromkeys(("light", "bright", "pale"), "dark"),
    "pairs": {"left": "right", "right": "left"}
    | {"bag": "sneaker", "bags": "sneakers"}
    | {"handbag": "trainer", "handbags": "trainers"},
}
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


def changed(captions: Sequence[str], change: dict[str, str]) -> list[str]:
    """Return held-out captions with words changed, those that are then of training."""
    texts = (" ".join(change.get(w, w) for w in text.split()) for text in captions)
    return [text for text in texts if not asks_for_held_out(text)]


def one_run(denoiser: Denoiser, kind: str, scale: float, seed: int) -> dict[str, Any]:
    """Return the shares of captions that come true, and that fail in each of PARTS.

    n: how many captions. real: the share true of the real canvases that they were
    written for, where only the judge can fail; None for a control, which has none.
    """
    judge, generator = checkpoints.load(JUDGE), torch.Generator().manual_seed(seed)
    what, *control = kind.split()
    unseen = None if what == "seen" else what
    canvases, captions, _ = caption_pictures("test", N, generator, unseen)
    right = true_of(captions, judged(judge, canvases))
    real: float | None = float(right.double().mean())
    if control:
        captions, real = changed(captions, CHANGES[what]), None
    with torch.autocast(device(), torch.bfloat16):
        pictures = painted(denoiser, captions, scale, CALLS, seed)
    seen = judged(judge, pictures)
    return {
        "kind": kind,
        "scale": scale,
        "n": len(captions),
        "true": float(true_of(captions, seen).double().mean()),
        "real": real,
        **failures(captions, seen),
    }


def compositions(report: Report) -> Iterator[dict[str, Any]]:
    """Have fashion-text paint captions of each kind, at each scale; judge the canvases.

    Yields after every run. The cost of another seed of training stands beside.
    """
    denoiser = checkpoints.load("fashion-text", device())
    rows = {f"{kind}, scale {s:g}": (kind, s) for kind, s in product(KINDS, SCALES)}
    found = {"n": N, "calls": CALLS, "seeds": SEEDS, "trained_nets": 1}
    found["seconds_to_train_another"] = checkpoints.facts("fashion-text")["seconds"]
    runs = seed_by_seed(rows, SEEDS)

    def run(row: str, seed: int) -> dict[str, Any]:
        return one_run(denoiser, *rows[row], seed)

    yield from each_run("compositions", found, runs, run, report, shown="true")
