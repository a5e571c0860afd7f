"""The networks: shapes, conditions, symmetries, and what does not fit."""

import pytest
import torch
from torch import nn

from diffusion_lib.networks import (
    MLP,
    Attention,
    Classifier,
    NoisyClassifier,
    ResBlock,
    TimeEmbedding,
    UNet,
)

SMALL = {"width": 8, "stem": 4, "dim": 16}


def unet(awake=True, **options):
    """A small U-Net; awake: with the zero layers filled, as after training."""
    net = UNet(**{**SMALL, **options}).eval()
    for parameter in net.parameters():
        if awake and not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return net.requires_grad_(False)


def test_the_course_s_net_has_its_size():
    net = UNet(classes=10)
    assert 1.5e6 < sum(p.numel() for p in net.parameters()) < 2.5e6


def test_a_fresh_net_answers_zero():
    net, x = unet(awake=False, classes=3), torch.randn(2, 1, 28, 28)
    assert not net(x, torch.rand(2), {"label": torch.tensor([0, 2])}).any()


@pytest.mark.parametrize(
    "options, shape",
    [
        ({}, (2, 1, 28, 28)),
        ({"channels": 3}, (1, 3, 32, 32)),
        ({"channels": 3, "multipliers": (1, 2, 2)}, (1, 3, 24, 40)),
        ({"multipliers": (2,), "blocks": 1}, (1, 1, 14, 14)),
    ],
)
def test_the_answer_has_the_picture_s_shape(options, shape):
    net, x = unet(**options), torch.randn(shape)
    y = net(x, torch.rand(shape[0]))
    assert y.shape == shape and float(y.std()) > 1e-3


def test_every_pixel_and_parameter_takes_part():
    net, x = unet(classes=2).requires_grad_(), torch.randn(3, 1, 8, 8)
    x.requires_grad_()
    label = {"label": torch.tensor([0, 1, 2])}
    net(x, torch.tensor([0.1, 0.5, 0.9]), label).pow(2).sum().backward()
    assert bool((x.grad != 0).all())
    silent = [n for n, p in net.named_parameters() if not p.grad.any()]
    assert silent == []


def test_time_and_label_change_the_answer():
    net, x = unet(classes=4), torch.randn(1, 1, 8, 8).expand(5, 1, 8, 8)
    labels = net(x, torch.full((5,), 0.5), {"label": torch.arange(5)})
    times = net(x, torch.linspace(0, 1, 5), {"label": torch.zeros(5).long()})
    for answers in (labels, times):
        apart = torch.pdist(answers.flatten(1))
        assert float(apart.min()) > 1e-3


def test_no_label_is_the_null_label():
    net, x, u = unet(classes=4), torch.randn(2, 1, 8, 8), torch.rand(2)
    null = net.null({"label": torch.tensor([1, 3])})
    assert null["label"].tolist() == [4, 4]
    for cond in (None, {}):
        torch.testing.assert_close(net(x, u, cond), net(x, u, null))


def test_the_examples_of_a_batch_do_not_see_each_other():
    net, x, u = unet(classes=4), torch.randn(3, 1, 8, 8), torch.rand(3)
    label = torch.tensor([0, 4, 2])
    together = net(x, u, {"label": label})
    for i in range(3):
        alone = net(x[i : i + 1], u[i : i + 1], {"label": label[i : i + 1]})
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_attention_knows_no_places():
    """Shuffle the positions before or after: the same."""
    layer = Attention(16)
    nn.init.normal_(layer.out.weight)
    x, order = torch.randn(2, 16, 3, 3), torch.randperm(9)

    def shuffle(x):
        return x.flatten(2)[..., order].reshape(x.shape)

    with torch.no_grad():
        assert float((layer(x) - x).abs().max()) > 0.1
        torch.testing.assert_close(
            layer(shuffle(x)), shuffle(layer(x)), rtol=1e-4, atol=1e-5
        )


def test_attention_is_a_softmax_of_products():
    layer, x = Attention(8, heads=2), torch.randn(1, 8, 2, 2)
    nn.init.normal_(layer.out.weight)
    with torch.no_grad():
        q, k, v = layer.qkv(layer.norm(x)).flatten(2)[0].split(8)  # each (8, 4)
        heads = [
            v[rows] @ (q[rows].T @ k[rows] / 2).softmax(1).T
            for rows in (slice(0, 4), slice(4, 8))
        ]
        expected = x + layer.out(torch.cat(heads).reshape(1, 8, 2, 2))
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_blocks_begin_as_nothing():
    x, e = torch.randn(2, 8, 4, 4), torch.randn(2, 5)
    assert torch.equal(ResBlock(8, 8, 5)(x, e), x)
    assert torch.equal(Attention(8)(x), x)
    wider = ResBlock(8, 16, 5)
    assert torch.equal(wider(x, e), wider.skip(x))


