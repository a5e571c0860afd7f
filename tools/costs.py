"""Count the network calls and FLOPs of a page while the book is built.

The build copies this file into the start-up folder of the kernels it starts; the
library knows nothing of it. A network call is the outermost call of a module that
has parameters (a Denoiser only hands on to its network, so it is looked through).
FLOPs are counted on the first call with each shape, and taken three times where a
gradient will be asked for (one forward pass, twice that for the backward pass).
"""

import json
import os
import sys
from pathlib import Path

import torch
from IPython import get_ipython
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils.flop_counter import FlopCounterMode


class Costs:
    """Hooks on every module; `calls` and `flops` add up over the page."""

    def __init__(self) -> None:
        self.calls, self.flops = 0, 0
        self.outermost, self.counter = None, None
        self.known: dict[tuple, int] = {}  # (network, shapes, gradient) -> FLOPs
        register_module_forward_pre_hook(self.enter)
        register_module_forward_hook(self.leave, always_call=True)

    def enter(self, module, inputs):
        """Begin a call; measure it if its shapes are new."""
        if self.outermost is not None or type(module).__name__ == "Denoiser":
            return
        size = sum(p.numel() for p in module.parameters())
        if not size:
            return
        self.close()
        self.outermost = module
        shapes = [tuple(x.shape) for x in inputs if isinstance(x, torch.Tensor)]
        self.key = (type(module).__name__, size, str(shapes), torch.is_grad_enabled())
        if self.key not in self.known:
            self.counter = FlopCounterMode(display=False).__enter__()

    def leave(self, module, inputs, output):
        """End the outermost call and add it up, unless it failed."""
        if module is not self.outermost:
            return
        self.outermost = None
        if sys.exc_info()[0] is not None:
            return  # PyTorch is going through the hooks that `close` would take away
        if self.counter is not None:
            self.known[self.key] = self.counter.get_total_flops()
        self.close()
        gradient = isinstance(output, torch.Tensor) and output.requires_grad
        self.calls += 1
        self.flops += self.known[self.key] * (3 if gradient else 1)

    def close(self) -> None:
        """Measure no longer."""
        if self.counter is not None:
            self.counter.__exit__(None, None, None)
        self.counter = None

    def write(self, *_) -> None:
        """Leave the sums where the build looks for them (after each cell)."""
        sums = {"calls": self.calls, "flops": self.flops}
        Path(os.environ["DIFFUSION_COURSE_COSTS"]).write_text(json.dumps(sums))


if "DIFFUSION_COURSE_COSTS" in os.environ:
    get_ipython().events.register("post_run_cell", Costs().write)
