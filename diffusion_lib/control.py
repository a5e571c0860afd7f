"""Pictures from line drawings: a control of fashion-unet, trained on Sobel edges."""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checkpoints, metrics
from .checkpoints import Spec
from .data import fashion_mnist
from .denoiser import Denoiser
from .losses import denoising_loss, dropped
from .networks import Control, Controlled
from .recipes import RECIPES, Recipe, focused_times, generate

BASE = "fashion-unet"
STRONG = 0.15  # slope, in brightness from 0 to 1 per pixel, from which it is an edge


def edges(x: Tensor) -> Tensor:
    """Return 1 where pictures (B, C, H, W) have an edge, else 0, (B, 1, H, W).

    Where the slope of the mean over channels, by Sobel's two filters, is above STRONG.
    """
    value = (x.mean(1, keepdim=True).clamp(-1, 1) + 1) / 2
    across = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]).to(x) / 8
    filters = torch.stack([across, across.T])[:, None]
    slopes = F.conv2d(F.pad(value, (1, 1, 1, 1), mode="replicate"), filters)
    return (slopes.norm(dim=1, keepdim=True) > STRONG).to(x)


def agreement(x: Tensor, asked: Tensor) -> Tensor:
    """Return the F1 score of the edges of pictures with those asked for, (B,).

    The harmonic mean of two shares: of the edges found that were asked for, and of
    those asked for that were found. 1 for equal edges, also where there are none.
    """
    found = edges(x)
    both, either = (found * asked).flatten(1).sum(1), (found + asked).flatten(1).sum(1)
    return torch.where(either > 0, 2 * both / either.clamp(min=1), 1.0)


def controlled(base: Denoiser, control: Control, strength: float = 1.0) -> Denoiser:
    """Return the denoiser with control added; cond {"hint": edges(x)} asks for edges.

    The base's weights are shared, not copied.
    """
    net = Controlled(base.net, control, strength)
    return Denoiser(net, base.schedule, base.prediction, base.data_std, base.decoder)


def load_controlled(name: str = "fashion-control", strength: float = 1.0) -> Denoiser:
    """Return a shipped control, or a file, on the base that it was trained on.

    Raises ValueError if the base's weights have changed since.
    """
    told = checkpoints.facts(name)
    base = checkpoints.load(told["base"])
    checkpoints.expect(base, told["base_hash"], f"{name} was trained on {told['base']}")
    return controlled(base, checkpoints.load(name), strength).eval()


@lru_cache(maxsize=1)
def _frozen(device: torch.device) -> Denoiser:
    return checkpoints.load(BASE, device).requires_grad_(False)


def copy_of_base() -> Control:
    """Return the control to begin with: the base's encoder, and nothing added."""
    control = RECIPES["fashion-control"].spec.build()
    control.copy_encoder(_frozen(torch.device("cpu")).net)
    return control


def control_loss(
    control: Control, batch: tuple[Tensor, Tensor], drop: float = 0.5, half: bool = True
) -> Tensor:
    """The denoising loss of the controlled base on (pictures, labels), (B,).

    The hint is the picture's own edges. Half of the labels are dropped, so that the
    edges alone must often do. half: run the frozen base in bfloat16, too.
    """
    x0, label = batch
    denoiser = controlled(_frozen(x0.device), control)
    cond = dropped(denoiser, {"label": label, "hint": edges(x0)}, drop)
    times = focused_times(denoiser.schedule, len(x0))
    with torch.autocast(x0.device.type, torch.bfloat16, enabled=half):
        return denoising_loss(denoiser, x0, cond, times)


def control_facts(control: Control, x: Tensor, n: int = 500) -> dict[str, Any]:
    """Return how well n test pictures' edges are obeyed, with the control and without.

    Both from the same noise and the same labels, in 20 calls; "recognised" is the share
    that the scorer names as asked.
    """
    base = _frozen(torch.device("cpu"))
    test, label = (part[:n] for part in fashion_mnist("test"))
    asked, rows = edges(test), {}
    for name, strength in (("controlled", 1.0), ("not controlled", 0.0)):
        net = controlled(base, control, strength)
        pictures = generate(net, n, label=label, cond={"hint": asked})
        named = metrics.classify(pictures).argmax(1)
        rows[name] = {
            "edge_f1": float(agreement(pictures, asked).double().mean()),
            "recognised": float((named == label).double().mean()),
        }
    return {"base": BASE, "base_hash": checkpoints.fingerprint(base), "obeyed": rows}


RECIPES["fashion-control"] = Recipe(
    Spec("Control", {"unet": {"classes": 10}}),
    control_loss,
    batch=128,
    steps=1600,
    settings={"precision": "bf16", "ema": 0.995, "rate": 1e-3},
    note="edges for fashion-unet, which stays as it is; half of the labels dropped",
    facts=control_facts,
    make=copy_of_base,
)
