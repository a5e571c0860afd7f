"""The blocks and their variants: attention in two forms, ConvNeXt, random waves."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffusion_lib import checkpoints
from diffusion_lib.networks import (
    Attention,
    ConvNeXtBlock,
    LinearAttention,
    TimeEmbedding,
    UNet,
)
from diffusion_lib.networks.blocks import attend, attend_linearly, modulate

SMALL = {"width": 8, "stem": 4, "dim": 16}


def qkv():
    return torch.randn(3, 2, 4, 6, 10, dtype=torch.float64).unbind()


def test_attention_is_torch_s():
    q, k, v = qkv()
    rows = [a.transpose(-1, -2) for a in (q, k, v)]
    expected = F.scaled_dot_product_attention(*rows).transpose(-1, -2)
    torch.testing.assert_close(attend(q, k, v), expected)


def test_linear_attention_is_attention_with_other_weights():
    """The N x N weights, formed here alone: positive, rows of sum one."""
    q, k, v = qkv()
    weight = q.softmax(-2).transpose(-1, -2) @ k.softmax(-1)
    assert bool((weight > 0).all())
    torch.testing.assert_close(weight.sum(-1), torch.ones_like(weight[..., 0]))
    torch.testing.assert_close(attend_linearly(q, k, v), v @ weight.transpose(-1, -2))


@pytest.mark.parametrize("layer", [Attention, LinearAttention])
def test_attention_knows_no_places_and_begins_as_nothing(layer):
    layer, x, order = layer(16).double(), torch.randn(2, 16, 3, 3), torch.randperm(9)
    x = x.double()
    assert torch.equal(layer(x), x)
    nn.init.normal_(layer.out.weight)
    shuffled = x.flatten(2)[..., order].reshape(x.shape)
    y = layer(x).flatten(2)[..., order].reshape(x.shape)
    assert float((y - shuffled).detach().abs().max()) > 0.01
    torch.testing.assert_close(layer(shuffled), y)


def test_a_convnext_block_begins_as_its_skip():
    x, e = torch.randn(2, 8, 4, 4), torch.randn(2, 5)
    assert torch.equal(ConvNeXtBlock(8, 8, 5)(x, e), x)
    wider = ConvNeXtBlock(8, 16, 5)
    assert torch.equal(wider(x, e), wider.skip(x))


def test_a_convnext_block_is_its_formula_at_one_pixel():
    block = ConvNeXtBlock(4, 6, 5).double()
    nn.init.normal_(block.narrow.weight)
    x, e = torch.randn(1, 4, 9, 9).double(), torch.randn(1, 5).double()
    h = (x[0, :, 1:8, 1:8] * block.depthwise.weight[:, 0]).sum((1, 2))
    h = h + block.depthwise.bias
    h = (h - h.mean()) / (h.var(unbiased=False) + 1e-5).sqrt()
    scale, shift = block.film(e)[0].chunk(2)
    h = block.narrow(F.gelu(block.wide(h * (1 + scale) + shift)))
    expected = h + block.skip.weight[:, :, 0, 0] @ x[0, :, 4, 4] + block.skip.bias
    torch.testing.assert_close(block(x, e)[0, :, 4, 4], expected)


def test_modulate_scales_and_shifts_the_last_dimension():
    film = torch.tensor([1.0, -1.0, 5.0, 7.0])
    assert modulate(torch.tensor([[2.0, 3.0]]), film).tolist() == [[9.0, 7.0]]


def test_random_waves_have_the_kernel_of_their_law():
    """E cos(w d) = exp(-(10 d)^2 / 2) for w ~ N(0, 10^2); Rahimi and Recht (2007)."""
    waves = TimeEmbedding(4, frequencies=20_000, kind="fourier").waves
    u = torch.tensor([0.3, 0.35, 0.4, 0.5])
    products = waves(u) @ waves(u)[0] / 20_000
    expected = torch.exp(-((10 * (u - 0.3)) ** 2) / 2)
    torch.testing.assert_close(products, expected, atol=0.03, rtol=0)


def test_random_frequencies_travel_with_the_weights(tmp_path):
    spec = checkpoints.Spec("UNet", {**SMALL, "time": "fourier"}, "cosine_schedule")
    denoiser, path = spec.build(), tmp_path / "a.safetensors"
    checkpoints.save(path, denoiser, spec)
    loaded = checkpoints.load(path)
    torch.testing.assert_close(
        loaded.net.time.omega, denoiser.net.time.omega, rtol=1e-3, atol=1e-3
    )


def test_the_sinusoidal_net_keeps_its_state():
    """Checkpoints of earlier versions hold no frequencies."""
    net = UNet(classes=10)
    assert not [name for name in net.state_dict() if "omega" in name]
    assert len(net.state_dict()) == 107
    assert sum(p.numel() for p in net.parameters()) == 1_947_329


def test_the_shipped_net_answers_as_ever():
    net = checkpoints.load("fashion-unet").net.requires_grad_(False)
    x = torch.linspace(-1, 1, 784).reshape(1, 1, 28, 28).sin()
    y = net(x, torch.tensor([0.5]), {"label": torch.tensor([3])})
    found = torch.stack([y.mean(), y.std(), y[0, 0, 14, 14]])
    known = torch.tensor([0.1107, 0.4125, 0.0281])  # before there were options
    torch.testing.assert_close(found, known, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"block": "ConvNeXtBlock"},
        {"attention": "linear"},
        {"attention": "none"},
        {"skips": False},
        {"time": "fourier"},
        {"block": "ConvNeXtBlock", "attention": "none", "skips": False},
    ],
)
def test_every_kind_of_unet_learns_and_travels(options):
    net = checkpoints.Spec("UNet", {**SMALL, **options, "classes": 2}).build()
    x, u = torch.randn(2, 1, 8, 12), torch.rand(2)
    assert not net(x, u).any()
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    net(x, u, {"label": torch.tensor([0, 1])}).pow(2).sum().backward()
    silent = [
        n for n, p in net.named_parameters() if n != "label.weight" and not p.grad.any()
    ]
    assert silent == []


def test_without_skips_all_passes_the_lowest_level():
    def answer(skips):
        torch.manual_seed(1)
        net = UNet(**SMALL, skips=skips).requires_grad_(False)
        nn.init.normal_(net.out.weight)
        net.up[0].grow = nn.Conv2d(16, 8, 1).requires_grad_(False)
        nn.init.zeros_(net.up[0].grow.weight)  # nothing comes up from 1/4
        x = torch.randn(2, 1, 8, 8)
        y = net(x, torch.full((2,), 0.5))
        return float((y[0] - y[1]).abs().max())

    assert answer(skips=True) > 0.01
    assert answer(skips=False) == 0


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: UNet(block="Block"), "no block 'Block'.*ConvNeXtBlock"),
        (lambda: UNet(attention="cross"), "no attention 'cross'.*linear"),
        (lambda: UNet(time="learned"), "'sinusoidal' or 'fourier'"),
        (lambda: TimeEmbedding(4, kind=""), "'sinusoidal' or 'fourier'"),
        (lambda: LinearAttention(8, heads=3), "heads"),
    ],
)
def test_bad_names_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
