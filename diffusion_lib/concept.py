"""A concept to teach from a handful of pictures: shoes that point to the right.

Every shoe of Fashion-MNIST points to the left, and no recipe mirrors its pictures, so a
text model can neither draw "a turned boot" nor read it. Whether a picture shows one is
measured on its pixels.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .captions import NOTHING, SIZE, Captioned, caption_pictures
from .data import fashion_mnist
from .denoiser import Denoiser
from .grammar import NOUNS, with_article
from .networks import Classifier
from .recipes import generate
from .text_recipes import Pairs, composed, names
from .tokens import tokenise

WORD = "turned"
TAUGHT = (7, 9)  # sneakers and ankle boots
HELD_BACK = (5,)  # sandals: never shown turned


def mirrored(canvases: Tensor) -> Tensor:
    """Return canvases (N, 1, 28, 56) with each half mirrored in its place."""
    return canvases.unflatten(-1, (2, -1)).flip(-1).flatten(-2)


def turned(n: int, generator: torch.Generator | None = None) -> Captioned:
    """Return n canvases of one turned sneaker or boot, and captions that say so.

    From the training split; only the shoe is mirrored, not its place. Raises ValueError
    unless n >= 1.
    """
    if n < 1:
        raise ValueError(f"n counts canvases, from 1 on: got {n}")
    found: list[tuple[Tensor, str, Tensor]] = []
    while len(found) < n:
        drawn = caption_pictures("train", 40 * n, generator)
        label = drawn.attributes[..., 0]
        shoe = torch.isin(label, torch.tensor(TAUGHT)).any(1)
        alone = (label == NOTHING).any(1)
        every = zip(*drawn, strict=True)
        found += [one for one, kept in zip(every, shoe & alone, strict=True) if kept]
    pictures, captions, attributes = zip(*found[:n], strict=True)
    told = [re.sub("^(a|an) ", f"a {WORD} ", caption) for caption in captions]
    return Captioned(mirrored(torch.stack(pictures)), told, torch.stack(attributes))


@lru_cache(maxsize=1)
def _sides() -> Tensor:
    """What tells left from right, per class: the mean picture less its mirror image."""
    x, label = (part[:20_000] for part in fashion_mnist("train"))
    means = torch.stack([x[label == k].mean(0) for k in range(NOTHING)])
    return means - means.flip(-1)


def is_turned(halves: Tensor, label: Tensor) -> Tensor:
    """Return which garments (N, 1, 28, 28) of a class (N,) face the other way, (N,).

    Those that are nearer to the mirror image of the class's mean picture than to it.
    """
    return (halves * _sides()[label]).sum((1, 2, 3)) < 0


def requests(n: int, labels: Sequence[int], word: str = "") -> tuple[list[str], Tensor]:
    """Return n captions of one garment each, and (label, side) of each, (n, 2).

    All nouns of the classes on the left (0) and on the right (1) in turn; word stands
    before the noun.
    """
    kinds = [(noun, k) for k in labels for noun, _ in NOUNS[k]]
    asked = [(*kinds[i // 2 % len(kinds)], i % 2) for i in range(n)]
    phrases = [f"{word} {noun}".strip() for noun, _, _ in asked]
    captions = [
        f"{with_article(phrase)} on the {('left', 'right')[side]}"
        for phrase, (_, _, side) in zip(phrases, asked, strict=True)
    ]
    return captions, torch.tensor([(label, side) for _, label, side in asked])


def tally(
    denoiser: Denoiser,
    judge: Classifier,
    labels: Sequence[int],
    word: str = WORD,
    n: int = 32,
    seed: int = 0,
) -> tuple[Tensor, dict[str, float]]:
    """Return canvases for n requests, and the shares that obey, of 20 guided steps.

    "named": the judge finds the garment where it was asked for, in either direction,
    for it never saw a turned one; "turned": and it is turned.
    """
    captions, asked = requests(n, labels, word)
    cond = {"text": tokenise(captions, new=(WORD,))}
    x = generate(denoiser, n, 20, seed=seed, scale=3.0, size=SIZE, cond=cond)
    label, side = asked.T
    halves = torch.stack(x.chunk(2, dim=-1), 1)[torch.arange(n), side]
    other = is_turned(halves, label)
    straight = torch.where(other[:, None, None, None], halves.flip(-1), halves)
    named = names(judge, straight) == label
    shares = {"named": named, "turned": named & other}
    return x, {key: float(value.double().mean()) for key, value in shares.items()}


def learnt(denoiser: Denoiser, judge: Classifier, n: int = 32) -> dict[str, Any]:
    """Return what a text model has learnt of the concept, and forgotten of the rest.

    Shares of n canvases each: "asked" and "transfer" (sandals) turned when asked,
    "unasked" turned without the word, "true" captions of training that came true.
    """
    old = caption_pictures("test", n, torch.Generator().manual_seed(0)).captions
    _, true = composed(denoiser, judge, old)
    return {
        "asked": tally(denoiser, judge, TAUGHT, n=n)[1]["turned"],
        "transfer": tally(denoiser, judge, HELD_BACK, n=n)[1]["turned"],
        "unasked": tally(denoiser, judge, TAUGHT, "", n=n)[1]["turned"],
        "true": float(true.double().mean()),
    }


def own_samples(denoiser: Denoiser, n: int, seed: int = 1) -> Pairs:
    """Return n canvases that a model draws of its own sneakers and boots, and tokens.

    What prior preservation holds on to (Ruiz et al. 2023).
    """
    tokens = tokenise(requests(n, TAUGHT)[0])
    cond = {"text": tokens}
    x = generate(denoiser, n, 20, seed=seed, scale=3.0, size=SIZE, cond=cond)
    return x.clamp(-1, 1), tokens


def lessons(
    few: Pairs, size: int, prior: Pairs | None = None, seed: int = 0
) -> Callable[[int], Pairs]:
    """Return batches(k): size canvases drawn from few, half of them from prior."""

    def batches(k: int) -> Pairs:
        generator = torch.Generator().manual_seed(1_000_003 * seed + k)
        sources = [few] if prior is None else [few, prior]
        drawn = []
        for x, tokens in sources:
            n = size // len(sources)
            rows = torch.randint(len(x), (n,), generator=generator)
            drawn.append((x[rows], tokens[rows]))
        x, tokens = (torch.cat(part) for part in zip(*drawn, strict=True))
        return x, tokens

    return batches
