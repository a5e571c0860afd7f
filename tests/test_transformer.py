"""The transformer: shapes, places, conditions, how it starts, what does not fit."""

import pytest
import torch
from torch import nn

from diffusion_lib.checkpoints import Spec
from diffusion_lib.networks import Transformer
from diffusion_lib.networks.transformer import DiTBlock, places

SMALL = {"width": 8, "depth": 2, "heads": 2, "dim": 16}


def small(awake=True, **options):
    """A small one; awake: with the zero layers filled, as after training."""
    net = Spec("Transformer", {**SMALL, **options}).build()
    for parameter in net.parameters():
        if awake and not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return net


def test_it_costs_what_the_unet_costs():
    assert 3e6 < sum(p.numel() for p in Transformer().parameters()) < 5e6


def test_a_fresh_one_is_the_zero_map():
    net, x = small(awake=False, classes=3), torch.randn(2, 1, 28, 28)
    assert not net(x, torch.rand(2), {"label": torch.tensor([0, 2])}).any()


def test_a_fresh_block_is_the_identity():
    h, e = torch.randn(2, 5, 8), torch.randn(2, 16)
    assert torch.equal(DiTBlock(8, 2, 16)(h, e), h)


@pytest.mark.parametrize(
    "options, shape",
    [
        ({}, (2, 1, 28, 28)),
        ({"channels": 3, "patch": 2}, (1, 3, 8, 12)),
        ({"patch": 1}, (1, 1, 4, 3)),
    ],
)
def test_the_answer_has_the_picture_s_shape(options, shape):
    y = small(**options)(torch.randn(shape), torch.rand(shape[0]))
    assert y.shape == shape and float(y.detach().std()) > 1e-3


def test_patches_go_back_where_they_came_from():
    """With the blocks asleep and no places, a patch's answer depends on it alone."""
    net, x = small(), torch.randn(1, 1, 8, 8, requires_grad=True)
    for block in net.blocks:
        nn.init.zeros_(block.film.weight)
        nn.init.zeros_(block.film.bias)
    net(x, torch.rand(1))[..., 4:, :4].pow(2).sum().backward()
    touched = x.grad[0, 0] != 0
    assert bool(touched[4:, :4].all()) and int(touched.sum()) == 16


def test_attention_knows_no_places():
    block, h, e = DiTBlock(8, 2, 16), torch.randn(2, 5, 8), torch.randn(2, 16)
    nn.init.normal_(block.film.weight)
    order = torch.randperm(5)
    with torch.no_grad():
        assert float((block(h, e) - h).abs().max()) > 0.1
        torch.testing.assert_close(block(h[:, order], e), block(h, e)[:, order])


def test_attention_over_tokens_is_torch_s():
    block, h = DiTBlock(8, 2, 16).double(), torch.randn(1, 5, 8).double()
    layer = nn.MultiheadAttention(8, 2, batch_first=True).double()
    layer.in_proj_weight, layer.in_proj_bias = block.qkv.weight, block.qkv.bias
    layer.out_proj = block.out
    with torch.no_grad():
        torch.testing.assert_close(block.attention(h), layer(h, h, h)[0])


def test_places_differ_and_stay_when_the_picture_grows():
    marks = places(7, 7, 16)
    assert marks.shape == (49, 16)
    assert float(torch.pdist(marks).min()) > 0.1
    grown = places(9, 8, 16).reshape(9, 8, 16)
    torch.testing.assert_close(grown[:7, :7].reshape(49, 16), marks)


def test_every_parameter_takes_part():
    net, x = small(classes=2), torch.randn(3, 1, 8, 8)
    label = {"label": torch.tensor([0, 1, 2])}
    net(x, torch.tensor([0.1, 0.5, 0.9]), label).pow(2).sum().backward()
    silent = [n for n, p in net.named_parameters() if not p.grad.any()]
    assert silent == []


def test_labels_are_handled_as_in_the_unet():
    net, x, u = small(classes=4), torch.randn(2, 1, 8, 8), torch.rand(2)
    null = net.null({"label": torch.tensor([1, 3])})
    assert null["label"].tolist() == [4, 4]
    torch.testing.assert_close(net(x, u), net(x, u, null))
    told = net(x, u, {"label": torch.tensor([1, 3])})
    assert float((told - net(x, u)).detach().abs().max()) > 1e-3


X, U = torch.zeros(2, 1, 8, 8), torch.zeros(2)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: small()(X[0], U), r"\(B, 1, H, W\)"),
        (lambda: small()(X[..., :6], U), "multiples of 4.*smaller patch"),
        (lambda: small()(X, torch.zeros(2, 1)), r"shape \(B,\)"),
        (lambda: small()(X, U, {"label": U.long()}), "without classes"),
        (lambda: small(classes=2)(X, U, {"label": 3 + U.long()}), "0 to 1, or 2"),
        (lambda: small(width=6), "multiple of heads and of 4"),
        (lambda: small(heads=3), "multiple of heads"),
        (lambda: small(depth=0), ">= 1"),
        (lambda: small(patch=0), ">= 1"),
        (lambda: small(classes=0), "classes"),
        (lambda: small(time="x"), "'sinusoidal' or 'fourier'"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
