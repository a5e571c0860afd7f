"""How a VAE and a GAN are trained: losses for `train`, as for diffusion."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from .networks import GAN, VAE


def vae_loss(vae: VAE, batch: tuple[Tensor, ...]) -> Tensor:
    """Return minus the evidence lower bound per number, in nats, (B,).

    batch: (pictures (B, 1, 28, 28), ...); p(x | z) = N(decoder(z), s^2), and s^2 is
    the batch's mean squared error, which makes the bound largest (Rybkin et al. 2021).
    """
    x = batch[0]
    x_hat, mean, log_std = vae(x)
    error = (x - x_hat).float().square().flatten(1).mean(1)
    variance = error.mean().detach()
    nats = 0.5 * (error / variance + math.log(2 * math.pi) + variance.log())
    return nats + kl_to_normal(mean, log_std) / x[0].numel()


def kl_to_normal(mean: Tensor, log_std: Tensor) -> Tensor:
    """Return KL(N(mean, exp(log_std)^2) || N(0, I)) of each example, in nats, (B,).

    mean, log_std: (B, ...), of independent numbers. Kingma and Welling (2014), app. B.
    """
    mean, log_std = mean.float().flatten(1), log_std.float().flatten(1)
    return 0.5 * (mean**2 + (2 * log_std).exp() - 1 - 2 * log_std).sum(1)


def gan_loss(gan: GAN, batch: tuple[Tensor, ...], penalty: float = 0.1) -> Tensor:
    """Return both players' losses, added up, (B,): each trains its own weights alone.

    Non-saturating (Goodfellow et al. 2014), with the gradient penalty R1 of Mescheder
    et al. (2018): without it training two players at once need not converge. It costs
    a second derivative, so an eighth of the batch must do.
    """
    real, gate = batch[0], F.softplus
    fake = gan.decoder(torch.randn(len(real), gan.decoder.latent).to(real))
    critic = gate(-gan.critic(real)) + gate(gan.critic(fake.detach()))
    some = real[: -(-len(real) // 8)].detach().requires_grad_()
    (slope,) = torch.autograd.grad(gan.critic(some).sum(), some, create_graph=True)
    critic = critic + penalty / 2 * slope.square().flatten(1).sum(1).mean()
    frozen = {name: p.detach() for name, p in gan.critic.named_parameters()}
    generator = gate(-functional_call(gan.critic, frozen, fake))
    return (critic + generator)[:, 0]
