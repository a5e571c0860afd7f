"""Captioned pictures: garments side by side, described by what is measured on them.

A canvas is 28 x 56: one garment on its left half, one on its right, or only one of the
two. Everything a caption says is the class or a property of the pixels, so that a
caption can be checked against any picture, a generated one too. Some compositions are
never shown in training.
"""

import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .data import CLASSES, fashion_mnist
from .grammar import Scene, describe, fits, meaning

SIZE = (28, 56)
NOTHING = len(CLASSES)  # the label of an empty half
INK = 0.1  # of the scale from 0 to 1: a brighter pixel belongs to a garment
# The 30% and 70% quantiles of the training set: of the garments' mean brightness, and,
# for each class, of width over height.
BRIGHTNESS_BETWEEN = (0.5435, 0.7322)
SHAPE_BETWEEN = [
    (0.7500, 0.8214),
    (0.3929, 0.4286),
    (0.7143, 0.7857),
    (0.4643, 0.5714),
    (0.6786, 0.7692),
    (1.4000, 2.3333),
    (0.7143, 0.7857),
    (2.0000, 2.3333),
    (0.8929, 1.4000),
    (1.2174, 1.4737),
]

# Never in a training canvas, said or not: these looks, and these pairs left and right.
LOOKS = ("dark", "between", "light")
HELD_OUT_LOOKS = [("Ankle boot", "dark"), ("Bag", "dark"), ("Dress", "light")]
HELD_OUT_PAIRS = [
    ("Bag", "Bag"),
    ("Ankle boot", "Trouser"),
    ("Dress", "Sneaker"),
    ("T-shirt/top", "Sandal"),
]


class Captioned(NamedTuple):
    """Canvases (N, 1, 28, 56) in [-1, 1], their captions, and what is on them.

    attributes: (N, 2, 3) int64, left and right: label (NOTHING for an empty half),
    brightness (0 dark, 1 between, 2 light), shape (0 narrow or tall, 2 wide or flat).
    """

    pictures: Tensor
    captions: list[str]
    attributes: Tensor


def caption_pictures(
    split: str,
    n: int,
    generator: torch.Generator | None = None,
    unseen: str | None = None,
) -> Captioned:
    """Return n canvases of Fashion-MNIST's split, drawn with generator, and captions.

    About half of them show two garments. unseen: None for the compositions of training,
    "looks" or "pairs" for canvases with a held-out look or pair, of the test split, and
    captions that ask for it. Raises ValueError for another split or kind.
    """
    if unseen not in (None, "looks", "pairs"):
        raise ValueError(f"unseen is None, 'looks' or 'pairs', got {unseen!r}")
    if unseen and split == "train":
        raise ValueError("held-out compositions are shown of the test split only")
    pictures, attributes = _garments(split)
    rows = _rows(len(pictures), n, generator)
    while bool((wrong := _wrong(attributes[rows], unseen)).any()):
        rows[wrong] = _rows(len(pictures), int(wrong.sum()), generator)
    found = attributes[rows]
    rng = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
    captions = [_caption(scene(seen), rng, bool(unseen)) for seen in found.tolist()]
    return Captioned(torch.cat(pictures[rows].unbind(1), dim=-1), captions, found)


@lru_cache(maxsize=2)
def _garments(split: str) -> tuple[Tensor, Tensor]:
    """Pictures and attributes of a split; the last row is an empty half."""
    x, label = fashion_mnist(split)
    x = torch.cat([x, torch.full_like(x[:1], -1.0)])
    return x, measured(x, torch.cat([label, torch.tensor([NOTHING])]))


def _rows(garments: int, n: int, generator: torch.Generator | None) -> Tensor:
    """Rows for left and right, (n, 2): two garments, or one and the empty last row."""
    rows = torch.randint(garments - 1, (n, 2), generator=generator)
    empty = torch.randint(4, (n, 1), generator=generator) == torch.arange(2)
    return torch.where(empty, garments - 1, rows)


def _caption(seen: Scene, rng: random.Random, unseen: bool) -> str:
    while True:
        caption = describe(seen, rng)
        if not unseen or asks_for_held_out(caption):
            return caption


