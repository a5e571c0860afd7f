"""The recipes that need captions: CLIP, a judge of compositions, text to picture."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checkpoints
from .captions import (
    NOTHING,
    SIZE,
    caption_pictures,
    seen_on,
    true_of,
)
from .checkpoints import Spec
from .data import fashion_mnist
from .denoiser import Denoiser
from .grammar import NOUNS, with_article
from .losses import denoising_loss, dropped
from .networks import CLIP, Classifier
from .recipes import RECIPES, Recipe, focused_times, generate
from .tokens import VOCABULARY, tokenise

Pairs = tuple[Tensor, Tensor]  # canvases (B, 1, 28, 56) and tokens (B, L)
JUDGE = "fashion-attributes"


def captioned(size: int, seed: int = 0) -> Callable[[int], Pairs]:
    """Return batches(k): canvases that training may see, and their captions' tokens.

    Every batch is composed anew; the same seed and k give the same one.
    """

    def batches(k: int) -> Pairs:
        generator = torch.Generator().manual_seed(1_000_003 * seed + k)
        drawn = caption_pictures("train", size, generator)
        return drawn.pictures, tokenise(drawn.captions)

    return batches


def captioned_for_the_judge(size: int, seed: int = 0) -> Callable[[int], Pairs]:
    """Return `captioned`, or raise ValueError now if `text_facts` would lack its judge.

    An hour of training would be over before that was noticed.
    """
    checkpoints.facts(JUDGE)
    return captioned(size, seed)


def contrastive_loss(clip: CLIP, batch: Pairs) -> Tensor:
    """Find each picture's caption among the batch's, and each caption's picture, (B,).

    The symmetric cross-entropy of Radford et al. (2021), figure 3; log B for a guess.
    """
    logits = clip(*batch)
    own = torch.arange(len(logits), device=logits.device)
    of_pictures = F.cross_entropy(logits, own, reduction="none")
    return (of_pictures + F.cross_entropy(logits.T, own, reduction="none")) / 2


def text_loss(denoiser: Denoiser, batch: Pairs, drop: float = 0.15) -> Tensor:
    """The denoising loss on canvases and captions, a share of these dropped, (B,)."""
    x0, tokens = batch
    cond = dropped(denoiser, {"text": tokens}, drop)
    return denoising_loss(denoiser, x0, cond, focused_times(denoiser.schedule, len(x0)))


def attribute_loss(judge: Classifier, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Name the garment of each picture, or nothing where it was wiped out, (B,).

    One picture in eleven is; all are under a little noise, for a generated half is
    never as even as a real one.
    """
    x, label = batch
    wiped = torch.arange(len(x), device=x.device) % (NOTHING + 1) == 0
    x = torch.where(wiped[:, None, None, None], -1.0, x)
    strength = 0.1 * torch.rand(len(x), 1, 1, 1).to(x)
    logits = judge(x + strength * torch.randn(x.shape).to(x))
    return F.cross_entropy(logits, label.where(~wiped, NOTHING), reduction="none")


@torch.no_grad()
def names(judge: Classifier, halves: Tensor) -> Tensor:
    """Return the judge's labels of halves (N, 1, 28, 28), NOTHING for empty, (N,).

    In float32, also within torch.autocast.
    """
    with torch.autocast(halves.device.type, enabled=False):
        parts = halves.float().split(500)
        return torch.cat([judge(part).argmax(1) for part in parts])


def judged(judge: Classifier, canvases: Tensor) -> Tensor:
    """Return labels by the judge, and looks by the pixels, of canvases, (B, 2, 3)."""
    return seen_on(canvases, lambda halves: names(judge, halves))


def attribute_facts(judge: Classifier, x: Tensor) -> dict[str, Any]:
    """Return the judge's accuracy on test pictures, and on both halves of canvases."""
    test, label = fashion_mnist("test")
    drawn = caption_pictures("test", 1000, torch.Generator().manual_seed(0))
    seen = judged(judge, drawn.pictures)
    whole = (seen[..., 0] == drawn.attributes[..., 0]).all(1)
    return {
        "test_accuracy": _share(names(judge, test) == label),
        "canvas_accuracy": _share(whole),
    }


def retrieved(logits: Tensor, right: Tensor, k: int) -> float:
    """Return the share of rows with a right column among the k highest logits.

    logits: (N, M); right: (N, M) bool.
    """
    return _share(right.gather(1, logits.topk(k, dim=1).indices).any(1))


