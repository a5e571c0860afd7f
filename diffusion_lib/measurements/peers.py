"""The networks of other libraries, as they come and as our recipe would train them.

Needs the packages diffusers, denoising-diffusion-pytorch and smalldiffusion (the extra
`bench`); everything is done through their public interfaces.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import denoising_diffusion_pytorch.denoising_diffusion_pytorch as lucidrains
import diffusers
import smalldiffusion
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from ..denoiser import Denoiser
from ..recipes import generate, unlabelled_loss
from ..schedules import Schedule, cosine_schedule

Batch = tuple[Tensor, Tensor]  # pictures in [-1, 1] and labels
CALLS = 20  # network calls a picture


@dataclass(frozen=True)
class Contestant:
    """A module to train, its loss (module, batch) -> (B,), the loop's settings.

    sample(module, n, seed) -> (n, 1, 28, 28) in CALLS network calls.
    """

    module: nn.Module
    loss: Callable[[Any, Batch], Tensor]
    sample: Callable[[Any, int, int], Tensor]
    settings: dict[str, Any] = field(default_factory=dict)


class Told(nn.Module):
    """A peer's net as ours are called: net(x (B, 1, 28, 28), u (B,), cond) -> like x.

    convert: u (B,), the time over t_max, -> what that net takes for the time.
    """

    channels = 1

    def __init__(self, net: nn.Module, convert: Callable[[Tensor], Tensor]):
        super().__init__()
        self.net, self.convert = net, convert

    def forward(self, x: Tensor, u: Tensor, cond: object = None) -> Tensor:
        """Return the net's answer, (B, 1, 28, 28)."""
        y = self.net(x, self.convert(u))
        return getattr(y, "sample", y)


def by_our_recipe(net: nn.Module, rate: float = 1e-3) -> Contestant:
    """Return any net under our recipe: v on the cosine schedule, focused times, bf16.

    Sampled by DPM-Solver++(2M).
    """
    denoiser = Denoiser(net, cosine_schedule(), "v")
    settings = {"precision": "bf16", "ema": 0.995, "rate": rate}
    return Contestant(denoiser, unlabelled_loss, twenty_calls, settings)


def twenty_calls(denoiser: Denoiser, n: int, seed: int) -> Tensor:
    """Return n pictures by DPM-Solver++(2M) on Karras' times."""
    return generate(denoiser, n, CALLS, seed=seed)


def diffusers_shaped() -> nn.Module:
    """Return UNet2DModel with most of its weight at 14 x 14 and 7 x 7."""
    net: Any = diffusers.UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 64, 128),
        norm_num_groups=8,
        attention_head_dim=32,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )
    return Told(net, lambda u: 1000 * u)


def lucidrains_shaped() -> nn.Module:
    """Return Unet with most of its weight at low resolution, and lighter attention."""
    net = lucidrains.Unet(
        dim=16, dim_mults=(1, 4, 8), channels=1, attn_heads=2, attn_dim_head=16
    )
    return Told(net, lambda u: 1000 * u)


def smalldiffusion_shaped() -> nn.Module:
    """Return Unet with most of its weight at low resolution, told sigma / alpha."""
    net = smalldiffusion.Unet(
        28, 1, 1, ch=32, ch_mult=(1, 2, 4), attn_resolutions=(7,), num_res_blocks=1
    )
    return Told(net, noise_over_signal(cosine_schedule()))


def noise_over_signal(schedule: Schedule) -> Callable[[Tensor], Tensor]:
    """Return the function u (B,) -> sigma / alpha at t = u t_max, at most 1,000."""

    def ratio(u: Tensor) -> Tensor:
        log_snr = schedule.log_snr(u.double() * schedule.t_max).to(u)
        return torch.exp(-log_snr / 2).clamp(max=1e3)

    return ratio


def of_diffusers() -> Contestant:
    """Return UNet2DModel (32, 64, 64) with attention at 14 x 14 and 7 x 7.

    Noise prediction on the linear schedule; sampled by DDIM, as it comes.
    """
    net: Any = diffusers.UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    noising: Any = diffusers.DDPMScheduler()

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        x0, _ = batch
        t, eps = torch.randint(0, 1000, (len(x0),)), torch.randn_like(x0)
        return F.mse_loss(net(noising.add_noise(x0, eps, t), t).sample, eps)

    def sample(net: nn.Module, n: int, seed: int) -> Tensor:
        scheduler: Any = diffusers.DDIMScheduler()
        scheduler.set_timesteps(CALLS)
        x = torch.randn(n, 1, 28, 28, generator=torch.Generator().manual_seed(seed))
        for t in scheduler.timesteps:
            parts = [net(part, t).sample for part in x.split(250)]
            x = scheduler.step(torch.cat(parts), t, x).prev_sample
        return x

    return Contestant(net, loss, sample, {"rate": 1e-4})


def of_lucidrains() -> Contestant:
    """Return Unet of dim 32, (1, 2, 4), in GaussianDiffusion; sampled by its DDIM."""
    net = lucidrains.Unet(dim=32, dim_mults=(1, 2, 4), channels=1)
    diffusion = lucidrains.GaussianDiffusion(
        net, image_size=28, sampling_timesteps=CALLS
    )

    def sample(diffusion: Any, n: int, seed: int) -> Tensor:
        lucidrains.tqdm = lambda steps, **_: steps
        torch.manual_seed(seed)
        parts = [
            diffusion.sample(batch_size=len(p)) for p in torch.arange(n).split(250)
        ]
        return 2 * torch.cat(parts) - 1

    settings = {"rate": 1e-4, "ema": 0.995}
    loss = lambda diffusion, batch: diffusion((batch[0] + 1) / 2)  # noqa: E731
    return Contestant(diffusion, loss, sample, settings)


def of_smalldiffusion() -> Contestant:
    """Return Unet of 64 channels, (1, 1, 2), attention at 14 x 14.

    Sampled by its accelerated sampler (gam = 1.6), as in its own example.
    """
    kind = smalldiffusion.Scaled(smalldiffusion.Unet)
    net = kind(28, 1, 1, ch=64, ch_mult=(1, 1, 2), attn_resolutions=(14,))
    schedule = smalldiffusion.ScheduleLogLinear(800, 0.01, 20)

    def loss(net: Any, batch: Batch) -> Tensor:
        x0, sigma, eps, _ = smalldiffusion.generate_train_sample(batch[0], schedule)
        return net.get_loss(x0, sigma, eps)

    def sample(net: nn.Module, n: int, seed: int) -> Tensor:
        torch.manual_seed(seed)
        sigmas, cpu, parts = schedule.sample_sigmas(CALLS), Accelerator(cpu=True), []
        for part in torch.arange(n).split(250):
            *_, x = smalldiffusion.samples(
                net,
                sigmas,
                gam=1.6,
                batchsize=len(part),
                accelerator=cpu,
            )
            parts.append(x)
        return torch.cat(parts)

    return Contestant(net, loss, sample, {"rate": 7e-4, "ema": 0.99})
