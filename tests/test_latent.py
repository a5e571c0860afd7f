"""Diffusion in latents: the autoencoder's loss, and pictures in one call."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.testing import assert_close

from diffusion_lib import latent, metrics
from diffusion_lib.__main__ import main
from diffusion_lib.checkpoints import Spec, load, save
from diffusion_lib.data import fashion_mnist
from diffusion_lib.latent import (
    autoencoder_loss,
    fit_scale,
    in_latents,
    pictures_and_canvases,
    reconstruction,
    unlike,
)
from diffusion_lib.networks import UNet
from diffusion_lib.recipes import RECIPES, generate, label_loss
from diffusion_lib.samplers import ddim_step
from diffusion_lib.tokens import VOCABULARY, tokenise
from diffusion_lib.training import shuffled, train

VAE = Spec("Autoencoder", {"width": 8})
TINY = {"channels": 4, "stride": 1, "multipliers": [1], "width": 8, "stem": 4, "dim": 8}
TEXT = {"words": len(VOCABULARY), "width": 8}


@pytest.fixture
def decoder(tmp_path, fashion):
    """The path of an autoencoder, untrained but for its scale."""
    module = VAE.build()
    fit_scale(module, fashion[0][:100])
    save(tmp_path / "vae.safetensors", module, VAE)
    return str(tmp_path / "vae.safetensors")


def written(decoder, facts=None, **options):
    """The path of a latent denoiser without zero layers, as if trained."""
    spec = Spec("UNet", {**TINY, **options}, "cosine_schedule", decoder=decoder)
    module = spec.build()
    for parameter in module.net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    path = decoder.replace("vae", "latent")
    save(path, module, spec, facts)
    return path


def test_the_loss_is_error_likeness_and_rate(fashion, monkeypatch):
    """With z = mean, each part from another library's function."""
    module, x = VAE.build(), fashion[0][:5]
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    with torch.no_grad():
        loss = autoencoder_loss(module, (x,), kl=0.3, perceptual=0.2)
        mean, log_std = module.posterior(x)
        x_hat = module.decode(mean)
    q = torch.distributions.Normal(mean, log_std.exp())
    prior = torch.distributions.Normal(0.0, 1.0)
    rate = torch.distributions.kl_divergence(q, prior).sum((1, 2, 3)) / 784
    error = torch.stack([F.mse_loss(a, b) for a, b in zip(x_hat, x, strict=True)])
    assert_close(loss, error + 0.2 * unlike(x_hat, x) + 0.3 * rate)


def test_the_weight_2_s_squared_is_the_bound_of_a_noisy_decoder(fashion):
    """Up to a factor and a constant the loss is minus the bound, in every weight."""
    module, s = VAE.build(), 0.2
    torch.manual_seed(1)
    loss = autoencoder_loss(module, (fashion[0][:5],), 2 * s**2, 0.0).mean()
    torch.manual_seed(1)
    x_hat, mean, log_std = module(fashion[0][:5])
    log_p = torch.distributions.Normal(x_hat, s).log_prob(fashion[0][:5])
    q = torch.distributions.Normal(mean, log_std.exp())
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0))
    bound = (log_p.sum() - kl.sum()) / 5
    weights = list(module.parameters())
    wanted = torch.autograd.grad(-2 * s**2 / 784 * bound, weights)
    assert_close(torch.autograd.grad(loss, weights), wanted, rtol=1e-4, atol=1e-6)


def test_unlike_is_a_distance_that_grows_with_blur(fashion):
    x = fashion[0][:20]
    assert float(unlike(x, x).abs().max()) == 0
    assert_close(unlike(x, x.flip(0)), unlike(x.flip(0), x))
    blurred = F.avg_pool2d(x, 3, 1, 1)
    gaps = [unlike(x.lerp(blurred, share), x).mean() for share in (0.25, 0.5, 1)]
    assert 0 < 2 * gaps[0] < gaps[1] < gaps[2] < unlike(x.flip(0), x).mean()
    moved = blurred.clone().requires_grad_()
    unlike(moved, x).sum().backward()
    assert float(moved.grad.abs().max()) > 0


