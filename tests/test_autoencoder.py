"""The autoencoder: shapes, its posterior, its scale, and what it refuses."""

import pytest
import torch
from torch.testing import assert_close

from diffusion_lib.checkpoints import Spec, load, save
from diffusion_lib.latent import fit_scale
from diffusion_lib.networks import Autoencoder

SMALL = Spec("Autoencoder", {"width": 8})


@pytest.fixture
def small():
    return SMALL.build().eval()


@pytest.mark.parametrize("sides", [(28, 28), (28, 56), (4, 12)])
def test_sides_become_a_quarter_and_whole_again(small, sides):
    x = torch.randn(2, 1, *sides)
    z = small.encode(x)
    assert z.shape == (2, 4, sides[0] // 4, sides[1] // 4)
    x_hat = small.decode(z)
    assert x_hat.shape == x.shape and float(x_hat.detach().abs().max()) <= 1


def test_the_shipped_size_is_half_a_million():
    net = Autoencoder()
    assert 0.4e6 < sum(p.numel() for p in net.parameters()) < 0.6e6


def test_forward_decodes_a_sample_of_the_posterior(small, monkeypatch):
    """The decoder is given mean + std * noise, whatever the scale is."""
    x, noise = torch.randn(3, 1, 8, 8), torch.randn(3, 4, 2, 2)
    small.scale.fill_(3)
    monkeypatch.setattr(torch, "randn_like", lambda like: noise)
    with torch.no_grad():
        x_hat, mean, log_std = small(x)
        wanted = torch.distributions.Normal(mean, log_std.exp()).icdf(
            torch.special.ndtr(noise.double())
        )
        assert_close(x_hat, small.decode(3 * wanted.float()))


@torch.no_grad()
def test_the_scale_makes_unit_variance_and_no_other_difference(small, fashion):
    x = fashion[0][:600]
    before = small.decode(small.encode(x))
    scale = fit_scale(small, x)
    latents = small.encode(x)
    assert scale == float(small.scale) and abs(scale - 1) > 1e-2
    assert_close(latents.std(), torch.tensor(1.0))
    assert_close(latents, scale * small.posterior(x)[0])
    assert_close(small.decode(latents), before, rtol=0, atol=1e-5)
    assert_close(fit_scale(small, x), scale)  # measured anew, not multiplied


def test_the_scale_travels_with_the_weights(small, fashion, tmp_path):
    scale = fit_scale(small, fashion[0][:100])
    save(tmp_path / "vae.safetensors", small, SMALL)
    back = load(tmp_path / "vae.safetensors")
    assert abs(float(back.scale) / scale - 1) < 1e-3  # half precision
    x = fashion[0][:4]
    assert_close(back.encode(x), small.encode(x), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda a: Autoencoder(width=12), "multiple of 8, got 12"),
        (lambda a: a.encode(torch.zeros(2, 3, 28, 28)), r"expected \(B, 1, H, W\)"),
        (lambda a: a.encode(torch.zeros(28, 28)), r"expected \(B, 1, H, W\)"),
        (lambda a: a.encode(torch.zeros(2, 1, 28, 30)), "multiples of 4"),
        (lambda a: a.encode(torch.zeros(2, 1, 0, 28)), r"got \(2, 1, 0, 28\)"),
        (lambda a: a.decode(torch.zeros(2, 1, 28, 28)), r"latents \(B, 4, h, w\)"),
    ],
)
def test_what_does_not_fit_is_refused(small, call, words):
    with pytest.raises(ValueError, match=words):
        call(small)
