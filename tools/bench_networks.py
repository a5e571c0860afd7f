"""The networks that `bench` compares, and how their speed is measured."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import diffusion_lib as dl
from diffusion_lib.measurements import peers
from diffusion_lib.recipes import RECIPES

PRECISIONS = {"f32": torch.float32, "bf16": torch.bfloat16}
RECIPE = RECIPES["fashion-unet"]

Key = tuple[str, str, str]  # what is measured, whose, in which precision or form
Tasks = dict[Key, Callable[[], float]]


@dataclass(frozen=True)
class Size:
    """How much is measured: pictures a batch, timed steps, rounds."""

    batch: int = 128
    steps: int = 2
    rounds: int = 5
    overhead_rounds: int = 31


@dataclass(frozen=True)
class Network:
    """A module, its own training loss (module, batch), its net's output at x."""

    module: nn.Module
    loss: Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]
    output: Callable[[Tensor], Tensor]


def networks() -> dict[str, Network]:
    """Return the contestants by name, ours first."""
    denoiser, (diffusers, lucidrains, smalldiffusion) = (
        RECIPE.spec.build(),
        (
            peers.of_diffusers(),
            peers.of_lucidrains(),
            peers.of_smalldiffusion(),
        ),
    )
    unet = lucidrains.module.model
    half = lambda x: torch.full((len(x), 1, 1, 1), 0.5)  # noqa: E731
    return {
        "ours": Network(
            denoiser, RECIPE.loss, lambda x: denoiser.net(x, torch.rand(len(x)))
        ),
        "diffusers": Network(
            diffusers.module,
            diffusers.loss,
            lambda x: diffusers.module(x, torch.arange(len(x))).sample,
        ),
        "denoising-diffusion-pytorch": Network(
            lucidrains.module,
            lucidrains.loss,
            lambda x: unet(x, torch.arange(len(x))),
        ),
        "smalldiffusion": Network(
            smalldiffusion.module,
            smalldiffusion.loss,
            lambda x: smalldiffusion.module(x, half(x)),
        ),
    }


def costs(network: Network) -> tuple[float, float]:
    """Return millions of parameters, and GFLOP a picture of a forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.output(torch.randn(2, 1, 28, 28))
    millions = sum(p.numel() for p in network.module.parameters()) / 1e6
    return millions, counter.get_total_flops() / 2e9


def network_tasks(contestants: dict[str, Network], size: Size) -> Tasks:
    """Return what measures the matrix product, training and inference."""
    n = 5 * size.batch
    x = 2 * torch.rand(n, 1, 28, 28) - 1
    batches = dl.shuffled(x, torch.randint(0, 10, (n,)), size=size.batch)
    tasks: Tasks = {}
    for precision, dtype in PRECISIONS.items():
        tasks["limit", "", precision] = partial(matrix_product, dtype)
        tasks["training", "ours", precision] = partial(
            our_training, batches, dtype, size
        )
        for name, one in contestants.items():
            row = f"{name}, bare loop" if name == "ours" else name
            tasks["training", row, precision] = partial(bare, one, batches, dtype, size)
            tasks["inference", name, precision] = partial(infer, one, dtype, size)
    return tasks


def matrix_product(dtype: torch.dtype, n: int = 2048, repeats: int = 3) -> float:
    """Return the GFLOP/s of a large matrix product, the machine's practical limit."""
    a, b = torch.randn(n, n, dtype=dtype), torch.randn(n, n, dtype=dtype)
    seconds = timed(lambda: [a @ b for _ in range(repeats)])
    return 2e-9 * n**3 * repeats / seconds


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that work() takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def our_training(batches, dtype: torch.dtype, size: Size) -> float:
    """Return pictures/s of diffusion_lib.train itself; its first step is not timed."""
    precision = "bf16" if dtype == torch.bfloat16 else "no"
    marks: list[float] = []
    dl.train(
        RECIPE.spec.build(),
        RECIPE.loss,
        batches,
        size.steps + 1,
        precision=precision,
        on_step=lambda step, loss: marks.append(time.perf_counter()),
    )
    return size.steps * size.batch / (marks[-1] - marks[0])


def bare(network: Network, batches, dtype: torch.dtype, size: Size) -> float:
    """Return pictures/s of the least loop there is: no clipping, average or checks."""
    network.module.train()
    marks: list[float] = []
    optimizer = torch.optim.AdamW(network.module.parameters(), lr=1e-4)
    for k in range(size.steps + 1):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = network.loss(network.module, batches(k)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        marks.append(time.perf_counter())
    return size.steps * size.batch / (marks[-1] - marks[0])


def infer(network: Network, dtype: torch.dtype, size: Size) -> float:
    """Return pictures/s of one network call, the first call not timed."""
    network.module.eval()
    x, low = torch.randn(size.batch, 1, 28, 28), dtype != torch.float32
    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=low):
        network.output(x)
        work = lambda: [network.output(x) for _ in range(size.steps)]  # noqa: E731
        return size.steps * size.batch / timed(work)