def test_a_little_training_rebuilds_better_and_resumes(fashion, tmp_path):
    torch.manual_seed(0)
    batches = shuffled(fashion[0][:500], size=32)
    settings = {"warmup": 2, "rate": 5e-3, "ema": 0.8, "save_every": 20}

    def run(steps_seen, folder):
        def stop(step, loss):
            if step == steps_seen:
                raise KeyboardInterrupt

        torch.manual_seed(0)
        loss = partial(autoencoder_loss, perceptual=0.0)
        return train(
            VAE.build(), loss, batches, 40, folder=folder, on_step=stop, **settings
        )

    whole = run(None, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(25, tmp_path / "parts")
    parts = run(None, tmp_path / "parts")
    assert_close(parts.ema.state_dict(), whole.ema.state_dict(), rtol=0, atol=0)
    assert sum(whole.losses[-5:]) < 0.6 * sum(whole.losses[:5])
    untrained = VAE.build().eval()
    found = [reconstruction(module, 100) for module in (whole.ema, untrained)]
    assert found[0]["rmse"] < 0.7 * found[1]["rmse"]
    assert {"unlike", "nats", "noise", "frechet", "sharpness"} <= set(found[0])


def test_pictures_are_not_scored_beside_their_own_copies(fashion):
    """An autoencoder that loses nothing stands where other real pictures stand."""
    n = min(200, len(fashion_mnist("test")[0]) // 2)
    same = SimpleNamespace(
        posterior=lambda x: (x, torch.zeros_like(x)),
        scale=torch.ones(()),
        decode=lambda z: z,
    )
    found = reconstruction(same, n)
    other = metrics.scores(fashion_mnist("test")[0][n : 2 * n])
    assert found["rmse"] == 0 and found["coverage"] < 1
    assert {name: found[name] for name in other} == other
    with pytest.raises(ValueError, match="at most half"):
        reconstruction(same, 5001)


@pytest.mark.parametrize("use", [fit_scale, lambda module, x: reconstruction(module)])
def test_pictures_are_brought_to_where_the_autoencoder_is(use, fashion):
    """Seen on a device that holds no numbers, before any are asked for."""

    class Reached(Exception):
        pass

    def stop(module, args):
        raise Reached(args[0].device.type)

    module = VAE.build().to("meta")
    module.encoder.register_forward_pre_hook(stop)
    with pytest.raises(Reached, match="meta"):
        use(module, fashion[0][:10])


def test_a_loss_in_latents_is_that_of_the_latents(decoder, fashion):
    denoiser = load(written(decoder, classes=10)).train()
    batch = fashion[0][:6], fashion[1][:6]
    latents = load(decoder).encode(batch[0]).detach()
    torch.manual_seed(2)
    loss = in_latents(label_loss, denoiser, batch)
    torch.manual_seed(2)
    assert_close(loss, label_loss(denoiser, (latents, batch[1])))
    loss.mean().backward()
    assert all(p.grad is None for p in denoiser.decoder.parameters())
    assert all(p.grad is not None for p in denoiser.net.out.parameters())


def test_latents_are_sampled_and_pictures_come_back(decoder):
    denoiser, seen = load(written(decoder, classes=10)), []

    def step(denoise, schedule, x, *rest):
        seen.append(tuple(x.shape))
        return ddim_step(denoise, schedule, x, *rest)

    label = torch.tensor([1, 2, 3])
    x = generate(denoiser, 3, 2, label, step=step, size=(28, 56))
    assert seen == [(3, 4, 7, 14)] * 2 and x.shape == (3, 1, 28, 56)
    latents = denoiser.decoder
    denoiser.decoder = None
    z = generate(denoiser, 3, 2, label, step=step, size=(7, 14))
    assert_close(x, latents.decode(z))


def test_training_a_latent_denoiser_moves_it_alone(decoder, fashion):
    denoiser = load(written(decoder, classes=10))
    before = {k: v.clone() for k, v in denoiser.decoder.state_dict().items()}
    batches = shuffled(*(part[:200] for part in fashion), size=16)
    run = train(denoiser, partial(in_latents, label_loss), batches, 3)
    assert_close(run.ema.decoder.state_dict(), before, rtol=0, atol=0)
    assert run.ema.net is not denoiser.net
    assert generate(run.ema, 2, 1).shape == (2, 1, 28, 28)


def test_one_command_makes_pictures_of_a_caption(decoder, tmp_path):
    path = written(decoder, {"size": [28, 56]}, text=TEXT)
    out = tmp_path / "boots.png"
    options = ["--n", "2", "--calls", "2", "--scale", "2", "--out", str(out)]
    assert main(["sample", path, "--prompt", "a dark ankle boot", *options]) == 0
    grid = np.asarray(Image.open(out))
    assert grid.shape[:2] == (2 * 30 + 2, 58 + 2) and grid.std() > 1
    cond = {"text": tokenise(["a dark ankle boot"] * 2)}
    x = generate(load(path), 2, 2, cond=cond, scale=2, size=(28, 56))
    shown = ((x[0, 0] + 1) * 127.5).numpy()
    assert np.abs(grid[2:30, 2:58, 0] - shown).max() <= 1


def test_a_missing_decoder_is_named_before_anything_is_trained():
    spec = Spec("UNet", TINY, "cosine_schedule", decoder="fashion-nothing")
    with pytest.raises(ValueError, match="no checkpoint 'fashion-nothing'"):
        spec.build()


def test_another_decoder_in_its_place_is_refused(decoder):
    path = written(decoder)
    load(path)
    save(decoder, VAE.build(), VAE)
    with pytest.raises(ValueError, match="whose weights were others"):
        load(path)


def test_the_u_net_works_at_full_resolution_too():
    """With stride 1 any side fits, and both sides' last rows count."""
    net = UNet(**TINY)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, u = torch.randn(2, 4, 7, 14), torch.tensor([0.2, 0.9])
    y = net(x, u)
    assert y.shape == x.shape
    assert (
        float(
            (net(x + F.pad(torch.ones(1, 4, 1, 1), (13, 0, 6, 0)), u) - y)
            .detach()
            .abs()
            .amin((0, 1))
            .max()
        )
        > 1e-4
    )
    with pytest.raises(ValueError, match="multiples of 2"):
        UNet(**{**TINY, "stride": 2})(x, u)


@pytest.mark.parametrize(
    "name, most, shape",
    [("fashion-latent", 1.3e6, (7, 7)), ("fashion-latent-text", 1.5e6, (7, 14))],
)
def test_the_recipes_nets_are_small_and_fit_the_latents(name, most, shape):
    spec = RECIPES[name].spec
    net = Spec(spec.net, spec.net_options).build()
    assert sum(p.numel() for p in net.parameters()) <= most
    assert spec.decoder == "fashion-vae"
    assert net(torch.zeros(1, 4, *shape), torch.zeros(1)).shape == (1, 4, *shape)


def test_batches_are_pictures_and_canvases_in_turn(fashion, monkeypatch):
    monkeypatch.setattr(latent, "fashion_mnist", lambda split: fashion)
    monkeypatch.setattr(
        latent, "captioned", lambda n, seed: lambda k: (torch.zeros(n, 1, 28, 56), k)
    )
    batches = pictures_and_canvases(8, seed=1)
    assert [batches(k)[0].shape[-1] for k in range(4)] == [28, 56, 28, 56]
    assert [batches(k)[1] for k in (1, 3)] == [0, 1] and len(batches(1)[0]) == 4
    assert not torch.equal(batches(0)[0], batches(2)[0])
