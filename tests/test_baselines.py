"""The VAE and the GAN that diffusion is compared with."""

import math

import pytest
import torch

from diffusion_lib import shuffled, train
from diffusion_lib.baselines import gan_loss, vae_loss
from diffusion_lib.networks import GAN, VAE


@pytest.fixture
def pictures():
    torch.manual_seed(0)
    return torch.rand(64, 1, 28, 28) * 2 - 1


def test_the_vae_loss_is_minus_the_bound(pictures, monkeypatch):
    """With z = mean (no noise) all terms follow from torch.distributions."""
    vae = VAE(latent=4, width=8).eval()
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    with torch.no_grad():
        told = vae_loss(vae, (pictures,))
        mean, log_std = vae.encode(pictures)
        x_hat = vae.decoder(mean)
    scale = (pictures - x_hat).square().mean().sqrt()
    log_p = torch.distributions.Normal(x_hat, scale).log_prob(pictures)
    q = torch.distributions.Normal(mean, log_std.exp())
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0))
    nats = kl.sum(1) - log_p.flatten(1).sum(1)
    assert torch.allclose(told, nats / 784, atol=1e-5)


def test_each_player_is_moved_by_its_own_loss_alone(pictures):
    """The generator's part leaves no trace in the critic's gradient."""
    gan = GAN(latent=4, width=8)

    def gradients(loss, module):
        grads = torch.autograd.grad(loss, module.parameters(), allow_unused=True)
        return torch.cat([g.flatten() for g in grads if g is not None])

    torch.manual_seed(1)
    z_drawn = torch.randn(64, 4)
    torch.manual_seed(1)
    gan_loss(gan, (pictures,), penalty=0.0).mean().backward()
    told = torch.cat([p.grad.flatten() for p in gan.decoder.parameters()])
    fake = gan.decoder(z_drawn)
    generator = torch.nn.functional.softplus(-gan.critic(fake)).mean()
    wanted = gradients(generator, gan.decoder)
    assert torch.allclose(told, wanted, atol=1e-6)
    says = gan.critic(torch.cat([pictures, fake.detach()]))
    sign = torch.cat([torch.ones(64, 1), -torch.ones(64, 1)])
    critic = torch.nn.functional.softplus(-sign * says).sum() / 64
    told = torch.cat([p.grad.flatten() for p in gan.critic.parameters()])
    assert torch.allclose(told, gradients(critic, gan.critic), atol=1e-6)


def test_the_penalty_is_the_squared_slope_at_real_pictures(pictures):
    gan = GAN(latent=4, width=8)
    losses = []
    for penalty in (0.0, 2.0):
        torch.manual_seed(1)
        losses.append(gan_loss(gan, (pictures,), penalty))
    x = pictures[:8].clone().requires_grad_()
    (grad,) = torch.autograd.grad(gan.critic(x).sum(), x)
    squared = grad.square().flatten(1).sum(1).mean()
    assert torch.allclose(losses[1] - losses[0], squared.expand(64), atol=1e-5)
    step = torch.zeros_like(x)
    step[:, 0, 14, 14] = 1e-2
    with torch.no_grad():
        slope = (gan.critic(x + step) - gan.critic(x - step)) / 2e-2
    assert torch.allclose(grad[:, 0, 14, 14], slope[:, 0], atol=1e-3)


@pytest.mark.parametrize(("build", "loss"), [(VAE, vae_loss), (GAN, gan_loss)])
def test_both_train_with_the_ordinary_loop(pictures, build, loss):
    torch.manual_seed(0)
    module = build(latent=4, width=8)
    before = [p.clone() for p in module.parameters()]
    run = train(module, loss, shuffled(pictures, size=32), 3)
    assert all(math.isfinite(v) for v in run.losses)
    after = module.parameters()
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert all(moved)
    with torch.no_grad():
        made = run.ema.generate(5, torch.Generator().manual_seed(0))
    assert made.shape == (5, 1, 28, 28) and bool((made.abs() <= 1).all())


def test_a_vae_learns_on_pictures_of_two_kinds():
    torch.manual_seed(0)
    x = torch.full((256, 1, 28, 28), -0.8)
    x[::2, :, 4:24, 8:20] = 0.8
    run = train(VAE(latent=2, width=8), vae_loss, shuffled(x, size=64), 60, rate=5e-3)
    assert run.losses[-1] < run.losses[0] - 0.5


@pytest.mark.parametrize("call", ["encoder", "decoder"])
def test_wrong_shapes_are_named(call):
    vae = VAE(latent=4, width=8)
    with pytest.raises(ValueError, match="expected"):
        getattr(vae, call)(torch.zeros(2, 5))
