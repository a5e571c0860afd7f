"""The two classifiers: the scorer behind the metrics, and one that reads noise."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import data
from .checkpoints import Spec
from .guidance import label_log_prob
from .networks import Classifier, NoisyClassifier
from .process import q_sample
from .recipes import RECIPES, Recipe
from .schedules import cosine_schedule

FAULTS = ("none", "mirrored", "blurred", "noisy", "mixed", "contrast")
NOISING = cosine_schedule()  # of the noisy classifier, and of fashion-unet


def scorer_loss(classifier: Classifier, batch: tuple[Tensor, Tensor]):
    """Name the garment, and (weight 0.2) the damage done to half of the pictures, (B,).

    Garments alone give a classifier little reason to keep sharpness or side. Mirrored,
    blurred and noisy pictures are among the damage it is shown, so that it tells them
    from real ones is by training; faults of other kinds were not tried.
    """
    x, label = batch
    x, fault = damaged(x)
    label_logits, fault_logits = classifier.both(x)
    garment = F.cross_entropy(label_logits, label, reduction="none")
    return garment + 0.2 * F.cross_entropy(fault_logits, fault, reduction="none")


def damaged(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return pictures, half of them damaged, and the kind of each (FAULTS), (B,)."""
    from torchvision.transforms.functional import gaussian_blur  # slow to import

    kind = torch.arange(len(x), device=x.device) % 10
    kind = torch.where(kind < len(FAULTS), kind, 0)
    x, sigma = x.clone(), 0.3 + 0.9 * torch.rand(1).item()

    def strength(part):
        return torch.rand(len(part), 1, 1, 1).to(part)

    def change(fault, how):
        rows = kind == FAULTS.index(fault)
        x[rows] = how(x[rows]).clamp(-1, 1)

    change("mirrored", lambda part: part.flip(-1))
    change("blurred", lambda part: gaussian_blur(part, 7, sigma))
    change("noisy", lambda p: p + 0.3 * strength(p) * torch.randn(p.shape).to(p))
    change("mixed", lambda p: torch.lerp(p, p.roll(1, 0), 0.15 + 0.35 * strength(p)))
    change("contrast", lambda p: (p + 1) * (1.2 * (strength(p) - 0.5)).exp() - 1)
    return x, kind


@torch.no_grad()
def scorer_facts(classifier: Classifier, x: Tensor) -> dict[str, Any]:
    """Return the features' root mean square on training pictures, and test accuracy."""
    features = torch.cat([classifier.features(part) for part in x[:10_000].split(500)])
    test, label = data.fashion_mnist("test")
    guess = torch.cat([classifier(part).argmax(1) for part in test.split(500)])
    return {
        "feature_scale": float(features.double().pow(2).mean().sqrt()),
        "test_accuracy": float((guess == label).double().mean()),
    }


def noisy_classifier_loss(
    classifier: NoisyClassifier, batch: tuple[Tensor, Tensor]
) -> Tensor:
    """Name the garment under noise, at times uniform in 1 .. T, (B,)."""
    x0, label = batch
    t = NOISING.random_times(len(x0))
    x = q_sample(NOISING, x0, t, torch.randn_like(x0))
    return -label_log_prob(classifier, NOISING, label)(x, t)


@torch.no_grad()
def noisy_classifier_facts(classifier: NoisyClassifier, x: Tensor) -> dict[str, Any]:
    """Return the accuracy at ten times on the first 2,000 test pictures."""
    test, label = (part[:2000] for part in data.fashion_mnist("test"))
    eps = torch.randn(test.shape, generator=torch.Generator().manual_seed(0))
    found = {}
    for t in range(100, 1001, 100):
        noisy = q_sample(NOISING, test, t, eps)
        u = NOISING.embed_at(t, test)
        parts = zip(noisy.split(500), u.split(500), strict=True)
        guess = torch.cat([classifier(*part).argmax(1) for part in parts])
        found[str(t)] = float((guess == label).double().mean())
    return {"accuracy_at": found}


RECIPES |= {
    "fashion-classifier": Recipe(
        Spec("Classifier", {"faults": len(FAULTS)}),
        scorer_loss,
        batch=128,
        steps=1500,
        settings={"precision": "bf16", "ema": 0.995},
        note="the scorer: 10 garments and 6 kinds of damage; features for the metrics",
        facts=scorer_facts,
    ),
    "fashion-noisy-classifier": Recipe(
        Spec("NoisyClassifier"),
        noisy_classifier_loss,
        batch=128,
        steps=2000,
        settings={"precision": "bf16", "ema": 0.995},
        note="names garments under the cosine schedule's noise; guides by its gradient",
        facts=noisy_classifier_facts,
    ),
}