def test_the_time_embedding_tells_near_times_apart():
    embed = TimeEmbedding(32)
    with torch.no_grad():
        apart = torch.pdist(embed(torch.linspace(0, 1, 50)))
    assert float(apart.min()) > 1e-3


def test_mlp_shapes_and_time():
    net = MLP(6, width=16)
    x = torch.randn(1, 1, 2, 3).expand(4, 1, 2, 3)
    y = net(x, torch.linspace(0, 1, 4)).detach()
    assert y.shape == x.shape
    assert float(torch.pdist(y.flatten(1)).min()) > 1e-5


def test_the_classifier_s_features_lead_to_its_answer():
    net, x = Classifier(width=8, dim=5, faults=2), torch.randn(3, 1, 28, 28)
    hidden = torch.nn.functional.silu(net.features(x))
    assert hidden.shape == (3, 5) and net(x).shape == (3, 10)
    torch.testing.assert_close(net(x), net.head(hidden))
    label, fault = net.both(x)
    torch.testing.assert_close(label, net(x))
    torch.testing.assert_close(fault, net.fault_head(hidden))


U, X = torch.zeros(2), torch.zeros(2, 1, 8, 8)
NET = unet(classes=4)
ONES = {"label": torch.ones(2).long()}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: NET(X[0], U), r"\(B, 1, H, W\)"),
        (lambda: NET(X.expand(2, 3, 8, 8), U), r"pictures \(B, 1, H, W\), got \(2, 3"),
        (lambda: NET(X[..., :6], U), "multiples of 4"),
        (lambda: NET(X[..., :0], U), "multiples of 4"),
        (lambda: unet(multipliers=(1, 1, 1))(torch.zeros(2, 1, 28, 28), U), "of 8"),
        (lambda: NET(X, torch.zeros(2, 1)), r"shape \(B,\)"),
        (lambda: NET(X, U, {"label": torch.zeros(3).long()}), "2 int64 numbers"),
        (lambda: NET(X, U, {"label": torch.zeros(2)}), "2 int64 numbers"),
        (lambda: NET(X, U, {"label": torch.zeros(2).bool()}), "2 int64 numbers"),
        (lambda: NET(X, U, {"label": torch.tensor([0, 5])}), "0 to 3, or 4"),
        (lambda: NET(X, U, {"label": torch.tensor([-1, 0])}), "0 to 3, or 4"),
        (lambda: NET(X, U, {"labels": ONES["label"]}), r"\['labels'\]: only 'label'"),
        (lambda: unet()(X, U, ONES), "built without classes"),
        (lambda: unet().null(ONES), "no label"),
        (lambda: NET.null({"text": ONES["label"]}), "no label"),
        (lambda: UNet(width=12), "multiple of 8"),
        (lambda: UNet(stem=6), "of 4"),
        (lambda: UNet(blocks=0), "blocks >= 1"),
        (lambda: UNet(multipliers=()), "multiple"),
        (lambda: UNet(classes=0), "classes"),
        (lambda: Attention(8, heads=3), "heads"),
        (lambda: MLP(5, width=8)(X, U), "expected 5 values, got 64"),
        (lambda: MLP(64, width=8)(X, U, ONES), "takes no condition"),
        (lambda: Classifier()(X), r"\(B, 1, 28, 28\)"),
        (lambda: Classifier()(torch.zeros(2, 3, 28, 28)), r"\(B, 1, 28, 28\)"),
        (lambda: Classifier().both(torch.zeros(2, 1, 28, 28)), "faults=0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_noisy_classifier_answers_for_any_size_and_refuses_the_rest():
    net = NoisyClassifier(classes=4, width=8, dim=8)
    assert net(torch.randn(3, 1, 20, 12), torch.rand(3)).shape == (3, 4)
    with pytest.raises(ValueError, match="expected pictures"):
        net(torch.randn(3, 2, 8, 8), torch.rand(3))
    with pytest.raises(ValueError, match="times"):
        net(torch.randn(3, 1, 8, 8), torch.rand(2))
