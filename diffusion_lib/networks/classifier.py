"""A small convolutional classifier; its hidden layer gives the metrics' features."""

import torch.nn.functional as F
from torch import Tensor, nn


class Classifier(nn.Module):
    """classifier(x (B, C, 28, 28)) -> logits (B, classes); .features(x) -> (B, dim).

    faults: number of kinds of damage it also learns to name, see .both(x).
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
            *stage(16, width),
            *stage(width, 2 * width),
            nn.Flatten(),
        )
        self.hidden = nn.Linear(2 * width * 7 * 7, dim)
        self.head = nn.Linear(dim, classes)
        self.fault_head = nn.Linear(dim, faults) if faults else None

    def features(self, x: Tensor) -> Tensor:
        """Return the last hidden layer, before its nonlinearity, (B, dim)."""
        if x.ndim != 4 or x.shape[1:] != (self.channels, 28, 28):
            raise ValueError(
                f"expected pictures (B, {self.channels}, 28, 28), got {tuple(x.shape)}"
            )
        return self.hidden(self.body(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the classes, (B, classes)."""
        return self.head(F.silu(self.features(x)))

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the classes and of the kinds of damage, (B, faults)."""
        if self.fault_head is None:
            raise ValueError("this classifier was built with faults=0")
        h = F.silu(self.features(x))
        return self.head(h), self.fault_head(h)


def stage(channels: int, out: int) -> list[nn.Module]:
    """Half the resolution, then two more convolutions."""
    return [
        nn.Conv2d(channels, out, 4, stride=2, padding=1),
        nn.GroupNorm(8, out),
        nn.SiLU(),
        nn.Conv2d(out, out, 3, padding=1),
        nn.GroupNorm(8, out),
        nn.SiLU(),
    ]
