"""Networks that read: masks, nulls, cross-attention, its maps, and CLIP."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from diffusion_lib import checkpoints
from diffusion_lib.checkpoints import Spec
from diffusion_lib.guidance import classifier_free, given
from diffusion_lib.losses import denoising_loss, dropped
from diffusion_lib.networks import CLIP, CrossAttention, TextEncoder, UNet
from diffusion_lib.networks.blocks import attention_maps, zero_
from diffusion_lib.networks.text import PAD, START, no_words

SMALL = {"width": 8, "stem": 4, "dim": 16, "text": {"words": 9, "width": 8}}
TOKENS = torch.tensor([[START, 3, 4, 8], [START, 5, PAD, PAD]])


def awake(net):
    """Fill the zero layers, as if trained."""
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return net.eval().requires_grad_(False)


def unet(**options):
    return awake(UNet(**{**SMALL, **options}))


def filled(tokens, n):
    return F.pad(tokens, (0, n), value=PAD)


def test_filling_says_nothing():
    encoder = TextEncoder(9, 8).eval()
    with torch.no_grad():
        short, long = encoder(TOKENS), encoder(filled(TOKENS, 5))
        alone = encoder(TOKENS[1:, :2])
    assert_close(long[:, :4], short)
    assert_close(short[1, :2], alone[0])


def test_the_order_of_words_matters_and_every_word_is_heard():
    encoder = TextEncoder(9, 8).eval()
    tokens = torch.tensor([[1, 3, 4, 5], [1, 4, 3, 5], [1, 3, 4, 6]])
    with torch.no_grad():
        apart = torch.pdist(encoder(tokens)[:, 0])
    assert float(apart.min()) > 1e-3


def test_cross_attention_is_torch_s():
    layer = CrossAttention(8, 6, heads=2)
    layer.norm, layer.out = nn.Identity(), nn.Linear(8, 8)
    x, words = torch.randn(2, 8, 3, 5), torch.randn(2, 4, 6)
    mask = TOKENS != PAD
    with torch.no_grad():
        q = layer.query(x.flatten(2).transpose(1, 2))
        q, k, v = (
            a.unflatten(-1, (2, 4)).transpose(1, 2)
            for a in (q, layer.key(words), layer.value(words))
        )
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        h = layer.out(h.transpose(1, 2).flatten(2)).transpose(1, 2)
        assert_close(layer(x, words, mask), x + h.reshape(x.shape))


def test_cross_attention_begins_as_nothing():
    x, words = torch.randn(2, 8, 3, 3), torch.randn(2, 4, 6)
    assert torch.equal(CrossAttention(8, 6)(x, words, TOKENS != PAD), x)


def test_a_net_hears_the_words_and_not_the_filling():
    net, x, u = (
        unet(),
        torch.randn(1, 1, 8, 16).expand(2, 1, 8, 16),
        torch.full((2,), 0.5),
    )
    y = net(x, u, {"text": TOKENS})
    assert y.shape == x.shape and float((y[0] - y[1]).abs().max()) > 1e-3
    longer = net(x, u, {"text": filled(TOKENS, 6)})
    assert_close(longer, y, rtol=1e-4, atol=1e-5)


def test_no_text_is_the_empty_caption_and_the_null():
    net, x, u = unet(classes=3), torch.randn(2, 1, 8, 8), torch.rand(2)
    null = net.null({"text": TOKENS, "label": torch.tensor([0, 2])})
    assert null["text"].tolist() == [[START, PAD, PAD, PAD]] * 2
    assert null["label"].tolist() == [3, 3]
    assert net.null({"text": TOKENS}).keys() == {"text"}
    for cond in (None, {}, {"label": null["label"]}, {"text": no_words(TOKENS[:, :1])}):
        assert_close(net(x, u, cond), net(x, u, null), rtol=1e-4, atol=1e-5)


def test_every_parameter_of_a_reading_net_takes_part():
    net = unet(classes=2).requires_grad_()
    cond = {"text": TOKENS, "label": torch.tensor([0, 1])}
    net(torch.randn(2, 1, 8, 8), torch.tensor([0.1, 0.9]), cond).pow(2).sum().backward()
    assert [n for n, p in net.named_parameters() if not p.grad.any()] == []


def test_a_net_without_text_is_built_as_before():
    """The same seed gives the same weights, and no key that an old file lacks."""
    torch.manual_seed(0)
    deaf = UNet(width=8, stem=4, dim=16)
    names = deaf.state_dict().keys()
    assert not [n for n in names if "listen" in n or "text" in n]
    assert names < unet().state_dict().keys()
    heard = []
    deaf.up[1].register_forward_pre_hook(lambda _, inputs: heard.append(len(inputs)))
    deaf(torch.zeros(1, 1, 8, 8), torch.zeros(1))
    assert heard == [3]  # its levels are told no more than before: h, e, skips


def test_maps_are_shares_per_place_and_leave_no_hook():
    net, x, u = unet(), torch.randn(2, 1, 8, 16), torch.rand(2)
    with attention_maps(net) as maps:
        y = net(x, u, {"text": TOKENS})
    shapes = [tuple(m.shape) for m in maps]
    assert shapes == [(2, 4, 4, 8, 4), (2, 4, 2, 4, 4)] + [(2, 4, 2, 4, 4), shapes[0]]
    for weights in maps:
        assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        assert not weights[1, ..., 2:].any()  # the filling
    assert_close(net(x, u, {"text": TOKENS}), y)
    assert len(maps) == 4


def denoiser():
    made = Spec("UNet", SMALL, "cosine_schedule", {"T": 10}).build()
    awake(made.net)
    return made


def test_guidance_extrapolates_from_the_empty_caption():
    model, x, t = denoiser(), torch.randn(2, 1, 8, 8), torch.tensor([4.0, 9.0])
    cond = {"text": TOKENS}
    without, told = model(x, t), given(model, cond)(x, t)
    guided = classifier_free(model, cond, 3.0)(x, t)
    assert_close(guided, without + 3 * (told - without), rtol=1e-3, atol=1e-4)
    assert float((guided - told).abs().max()) > 1e-3


def test_captions_are_dropped_whole():
    cond = dropped(denoiser(), {"text": TOKENS.repeat(50, 1)}, 0.5)["text"]
    empty = (cond == no_words(cond)).all(1)
    kept = (cond == TOKENS.repeat(50, 1)).all(1)
    assert bool((empty | kept).all()) and 20 < int(empty.sum()) < 80


def test_reading_nets_are_saved_and_loaded(tmp_path):
    spec, model = Spec("UNet", SMALL, "cosine_schedule", {"T": 10}), denoiser()
    checkpoints.save(tmp_path / "net.safetensors", model, spec)
    loaded = checkpoints.load(tmp_path / "net.safetensors")
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 7.0])
    with torch.no_grad():
        told = loaded(x, t, {"text": TOKENS})
    assert_close(told, model(x, t, {"text": TOKENS}), rtol=0.02, atol=0.02)


def test_a_little_training_teaches_two_captions():
    """All dark for one caption, all light for the other: the loss falls by half."""
    model = Spec("UNet", SMALL, "cosine_schedule", {"T": 10}).build()
    x0 = (
        torch.tensor([-1.0, 1.0])[:, None, None, None]
        .expand(2, 1, 8, 8)
        .repeat(8, 1, 1, 1)
    )
    cond, losses = {"text": TOKENS.repeat(8, 1)}, []
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        loss = denoising_loss(model, x0, cond).mean()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def clip():
    return CLIP(9, dim=8, width=8, size=(8, 16))


def test_clip_s_logits_are_scaled_cosines():
    net, x = clip(), torch.randn(3, 1, 8, 16)
    with torch.no_grad():
        a, b, logits = net.see(x), net.read(TOKENS), net(x, TOKENS)
        net.log_scale.fill_(10.0)
        assert_close(net(x, TOKENS), 100 * a @ b.T)  # the scale's bound
    assert logits.shape == (3, 2)
    assert_close(logits, F.cosine_similarity(a[:, None], b[None], dim=-1) / 0.07)
    assert_close(a.norm(dim=1), torch.ones(3))


def test_clip_does_not_mind_filling():
    net = clip().eval()
    with torch.no_grad():
        assert_close(net.read(filled(TOKENS, 3)), net.read(TOKENS))


X, U = torch.zeros(2, 1, 8, 8), torch.zeros(2)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: TextEncoder(2), "3 or more"),
        (lambda: TextEncoder(9, width=6), "4 heads divide 6"),
        (lambda: TextEncoder(9)(TOKENS.float()), "int64 tokens"),
        (lambda: TextEncoder(9)(TOKENS[0]), r"\(B, L\)"),
        (lambda: TextEncoder(8)(TOKENS), "0 to 7"),
        (lambda: TextEncoder(9)(-TOKENS), "0 to 8"),
        (lambda: TextEncoder(9, length=3)(TOKENS), "1 to 3 tokens, got 4"),
        (lambda: TextEncoder(9)(TOKENS[:, 1:]), "start token"),
        (lambda: CrossAttention(8, 6, heads=3), "3 heads must divide"),
        (lambda: unet()(X, U, {"text": TOKENS[:1]}), "1 captions .* for 2 pictures"),
        (lambda: unet()(X, U, {"label": U.long()}), "only 'text'"),
        (lambda: unet(text=None)(X, U, {"text": TOKENS}), "without classes"),
        (lambda: unet(text=None, classes=2)(X, U, {"text": TOKENS}), "only 'label'"),
        (lambda: unet().null({"label": U.long()}), "no label or text"),
        (lambda: CLIP(9, size=(8, 6)), "multiples of 4"),
        (lambda: clip()(X, TOKENS), "expected pictures"),
        (lambda: Spec("UNet", {"text": {"word": 3}}).build(), "does not take"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_silent_layer_can_be_made_silent_again():
    """With the words' way out at zero, every caption gives the same answer."""
    net, x = unet(), torch.randn(1, 1, 8, 8).expand(2, 1, 8, 8)
    for layer in net.modules():
        if isinstance(layer, CrossAttention):
            zero_(layer.out)
    y = net(x, torch.full((2,), 0.3), {"text": TOKENS})
    assert_close(y[0], y[1])
    assert bool(y.any())
