"""A small convolutional classifier; its last hidden layer gives the metrics' features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Classifier(nn.Module):
    """classifier(x (B, C, 28, 28)) -> logits (B, classes); .features(x) -> (B, dim).

    faults: number of kinds of damage it also learns to name, by .fault_logits(x).
    """

    def __init__(
        self,
        classes: int = 10,
        faults: int = 0,
        width: int = 48,
        dim: int = 64,
        channels: int = 1,
    ):
        super().__init__()
        self.channels = channels
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.SiLU(),
            *_stage(16, width),
            *_stage(width, 2 * width),
            nn.Flatten(),
        )
        self.hidden = nn.Linear(2 * width * 7 * 7, dim)
        self.head = nn.Linear(dim, classes)
        self.fault_head = nn.Linear(dim, faults) if faults else None
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("whiten", torch.eye(dim))

    def features(self, x: Tensor) -> Tensor:
        """Return the last hidden layer, whitened once trained, (B, dim)."""
        return (self._hidden(x) - self.mean) @ self.whiten

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the classes, (B, classes)."""
        return self.head(F.silu(self._hidden(x)))

    def fault_logits(self, x: Tensor) -> Tensor:
        """Return the logits of the kinds of damage, (B, faults)."""
        return self.fault_head(F.silu(self._hidden(x)))

    def _hidden(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1:] != (self.channels, 28, 28):
            raise ValueError(
                f"expected pictures (B, {self.channels}, 28, 28), got {tuple(x.shape)}"
            )
        return self.hidden(self.body(x))


def _stage(channels: int, out: int) -> list[nn.Module]:
    """Half the resolution, then two more convolutions."""
    return [
        nn.Conv2d(channels, out, 4, stride=2, padding=1),
        nn.GroupNorm(8, out),
        nn.SiLU(),
        nn.Conv2d(out, out, 3, padding=1),
        nn.GroupNorm(8, out),
        nn.SiLU(),
    ]
