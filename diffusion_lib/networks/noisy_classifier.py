"""A classifier of noisy pictures, for guidance by its gradient."""

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import ResBlock, TimeEmbedding


class NoisyClassifier(nn.Module):
    """classifier(x_t (B, C, H, W), u (B,)) -> logits (B, classes), at any noise.

    u: the time as the denoiser's net is told it. Halves the resolution twice, as the
    U-Net's way down does (Dhariwal and Nichol 2021), then takes the mean over places.
    """

    def __init__(
        self, classes: int = 10, width: int = 32, dim: int = 64, channels: int = 1
    ):
        super().__init__()
        self.channels, self.classes = channels, classes
        self.time = TimeEmbedding(dim)
        self.enter = nn.Conv2d(channels, width, 4, stride=2, padding=1)
        self.first = ResBlock(width, 2 * width, dim)
        self.shrink = nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1)
        self.second = ResBlock(2 * width, 4 * width, dim)
        self.norm = nn.GroupNorm(8, 4 * width)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """Return the logits of the classes, (B, classes)."""
        if x.ndim != 4 or x.shape[1] != self.channels or u.shape != x.shape[:1]:
            raise ValueError(
                f"expected pictures (B, {self.channels}, H, W) and times (B,), got "
                f"{tuple(x.shape)} and {tuple(u.shape)}"
            )
        h = self.maps(x, u)[-1]
        return self.head(F.silu(self.norm(h)).mean((2, 3)))

    def maps(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features at half and at a quarter of the resolution."""
        e = F.silu(self.time(u))
        half = self.first(self.enter(x), e)
        return half, self.second(self.shrink(half), e)
