"""A multilayer perceptron: for toy data, and the baseline of many first tutorials."""

import torch
from torch import Tensor, nn

from .blocks import Cond, TimeEmbedding


class MLP(nn.Module):
    """net(x (B, ...), u (B,)) -> (B, ...) by fully connected layers on flattened x.

    size: number of values per example; the time embedding is joined to the input.
    Raises ValueError if x has another number of values.
    """

    def __init__(self, size: int, width: int = 256, layers: int = 3, dim: int = 64):
        super().__init__()
        self.size = size
        self.time = TimeEmbedding(dim)
        widths = [size + dim] + [width] * layers
        hidden = [
            part
            for i in range(layers)
            for part in (nn.Linear(widths[i], widths[i + 1]), nn.SiLU())
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, size))

    def forward(self, x: Tensor, u: Tensor, cond: Cond | None = None) -> Tensor:
        """Return the net's output, shaped as x; it takes no condition."""
        if cond:
            raise ValueError("the MLP takes no condition: cond must be None")
        flat = x.flatten(1)
        if flat.shape[1] != self.size:
            raise ValueError(f"expected {self.size} values, got {flat.shape[1]}")
        return self.layers(torch.cat([flat, self.time(u)], dim=1)).reshape(x.shape)
