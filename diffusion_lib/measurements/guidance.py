"""What guidance buys and what it costs, against its scale, and what remedies mend.

Interrupted, the measurement goes on where it was.
"""

import copy
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import checkpoints, metrics
from ..data import fashion_mnist
from ..denoiser import Denoiser
from ..guidance import (
    Denoise,
    classifier_free,
    classifier_guided,
    clip_x0,
    dynamic_threshold,
    extrapolated,
    given,
    label_log_prob,
    within,
)
from ..recipes import sampling_times
from ..samplers import dpmpp_2m_step, sample
from .runs import each_run, seed_by_seed
from .shared import Report, device

N, SEEDS, STEPS, BATCH = 300, 3, 20, 150
INTERVAL, SHARE = (0.2, 5.0), 0.7  # in sigma / alpha; of the rescaling
DAMAGE = 0.05  # of the worse model's weights

Build = Callable[[Denoiser, Tensor, float], Denoise]


def free(denoiser: Denoiser, label: Tensor, scale: float) -> Denoise:
    """Classifier-free guidance at every step."""
    return classifier_free(denoiser, {"label": label}, scale)


def in_interval(denoiser: Denoiser, label: Tensor, scale: float) -> Denoise:
    """Classifier-free guidance in INTERVAL, the label alone elsewhere."""
    alone, guided = given(denoiser, {"label": label}), free(denoiser, label, scale)
    return within(guided, alone, denoiser.schedule, *INTERVAL)


def rescaled(denoiser: Denoiser, label: Tensor, scale: float) -> Denoise:
    """Classifier-free guidance, the deviation brought back by the share SHARE."""
    return classifier_free(denoiser, {"label": label}, scale, rescale=SHARE)


def by_classifier(denoiser: Denoiser, label: Tensor, scale: float) -> Denoise:
    """The net without a label, guided by the shipped classifier of noisy pictures."""
    classifier = checkpoints.load("fashion-noisy-classifier", label.device)
    log_prob = label_log_prob(
        classifier.requires_grad_(False), denoiser.schedule, label
    )
    blind = given(denoiser, denoiser.null({"label": label}))
    return classifier_guided(blind, denoiser.schedule, log_prob, scale)


def clipped(denoiser: Denoiser, label: Tensor, scale: float) -> Denoise:
    """Classifier-free guidance, the answer clipped to [-1, 1]."""
    return clip_x0(free(denoiser, label, scale))


def thresholded(denoiser: Denoiser, label: Tensor, scale: float) -> Denoise:
    """Classifier-free guidance, the answer's range brought back to [-1, 1]."""
    return dynamic_threshold(free(denoiser, label, scale))


def by_a_worse_model(denoiser: Denoiser, label: Tensor, scale: float) -> Denoise:
    """Autoguidance: away from the same net with DAMAGE on its weights."""
    nets = denoiser, worse(denoiser, DAMAGE)
    good, bad = (given(net, {"label": label}) for net in nets)
    return extrapolated(good, bad, scale)


@torch.no_grad()
def worse(denoiser: Denoiser, amount: float, seed: int = 0) -> Denoiser:
    """Return a copy, each weight changed by a share drawn from N(0, amount^2)."""
    bad, generator = copy.deepcopy(denoiser), torch.Generator().manual_seed(seed)
    for weight in bad.parameters():
        change = torch.randn(weight.shape, generator=generator).to(weight)
        weight.mul_(1 + amount * change)
    return bad


WAYS: dict[str, tuple[Build, tuple[float, ...]]] = {  # and at which scales
    "classifier-free": (free, (0, 1, 1.5, 2, 4, 8)),
    "interval": (in_interval, (2, 4, 8)),
    "rescaled": (rescaled, (2, 4, 8)),
    "classifier": (by_classifier, (1, 2, 4, 8)),
    "clipped": (clipped, (8,)),
    "dynamic": (thresholded, (8,)),
    "worse model": (by_a_worse_model, (1.5,)),
}
ROWS = {
    f"{way}, scale {scale:g}": (way, scale)
    for way, (_, scales) in WAYS.items()
    for scale in scales
}


@lru_cache(maxsize=1)
def _real() -> tuple[float, float]:
    """The features' variance within a class, and a picture's deviation, when real."""
    pictures, label = (part[:2000] for part in fashion_mnist("test"))
    spread = variance_within(metrics.features(pictures), label)
    return spread, float(pictures.flatten(1).std(1).mean())


def variance_within(features: Tensor, label: Tensor) -> float:
    """Return the total variance of features (N, D) within a class, its mean.

    Unbiased at any number of pictures. Raises ValueError for a class with one.
    """
    classes = [features[label == k] for k in label.unique()]
    if min(len(rows) for rows in classes) < 2:
        raise ValueError("a variance needs two pictures or more of each class")
    return sum(float(rows.var(0).sum()) for rows in classes) / len(classes)


def obedience(pictures: Tensor, label: Tensor) -> dict[str, float]:
    """Return what guidance changes, of pictures (N, 1, 28, 28) asked for by label.

    accuracy: the share that the scorer names as asked; diversity: features' variance
    within a class, and contrast: a picture's deviation, both over real pictures';
    outside: the share of values beyond 1.05.
    """
    shown = pictures.float().clamp(-1, 1)
    spread, deviation = _real()
    named = metrics.classify(shown).argmax(1)
    return {
        "accuracy": float((named == label).double().mean()),
        "diversity": variance_within(metrics.features(shown), label) / spread,
        "contrast": float(shown.flatten(1).std(1).mean()) / deviation,
        "outside": float((pictures.abs() > 1.05).double().mean()),
    }


def guided(build: Build, scale: float, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return n pictures (n, 1, 28, 28), not clipped, and the labels asked for."""
    denoiser = checkpoints.load("fashion-unet", device())
    schedule, label = denoiser.schedule, torch.arange(n) % 10
    noise = schedule.noise((n, 1, 28, 28), torch.Generator().manual_seed(seed))
    times, parts = sampling_times(schedule, STEPS), []
    for part in torch.arange(n).split(BATCH):
        x, wanted = noise[part].to(device()), label[part].to(device())
        with torch.autocast(device(), torch.bfloat16):
            denoise = build(denoiser, wanted, scale)
            x = sample(denoise, schedule, x, times, dpmpp_2m_step)
        parts.append(x.float().cpu())
    return torch.cat(parts), label


def guidance_study(report: Report) -> Iterator[dict[str, Any]]:
    """Score N pictures of fashion-unet, each way and scale; yields after every run."""
    found = {"n": N, "seeds": SEEDS, "steps": STEPS}

    def one_run(row: str, seed: int) -> dict[str, Any]:
        way, scale = ROWS[row]
        pictures, label = guided(WAYS[way][0], scale, N, seed)
        found = {"way": way, "scale": scale, **obedience(pictures, label)}
        shown = pictures.clamp(-1, 1)
        return {**found, "asked": asked_for(shown, label), **metrics.scores(shown)}

    yield from each_run("guidance", found, seed_by_seed(ROWS, SEEDS), one_run, report)


def asked_for(pictures: Tensor, label: Tensor) -> list[float]:
    """Return the scorer's mean probability of the label asked for, each garment."""
    given_ = metrics.classify(pictures)[torch.arange(len(label)), label]
    return [float(given_[label == k].mean()) for k in range(10)]
