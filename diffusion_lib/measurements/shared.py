"""What the measurements share: where they run, what they count and score."""

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .. import metrics
from ..denoiser import Denoiser
from ..recipes import generate

Report = Callable[[str], None]


def device() -> str:
    """Return "cuda" where there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def painted_scores(
    denoiser: Denoiser, n: int, seed: int, label: torch.Tensor | None = None
) -> dict[str, float]:
    """Return the scores of n pictures of 20 calls, painted in bfloat16.

    label: (n,), or None for pictures without labels.
    """
    with torch.autocast(device(), torch.bfloat16):
        pictures = generate(denoiser.eval(), n, 20, label, seed)
    return metrics.scores(pictures.float().clamp(-1, 1))


def operations(net: nn.Module) -> int:
    """Return the floating-point operations of one call for one 28 x 28 picture."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 1, 28, 28), torch.zeros(1))
    return counter.get_total_flops()