@torch.no_grad()
def clip_facts(clip: CLIP, x: Tensor) -> dict[str, Any]:
    """Return retrieval among 1,000 test canvases, and classification by captions.

    Equal captions count as one another's; "true" is the share of canvases for which the
    first caption found is true, be it their own or not. Zero-shot: one test picture on
    the left, "a ..." with the ten classes' first nouns.
    """
    drawn = caption_pictures("test", 1000, torch.Generator().manual_seed(0))
    texts = drawn.captions
    logits = _logits(clip, drawn.pictures, texts)
    same = torch.tensor([[one == other for other in texts] for one in texts])
    best = [texts[j] for j in logits.argmax(1)]
    test, label = (part[:2000] for part in fashion_mnist("test"))
    alone = torch.cat([test, torch.full_like(test, -1.0)], dim=3)
    prompts = [with_article(nouns[0][0]) for nouns in NOUNS]
    guess = _logits(clip, alone, prompts).argmax(1)
    return {
        "retrieval": {
            f"{name} at {k}": retrieved(table, right, k)
            for name, table, right in (
                ("caption", logits, same),
                ("picture", logits.T, same.T),
            )
            for k in (1, 5)
        },
        "caption_true": _share(true_of(best, drawn.attributes)),
        "zero_shot_accuracy": _share(guess == label),
        "words": VOCABULARY,
    }


def _logits(clip: CLIP, pictures: Tensor, captions: list[str]) -> Tensor:
    tokens = tokenise(captions)
    return torch.cat([clip(part, tokens) for part in pictures.split(250)])


def painted(
    denoiser: Denoiser,
    captions: list[str],
    scale: float = 3.0,
    calls: int = 20,
    seed: int = 0,
) -> Tensor:
    """Return a canvas for each caption, (N, 1, 28, 56); see `recipes.generate`."""
    return generate(
        denoiser,
        len(captions),
        calls,
        seed=seed,
        scale=scale,
        size=SIZE,
        cond={"text": tokenise(captions)},
    )


def composed(
    denoiser: Denoiser,
    judge: Classifier,
    captions: list[str],
    scale: float = 3.0,
    calls: int = 20,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return `painted` canvases, and whether each caption is true of its canvas, (N,).

    The judge names the garments; brightness and shape are measured on the pixels.
    """
    pictures = painted(denoiser, captions, scale, calls, seed)
    return pictures, true_of(captions, judged(judge, pictures))


def text_facts(denoiser: Denoiser, x: Tensor) -> dict[str, Any]:
    """Return how often 100 captions of each kind come true, and on real canvases.

    Kinds: as in training, held-out looks, held-out pairs; the judge is the shipped
    fashion-attributes, whose own errors the real canvases show.
    """
    judge, found = checkpoints.load(JUDGE), {}
    for kind in (None, "looks", "pairs"):
        generator = torch.Generator().manual_seed(0)
        real = caption_pictures("test", 100, generator, kind)
        _, right = composed(denoiser, judge, real.captions)
        found[kind or "seen"] = {
            "generated": _share(right),
            "real": _share(true_of(real.captions, judged(judge, real.pictures))),
        }
    return {"captions_true": found, "size": list(SIZE), "words": VOCABULARY}


def _share(right: Tensor) -> float:
    return float(right.double().mean())


RECIPES |= {
    JUDGE: Recipe(
        Spec("Classifier", {"classes": NOTHING + 1}),
        attribute_loss,
        batch=128,
        steps=1500,
        settings={"precision": "bf16", "ema": 0.995},
        note="the judge of compositions: names the garment on half a canvas",
        facts=attribute_facts,
    ),
    "fashion-clip": Recipe(
        Spec("CLIP", {"words": len(VOCABULARY)}),
        contrastive_loss,
        batch=256,
        steps=2000,
        settings={"precision": "bf16", "ema": 0.995, "rate": 1e-3},
        note="canvases and captions in one space; held-out compositions never shown",
        facts=clip_facts,
        batches=captioned,
    ),
    "fashion-text": Recipe(
        Spec(
            "UNet",
            {"text": {"words": len(VOCABULARY)}},
            "cosine_schedule",
            {"T": 1000},
            "v",
        ),
        text_loss,
        batch=96,
        steps=3400,
        settings={"precision": "bf16", "ema": 0.998},
        note="canvases from captions, 15% dropped, from fresh weights: a start from "
        "fashion-unet's would have seen the held-out looks",
        facts=text_facts,
        batches=captioned_for_the_judge,
    ),
}
