"""The cascade: what an upsampler is shown and told, and its recipes in small."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from diffusion_lib import cascade
from diffusion_lib.cascade import (
    generate_by_cascade,
    shrunk,
    small_loss,
    told,
    upsample,
    upsampler_loss,
)
from diffusion_lib.checkpoints import Spec, load, save
from diffusion_lib.measurements import cascade as study
from diffusion_lib.networks import Upsampler
from diffusion_lib.recipes import RECIPES
from diffusion_lib.schedules import cosine_schedule
from diffusion_lib.training import shuffled, train

NAMES = ("fashion-small", "fashion-upsampler-14", "fashion-upsampler-28")
TINY = Spec("Upsampler", {"width": 8, "stem": 4, "dim": 8}, "cosine_schedule")


def awake(module):
    """The module with weights as if trained: no zero layers."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module.eval()


def test_small_pictures_are_means_of_squares(fashion):
    x = fashion[0][:3]
    small = shrunk(x, 7)
    assert small.shape == (3, 1, 7, 7)
    torch.testing.assert_close(small[:, :, 0, 1], x[:, :, :4, 4:8].mean((2, 3)))
    torch.testing.assert_close(shrunk(shrunk(x, 14), 7), small)
    with pytest.raises(ValueError, match="size 8 must divide"):
        shrunk(x, 8)


def test_the_upsampler_hears_the_picture_and_the_level():
    net = awake(Upsampler(width=8, stem=4, dim=8, classes=3))
    x, u = torch.randn(2, 1, 28, 28), torch.tensor([0.3, 0.7])
    cond = {"low_res": torch.randn(2, 1, 14, 14), "level": torch.tensor([0.1, 0.2])}
    with torch.no_grad():
        plain = net(x, u, cond)
        assert plain.shape == x.shape
        for name, value in cond.items():
            other = net(x, u, {**cond, name: value + 1})
            assert float((other - plain).abs().max()) > 1e-3, name
        label = {**cond, "label": torch.tensor([0, 2])}
        assert float((net(x, u, label) - plain).abs().max()) > 1e-4
        torch.testing.assert_close(net(x, u, net.null(label)), plain)
    assert torch.equal(net.null(label)["low_res"], cond["low_res"])


@pytest.mark.parametrize("fits", [{}, {"low_res": 0}, {"level": 0}, {"both": 0}])
def test_a_missing_or_misfit_picture_is_refused(fits):
    net = Upsampler(width=8, stem=4, dim=8)
    cond = {"low_res": torch.zeros(2, 1, 14, 14), "level": torch.zeros(3)}
    cond = cond if "both" in fits else {k: cond[k] for k in fits}
    with pytest.raises(ValueError, match="do not fit" if len(cond) == 2 else "needs"):
        net(torch.zeros(2, 1, 28, 28), torch.zeros(2), cond or None)


def test_what_is_told_is_the_small_picture_with_that_noise():
    schedule, eps = cosine_schedule(), torch.randn(2, 1, 7, 7)
    low = torch.randn(2, 1, 7, 7)
    clean = told(schedule, low, 0, eps)
    torch.testing.assert_close(clean["low_res"], low)
    assert clean["level"].tolist() == [0, 0]
    noisy = told(schedule, low, torch.tensor([0.0, 400.0]), eps)
    alpha, sigma = schedule(400, low)
    torch.testing.assert_close(noisy["low_res"][1], alpha * low[1] + sigma * eps[1])
    torch.testing.assert_close(noisy["level"], torch.tensor([0.0, 0.4]))


@pytest.mark.parametrize("name", NAMES)
def test_each_recipe_s_loss_and_net_fit(name, fashion):
    """A fresh net answers 0, so each loss is near the mean square of v."""
    recipe, batch = RECIPES[name], (fashion[0][:16], fashion[1][:16])
    loss = recipe.loss(recipe.spec.build(), batch)
    assert loss.shape == (16,) and 0.05 < float(loss.detach().mean()) < 2