def _wrong(attributes: Tensor, unseen: str | None) -> Tensor:
    looks, pairs = held_out(attributes)
    return {None: looks | pairs, "looks": ~looks, "pairs": ~pairs}[unseen]


def held_out(attributes: Tensor) -> tuple[Tensor, Tensor]:
    """Return which canvases have a held-out look, and which a held-out pair, (N,).

    attributes: (N, 2, 2 or more), as in Captioned.
    """
    looks = torch.zeros(NOTHING + 1, 3, dtype=torch.bool)
    pairs = torch.zeros(NOTHING + 1, NOTHING + 1, dtype=torch.bool)
    for name, look in HELD_OUT_LOOKS:
        looks[CLASSES.index(name), LOOKS.index(look)] = True
    for left, right in HELD_OUT_PAIRS:
        pairs[CLASSES.index(left), CLASSES.index(right)] = True
    label, brightness = attributes[..., 0], attributes[..., 1]
    return looks[label, brightness].any(1), pairs[label[:, 0], label[:, 1]]


def asks_for_held_out(caption: str) -> bool:
    """Return whether a caption is true of held-out compositions alone."""
    rows = [
        [
            (NOTHING, 1) if g is None else (g[0], 1 if g[1] is None else g[1])
            for g in two
        ]
        for two in meaning(caption)
    ]
    looks, pairs = held_out(torch.tensor(rows))
    return bool((looks | pairs).all())


def appearance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return brightness, 0 to 1, and width over height of pictures (N, 1, H, W), (N,).

    Brightness is the mean over the garment's pixels; 0 where there are none.
    """
    value = (x[:, 0].clamp(-1, 1) + 1) / 2
    garment = value > INK
    brightness = (value * garment).sum((1, 2)) / garment.sum((1, 2)).clamp(min=1)
    width, height = garment.any(1).sum(1), garment.any(2).sum(1)
    return brightness, width / height.clamp(min=1)


def measured(x: Tensor, label: Tensor) -> Tensor:
    """Return label, brightness and shape of halves (N, 1, 28, 28), (N, 3) int64.

    An empty half, by its label, is between in all. See Captioned for the numbers.
    """
    brightness, shape = appearance(x)
    low, high = torch.tensor([*SHAPE_BETWEEN, (-1.0, torch.inf)])[label].T
    dark, light = BRIGHTNESS_BETWEEN
    levels = torch.stack([_level(brightness, dark, light), _level(shape, low, high)], 1)
    levels[label == NOTHING] = 1
    return torch.cat([label[:, None], levels], dim=1)


def _level(value: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """0 below low, 2 above high, else 1; a bound met up to rounding is not passed."""
    return 1 - (value < low - 1e-4).long() + (value > high + 1e-4).long()


def seen_on(canvases: Tensor, name: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the attributes of canvases (N, 1, 28, 56), (N, 2, 3).

    name: halves (M, 1, 28, 28) -> their labels (M,), NOTHING for an empty one. Raises
    ValueError for pictures of another size.
    """
    if canvases.ndim != 4 or canvases.shape[2:] != SIZE:
        raise ValueError(f"a canvas is (N, 1, 28, 56), got {tuple(canvases.shape)}")
    halves = torch.stack(canvases.chunk(2, dim=-1), dim=1).flatten(0, 1)
    return measured(halves, name(halves)).unflatten(0, (-1, 2))


def scene(seen: list[list[int]]) -> Scene:
    """Return what the grammar describes: (label, brightness, shape) or None, twice."""
    left, right = (None if half[0] == NOTHING else tuple(half) for half in seen)
    return left, right


def true_of(captions: Sequence[str], attributes: Tensor) -> Tensor:
    """Return whether each caption is true of the canvas at its place, (N,) bool.

    What a caption leaves open may be anything, but "a bag" means one garment alone.
    Raises ValueError for a caption that the grammar does not make.
    """
    pairs = zip(captions, attributes.tolist(), strict=True)
    return torch.tensor(
        [any(fits(s, seen, NOTHING) for s in meaning(text)) for text, seen in pairs],
        dtype=torch.bool,
    )
