"""The networks that `bench` compares, and how their speed is measured."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import denoising_diffusion_pytorch.denoising_diffusion_pytorch as lucidrains
import diffusers
import smalldiffusion
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import diffusion_lib as dl
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
    """A net, its own training loss of (x0, label), its output at x (B, 1, 28, 28)."""

    net: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    output: Callable[[Tensor], Tensor]


def networks() -> dict[str, Network]:
    """Return the contestants by name, ours first."""
    return {
        "ours": of_ours(RECIPE.spec.build()),
        "diffusers": of_diffusers(),
        "denoising-diffusion-pytorch": of_lucidrains(),
        "smalldiffusion": of_smalldiffusion(),
    }


def of_ours(denoiser: dl.Denoiser) -> Network:
    """Return the denoiser of the recipe `fashion-unet`, with the recipe's loss."""
    return Network(
        denoiser.net,
        lambda x0, label: RECIPE.loss(denoiser, (x0, label)).mean(),
        lambda x: denoiser.net(x, torch.rand(len(x))),
    )


def of_diffusers() -> Network:
    """Return UNet2DModel (32, 64, 64) with attention at 14 x 14 and 7 x 7."""
    net = diffusers.UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    scheduler = diffusers.DDPMScheduler()

    def loss(x0, label):
        t, eps = torch.randint(0, 1000, (len(x0),)), torch.randn_like(x0)
        return F.mse_loss(net(scheduler.add_noise(x0, eps, t), t).sample, eps)

    return Network(net, loss, lambda x: net(x, torch.arange(len(x))).sample)


def of_lucidrains() -> Network:
    """Return denoising-diffusion-pytorch's Unet of dim 32, (1, 2, 4)."""
    net = lucidrains.Unet(dim=32, dim_mults=(1, 2, 4), channels=1)
    diffusion = lucidrains.GaussianDiffusion(net, image_size=28)
    output = lambda x: net(x, torch.arange(len(x)))  # noqa: E731
    return Network(net, lambda x0, label: diffusion((x0 + 1) / 2), output)


def of_smalldiffusion() -> Network:
    """Return smalldiffusion's Unet of 64 channels, (1, 1, 2), attention at 14 x 14."""
    kind = smalldiffusion.Scaled(smalldiffusion.Unet)
    net = kind(28, 1, 1, ch=64, ch_mult=(1, 1, 2), attn_resolutions=(14,))
    schedule = smalldiffusion.ScheduleLogLinear(800, 0.01, 20)

    def loss(x0, label):
        x0, sigma, eps, _ = smalldiffusion.generate_train_sample(x0, schedule)
        return net.get_loss(x0, sigma, eps)

    return Network(net, loss, lambda x: net(x, torch.full((len(x), 1, 1, 1), 0.5)))


def costs(network: Network) -> tuple[float, float]:
    """Return millions of parameters, and GFLOP a picture of a forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.output(torch.randn(2, 1, 28, 28))
    millions = sum(p.numel() for p in network.net.parameters()) / 1e6
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
    network.net.train()
    marks: list[float] = []
    optimizer = torch.optim.AdamW(network.net.parameters(), lr=1e-4)
    for k in range(size.steps + 1):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = network.loss(*batches(k))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        marks.append(time.perf_counter())
    return size.steps * size.batch / (marks[-1] - marks[0])


def infer(network: Network, dtype: torch.dtype, size: Size) -> float:
    """Return pictures/s of one network call, the first call not timed."""
    network.net.eval()
    x, low = torch.randn(size.batch, 1, 28, 28), dtype != torch.float32
    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=low):
        network.output(x)
        work = lambda: [network.output(x) for _ in range(size.steps)]  # noqa: E731
        return size.steps * size.batch / timed(work)