@pytest.mark.parametrize("size", [14, 28])
def test_training_sees_half_the_size_and_every_level(size, fashion, monkeypatch):
    heard = []
    monkeypatch.setattr(
        cascade, "denoising_loss", lambda d, x0, cond, t: heard.append((x0, cond)) or t
    )
    upsampler_loss(TINY.build(), (fashion[0][:200],), size)
    ((x0, cond),) = heard
    assert x0.shape[-1] == size and cond["low_res"].shape[-1] == size // 2
    assert 0 <= cond["level"].min() < 0.05 and 0.35 < cond["level"].max() <= 0.4


def test_a_little_training_lowers_the_loss_and_uses_the_small_picture(fashion):
    torch.manual_seed(0)
    options = {**TINY.net_options, "multipliers": [1]}
    denoiser = Spec("Upsampler", options, "cosine_schedule").build()
    batches = shuffled(*(part[:500] for part in fashion), size=32)
    loss = partial(upsampler_loss, size=14)
    run = train(denoiser, loss, batches, 40, warmup=5, rate=5e-3)
    assert sum(run.losses[-10:]) < 0.8 * sum(run.losses[:10])
    x, losses = shrunk(fashion[0][500:628], 14), []
    for low in (x, x.flip(0)):  # its own small picture, or another's
        t, eps = torch.full((128,), 500), torch.zeros_like(x[:, :, ::2, ::2])
        cond = told(denoiser.schedule, shrunk(low, 7), 0, eps)
        torch.manual_seed(1)
        with torch.no_grad():
            losses.append(cascade.denoising_loss(denoiser, x, cond, t).mean())
    assert losses[0] < losses[1]


def test_sampling_doubles_the_sides_and_repeats_itself():
    denoiser, low = awake(TINY.build()), torch.rand(3, 1, 14, 14)
    x = upsample(denoiser, low, 2)
    assert x.shape == (3, 1, 28, 28)
    torch.testing.assert_close(upsample(denoiser, low, 2, batch=2), x)
    for other in ({"seed": 1}, {"level": 0.3}):
        assert float((upsample(denoiser, low, 2, **other) - x).abs().max()) > 1e-3
    with pytest.raises(ValueError, match=r"level must lie in \[0, 0.4\]"):
        upsample(denoiser, low, 2, level=0.5)


def test_three_stages_make_a_picture(tmp_path):
    small = {"width": 16, "depth": 1, "heads": 2, "patch": 1, "dim": 8, "classes": 10}
    specs = [
        Spec("Transformer", small, "cosine_schedule"),
        Spec("Upsampler", {**TINY.net_options, "multipliers": [1]}, "cosine_schedule"),
        TINY,
    ]
    nets = [awake(spec.build()) for spec in specs]
    stages = generate_by_cascade(nets, 2, torch.tensor([1, 2]), calls=2)
    assert [x.shape[-1] for x in stages] == [7, 14, 28]
    assert all(float(x.abs().max()) <= 1 for x in stages)
    save(tmp_path / "up.safetensors", nets[1], specs[1])
    loaded = load(tmp_path / "up.safetensors")
    same = upsample(loaded, stages[0], 2), upsample(nets[1], stages[0], 2)
    torch.testing.assert_close(*same, rtol=1e-2, atol=1e-2)


def test_the_small_loss_is_taken_at_seven(fashion, monkeypatch):
    seen = []
    monkeypatch.setattr(cascade, "label_loss", lambda d, batch, t: seen.append(batch))
    small_loss(TINY.build(), (fashion[0][:4], fashion[1][:4]))
    torch.testing.assert_close(seen[0][0], F.avg_pool2d(fashion[0][:4], 4))


def test_the_study_scores_every_level_and_the_pixel_model(measured, monkeypatch):
    small = {"N": 10, "SEEDS": 1, "CALLS": 2, "LEVELS": (0.0, 0.4)}
    for name, value in small.items():
        monkeypatch.setattr(study, name, value)
    runs = {run["row"]: run for run in measured("cascade")["runs"]}
    assert [*runs] == ["pixels", "level 0", "level 0.4"]
    assert 0 < runs["level 0"]["to_small"] < runs["level 0.4"]["to_small"]
    assert all(run["n"] == 10 and 0 <= run["named"] <= 1 for run in runs.values())
