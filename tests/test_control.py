"""Control: nothing at first, moves itself alone, and is tied to its base."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from diffusion_lib import control
from diffusion_lib.checkpoints import Spec, facts, fingerprint, load, save
from diffusion_lib.control import (
    agreement,
    control_facts,
    control_loss,
    controlled,
    edges,
    load_controlled,
)
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.recipes import RECIPES, generate, run_recipe
from diffusion_lib.training import shuffled, train

OPTIONS = {"width": 8, "stem": 4, "dim": 8, "classes": 10}
TINY = Spec("UNet", OPTIONS, "cosine_schedule")
ADDED = Spec("Control", {"unet": OPTIONS})


@pytest.fixture
def base(monkeypatch, tmp_path):
    """A small frozen denoiser, as if trained, in the place of fashion-unet."""
    denoiser = TINY.build().eval().requires_grad_(False)
    for parameter in denoiser.parameters():
        parameter.copy_(torch.randn(parameter.shape).mul(0.1).half())
    save(tmp_path / "base.safetensors", denoiser, TINY)
    monkeypatch.setattr(control, "BASE", str(tmp_path / "base.safetensors"))
    control._frozen.cache_clear()
    yield denoiser
    control._frozen.cache_clear()


def copied(base):
    """A control as training begins it."""
    found = ADDED.build()
    found.copy_encoder(base.net)
    return found


def awake(found):
    """The control as if trained: its zeros are no more."""
    for zero in found.zeros:
        torch.nn.init.normal_(zero.weight, std=0.3)
    return found


def asked(fashion, n=6):
    return {"label": fashion[1][:n], "hint": edges(fashion[0][:n])}


def test_a_step_is_an_edge_of_its_height():
    x = torch.full((2, 1, 8, 8), -1.0)
    x[0, ..., 4:] = 1.0
    x[1, ..., 4:] = -0.5  # a quarter of the range: too little
    found = edges(x)
    assert found[0, 0, 0].tolist() == [0, 0, 0, 1, 1, 0, 0, 0]
    assert not found[1].any() and found.shape == (2, 1, 8, 8)
    assert torch.equal(edges(x.transpose(2, 3)), found.transpose(2, 3))
    assert torch.equal(edges(x.expand(-1, 3, -1, -1)), found)


def test_agreement_is_f1(fashion):
    x, empty = fashion[0][:5], torch.full((1, 1, 28, 28), -1.0)
    assert agreement(x, edges(x)).tolist() == [1.0] * 5
    assert float(agreement(empty, edges(empty))) == 1
    assert float(agreement(empty, edges(x[:1]))) == 0
    mine, other = edges(x[:1]), edges(x[1:2])
    hits = float((mine * other).sum())
    precision, recall = hits / float(mine.sum()), hits / float(other.sum())
    harmonic = 2 * precision * recall / (precision + recall)
    assert float(agreement(x[:1], other)) == pytest.approx(harmonic)


def test_at_first_the_base_is_unchanged_to_the_last_bit(base, fashion):
    net, x, t = controlled(base, copied(base)), torch.randn(6, 1, 28, 28), 300
    cond = asked(fashion)
    label = {"label": cond["label"]}
    assert torch.equal(net(x, t, cond), base(x, t, label))
    assert torch.equal(net(x, t), base(x, t))
    woken = controlled(base, awake(copied(base)))
    assert torch.equal(woken(x, t, label), base(x, t, label))  # no hint, no control
    assert not torch.allclose(woken(x, t, cond), base(x, t, label), atol=1e-3)
    silent = controlled(base, woken.net.control, strength=0.0)
    assert torch.equal(silent(x, t, cond), base(x, t, label))


def test_the_copy_begins_with_the_base_s_features(base, fashion):
    found, x, u = copied(base), fashion[0][:3], torch.full((3,), 0.5)
    blind = torch.cat([x, torch.rand(3, 1, 28, 28)], dim=1)  # the hint is not heard yet
    skips, _, _ = found.encoder.encode(blind, u, {"label": fashion[1][:3]})
    wanted, _, _ = base.net.encode(x, u, {"label": fashion[1][:3]})
    for mine, theirs in zip(skips, wanted, strict=True):
        assert_close(mine, theirs)


def test_the_first_gradient_reaches_the_zeros_alone(base, fashion):
    """Zero weights stop what is behind them for one step, not for two."""
    found = copied(base)
    optimizer = torch.optim.SGD(found.parameters(), 1.0)
    for step in range(2):
        optimizer.zero_grad()
        control_loss(
            found, (fashion[0][:4], fashion[1][:4]), half=False
        ).mean().backward()
        inner = sum(float(p.grad.abs().sum()) for p in found.encoder.parameters())
        outer = sum(float(p.grad.abs().sum()) for p in found.zeros.parameters())
        assert outer > 0 and (inner > 0) == (step == 1)
        optimizer.step()


def test_training_moves_the_control_and_not_the_base(base, fashion):
    found, kept = copied(base), fingerprint(base)
    before = {name: p.clone() for name, p in found.named_parameters()}
    batches = shuffled(*(part[:200] for part in fashion), size=16)
    train(found, control_loss, batches, 4, warmup=1, precision="bf16")
    assert (
        fingerprint(base) == kept == fingerprint(control._frozen(torch.device("cpu")))
    )
    same = [n for n, p in found.named_parameters() if torch.equal(before[n], p)]
    assert all("label" in name for name in same)  # of garments not in the batches


def test_guidance_drops_the_label_and_keeps_the_hint(base, fashion):
    net, cond = controlled(base, copied(base)), asked(fashion)
    null = net.null(cond)
    assert torch.equal(null["hint"], cond["hint"])
    assert null["label"].tolist() == [10] * 6
    with pytest.raises(ValueError, match="no label or text"):
        net.null({"hint": cond["hint"]})


@pytest.mark.parametrize("hint", [torch.zeros(2, 1, 14, 14), torch.zeros(1, 1, 28, 28)])
def test_a_hint_that_does_not_fit_is_refused(base, hint):
    net = controlled(base, copied(base))
    with pytest.raises(ValueError, match=r"need a 'hint' \(2, 1, 28, 28\)"):
        net(torch.zeros(2, 1, 28, 28), 300, {"hint": hint})


def test_a_file_finds_its_base_and_refuses_another(base, tmp_path):
    found, path = awake(copied(base)), tmp_path / "control.safetensors"
    told = {"base": control.BASE, "base_hash": fingerprint(base)}
    save(path, found, ADDED, told)
    loaded, x, t = load_controlled(path), torch.randn(2, 1, 28, 28), 300
    cond = {"hint": (torch.rand(2, 1, 28, 28) > 0.8).float()}
    wanted = controlled(base, found)(x, t, cond)
    assert_close(loaded(x, t, cond), wanted, atol=1e-2, rtol=1e-2)
    base.net.stem.weight += 1
    save(control.BASE, base, TINY)
    with pytest.raises(ValueError, match="trained on .* weights were others"):
        load_controlled(path)


def test_the_recipe_begins_with_the_base_and_says_so(base, monkeypatch, tmp_path):
    recipe = RECIPES["fashion-control"]
    small = replace(recipe, spec=ADDED, batch=4, facts=partial(control_facts, n=4))
    monkeypatch.setitem(RECIPES, "fashion-control", small)
    began = RECIPES["fashion-control"].make()
    assert torch.equal(began.encoder.enter.weight, base.net.enter.weight)
    path = run_recipe("fashion-control", tmp_path / "run", steps=1)
    assert load_controlled(path).net.base.classes == 10
    assert facts(path)["base_hash"] == fingerprint(base)


def test_the_shipped_control_is_small_enough():
    size = sum(p.numel() for p in RECIPES["fashion-control"].spec.build().parameters())
    assert 2 * size < 2.5e6  # bytes, in half precision


def test_facts_compare_with_no_control(base):
    told = control_facts(awake(copied(base)), None, n=4)
    assert told["base_hash"] == fingerprint(base)
    scores = told["obeyed"]["controlled"], told["obeyed"]["not controlled"]
    assert scores[0] != scores[1] and all(0 <= s["edge_f1"] <= 1 for s in scores)


def test_a_fingerprint_survives_the_file_and_sees_one_bit(base, tmp_path):
    assert fingerprint(load(control.BASE)) == fingerprint(base)
    kept = fingerprint(base)
    base.net.stem.weight[0, 0, 0, 0] += 1e-2
    assert fingerprint(base) != kept


def test_a_controlled_latent_model_keeps_its_decoder(base):
    decoder = torch.nn.Identity()
    latent = Denoiser(base.net, base.schedule, base.prediction, decoder=decoder)
    assert controlled(latent, copied(base)).decoder is decoder


def test_samples_have_the_size_asked_for(base, fashion):
    net, cond = controlled(base, copied(base)), asked(fashion)
    pictures = generate(net, 6, 2, cond["label"], cond={"hint": cond["hint"]}, scale=2)
    assert pictures.shape == (6, 1, 28, 28)
