"""Recipes: complete, reproducible, and the origin of what is shipped."""

import pytest
import torch

from diffusion_lib import checkpoints, recipes
from diffusion_lib.checkpoints import Spec, available, facts
from diffusion_lib.measurements.samplers import plans
from diffusion_lib.recipes import (
    RECIPES,
    focused_loss,
    generate,
    label_loss,
    run_recipe,
    sampling_times,
)
from diffusion_lib.samplers import sample
from diffusion_lib.schedules import cosine_schedule

SMALL = Spec(
    "UNet", {"width": 8, "stem": 4, "dim": 8, "classes": 10}, "cosine_schedule"
)


def batch(fashion, n=40):
    return fashion[0][:n], fashion[1][:n]


@pytest.mark.parametrize("name", available())
def test_what_is_shipped_is_what_its_recipe_makes(name):
    recipe, told = RECIPES[name], facts(name)
    assert Spec(**told["spec"]) == recipe.spec
    assert told["batch"] == recipe.batch and told["note"] == recipe.note
    assert told["steps"] == recipe.steps
    assert {k: told["settings"][k] for k in recipe.settings} == recipe.settings


@pytest.mark.parametrize("drop, nulls", [(0.0, 0), (1.0, 40)])
def test_labels_reach_the_net_or_are_dropped(fashion, drop, nulls):
    denoiser, heard = SMALL.build(), []
    forward = denoiser.net.forward
    denoiser.net.forward = lambda x, u, cond: heard.append(cond) or forward(x, u, cond)
    loss = label_loss(denoiser, batch(fashion), drop=drop)
    assert loss.shape == (40,) and int((heard[0]["label"] == 10).sum()) == nulls


def test_focused_times_are_where_the_docstring_says(fashion, monkeypatch):
    seen = []
    monkeypatch.setattr(
        recipes, "denoising_loss", lambda d, x0, cond, t, weight: seen.append(t) or t
    )
    denoiser = SMALL.build()
    for _ in range(100):
        focused_loss(denoiser, batch(fashion))
    t = torch.cat(seen)
    assert t.min() >= 1 and t.max() <= 1000
    log_snr = denoiser.schedule.log_snr(t)
    assert float(log_snr.median()) == pytest.approx(1.6, abs=0.35)


def test_generated_pictures_follow_seed_and_label_not_the_batch():
    denoiser = SMALL.build().eval()
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # no zero layers, as if trained
    label = torch.tensor([0, 1, 2, 3, 4])
    x = generate(denoiser, 5, 3, label)
    assert x.shape == (5, 1, 28, 28) and float(x.std()) > 1e-3
    split = generate(denoiser, 5, 3, label, batch=2)
    torch.testing.assert_close(split, x, rtol=1e-3, atol=1e-3)
    assert not torch.equal(generate(denoiser, 5, 3, label, seed=1), x)
    other = generate(denoiser, 5, 3, label.flip(0))
    torch.testing.assert_close(
        other[2], x[2], rtol=1e-3, atol=1e-3
    )  # the same label and noise
    assert float((other[0] - x[0]).abs().max()) > 1e-3


def test_the_grid_of_scores_is_karras_s():
    schedule = SMALL.build().schedule
    ratio = (-schedule.log_snr(sampling_times(schedule, 20)[:-1]) / 2).exp()
    assert (float(ratio[0]), float(ratio[-1])) == pytest.approx((80, 0.01), rel=1e-6)
    assert len(ratio) == 20


@pytest.mark.slow
def test_a_recipe_runs_twice_alike_and_leaves_a_checkpoint(tmp_path):
    runs = [
        run_recipe("fashion-classifier", tmp_path / name, steps=3, precision="no")
        for name in "ab"
    ]
    first, second = (facts(path) for path in runs)
    assert first["first_losses"] == second["first_losses"]
    assert first["steps"] == 3 and first["settings"]["seed"] == 0
    weights = [checkpoints.load(path).state_dict() for path in runs]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    with pytest.raises(ValueError, match="other settings"):
        run_recipe("fashion-classifier", tmp_path / "a", steps=4, precision="no")


def test_a_recipe_begins_only_from_what_is_built_alike(tmp_path):
    narrow = checkpoints.Spec("UNet", {"width": 16}, "cosine_schedule")
    checkpoints.save(tmp_path / "narrow.safetensors", narrow.build(), narrow)
    for start, told in (
        (tmp_path / "narrow.safetensors", "net_options = .*16"),
        ("fashion-clip", "net = 'CLIP', fashion-unet 'UNet'"),
    ):
        with pytest.raises(ValueError, match=told):
            run_recipe("fashion-unet", tmp_path / "run", steps=1, start=start)


@pytest.mark.parametrize(
    "x, label, told",
    [(127.5, 0, "values beyond 50"), (1.0, 10, "labels must be 0 to 9, got 10")],
)
def test_what_cannot_be_learned_from_is_refused(x, label, told):
    denoiser = RECIPES["fashion-unet"].spec.build()
    pictures, labels = torch.full((2, 1, 28, 28), x), torch.tensor([1, label])
    with pytest.raises(ValueError, match=told):
        recipes.label_loss(denoiser, (pictures, labels))


def test_unknown_recipes_are_answered_with_the_known():
    with pytest.raises(ValueError, match="no recipe 'unet': there are .*fashion-unet"):
        run_recipe("unet", "nowhere")


def test_guided_generation_extrapolates_and_needs_labels():
    """With one step to 0 the picture is x0_hat itself, so guidance is linear in it."""
    denoiser = SMALL.build().eval()
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    label = torch.tensor([1, 2])
    free, asked, guided = (
        generate(denoiser, 2, 1, label, scale=scale) for scale in (0.0, 1.0, 3.0)
    )
    torch.testing.assert_close(guided, free + 3 * (asked - free), rtol=1e-3, atol=1e-3)
    assert float((free - asked).abs().max()) > 1e-3
    with pytest.raises(ValueError, match="no conditions to drop"):
        generate(denoiser, 2, 1, scale=2.0)


def test_the_sampler_study_spends_what_it_says():
    """The network calls of each row, counted; grids start at noise and end at 0."""
    schedule = cosine_schedule()
    for name, (calls, step, times) in plans(schedule).items():
        made = []

        def denoise(x, t, made=made):
            made.append(t)
            return 0.5 * x

        x = torch.full((1, 1), 0.3, dtype=torch.float64)
        sample(denoise, schedule, x, times, step, torch.Generator().manual_seed(0))
        assert calls - 1 <= len(made) <= calls, name
