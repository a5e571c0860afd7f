"""Distillation: paths of a teacher, and students that learn where they end."""

import pytest
import torch

from diffusion_lib import checkpoints, distillation, recipes
from diffusion_lib.__main__ import main
from diffusion_lib.analytic import GaussianMixture, linear_moments
from diffusion_lib.checkpoints import Spec, facts
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.distillation import (
    TAUGHT,
    few_step_loss,
    few_step_times,
    lesson,
    path_points,
    paths,
    straightness,
    taught,
)
from diffusion_lib.grids import log_snr_times
from diffusion_lib.losses import denoising_loss
from diffusion_lib.networks import MLP
from diffusion_lib.process import q_sample
from diffusion_lib.recipes import RECIPES, run_recipe, sampling_times
from diffusion_lib.samplers import consistency_step, ddim_step, heun_step, sample
from diffusion_lib.schedules import FlowSchedule, VPSchedule, cosine_schedule
from diffusion_lib.training import shuffled, train

f64 = torch.float64
TINY = Spec("UNet", {"width": 8, "stem": 4, "dim": 8, "classes": 3}, "cosine_schedule")


def test_a_path_is_the_trajectory_with_its_start(mixture):
    schedule = VPSchedule()
    x, times = torch.randn(5, 2, dtype=f64), schedule.times(6)
    xs = paths(mixture.denoiser(schedule), schedule, x, times, heun_step)
    assert xs.shape == (7, 5, 2) and torch.equal(xs[0], x)
    ends = sample(mixture.denoiser(schedule), schedule, x, times, heun_step)
    assert torch.equal(xs[-1], ends)


def test_only_lines_at_even_speed_are_straight():
    """The path t^2 is off its chord's speed by 2 t - 1: the mean square is 1/3."""
    times = torch.linspace(1, 0, 2001, dtype=f64)
    line = times[:, None, None] * torch.tensor([[1.0, -2.0], [0.0, 3.0]]).double()
    assert float(straightness(line + 1, times).abs().max()) < 1e-20
    both = torch.cat([line[:, :1], (times**2)[:, None, None].expand(-1, 1, 2)], dim=1)
    torch.testing.assert_close(
        straightness(both, times),
        torch.tensor([0, 1 / 3], dtype=f64),
        atol=1e-6,
        rtol=0,
    )
    uneven = times**2  # the same parabola, at other times
    torch.testing.assert_close(
        straightness((uneven**2)[:, None, None], uneven),
        torch.tensor([1 / 3], dtype=f64),
        atol=1e-5,
        rtol=0,
    )
    with pytest.raises(ValueError, match="do not fit"):
        straightness(line, times[1:])


def test_the_cost_of_noise_and_data_drawn_apart_splits_in_three(mixture):
    """E|eps - x_0|^2 = cost of the paths' ends + straightness + least loss."""
    schedule, n = FlowSchedule(), 2000
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(n, 2, dtype=f64, generator=generator)
    times = torch.linspace(0.99999, 1e-5, 101, dtype=f64)
    denoise = mixture.denoiser(schedule)
    xs = paths(denoise, schedule, eps, times, heun_step)
    bent = straightness(xs, times).mean()
    x0 = mixture.sample(n, generator)
    least = []
    for t in times[1:-1:2]:
        x = q_sample(schedule, x0, t, eps)
        velocity = (x - denoise(x, t)) / t
        least.append((eps - x0 - velocity).square().mean())
    parts = (xs[0] - xs[-1]).square().mean() + bent + torch.stack(least).mean()
    assert float(bent) > 0.05
    assert float(parts) == pytest.approx(float((eps - x0).square().mean()), rel=0.04)


def test_a_point_of_a_path_is_its_end_with_its_noise(schedule):
    x = schedule.noise((4, 3), dtype=f64)
    oracle = GaussianMixture(torch.tensor([[0.5, -1.0, 0.0]], dtype=f64), 0.4)
    times = log_snr_times(schedule, 5, -5.0, 5.0)
    xs = paths(oracle.denoiser(schedule), schedule, x, times)
    x0, eps, t = path_points(schedule, xs, times)
    assert len(x0) == len(eps) == len(t) == 20
    torch.testing.assert_close(q_sample(schedule, x0, t, eps), xs[:-1].flatten(0, 1))
    assert torch.equal(x0[4:8], xs[-1]) and torch.equal(t[4:8], times[1].expand(4))


@pytest.mark.parametrize("calls", [1, 2, 5])
def test_with_the_true_ends_any_number_of_calls_samples_the_law(calls):
    """A Gaussian's path keeps its number of deviations, and the steps are linear."""
    schedule, mean, std = VPSchedule(), 0.7, 0.4

    def end(x, t):
        alpha, sigma = schedule(t, x)
        return mean + std * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2) ** 0.5

    times = few_step_times(cosine_schedule(), calls)
    times = schedule.time_at(cosine_schedule().log_snr(times[:-1])).clamp(max=1)
    times = torch.cat([times, torch.zeros(1, dtype=f64)])
    alpha, sigma = schedule.at(times[0], times)
    start = torch.tensor([alpha * mean], dtype=f64)
    spread = torch.tensor([[alpha**2 * std**2 + sigma**2]], dtype=f64)
    found = linear_moments(consistency_step, end, schedule, times, start, spread)
    torch.testing.assert_close(found[0], torch.tensor([mean], dtype=f64))
    torch.testing.assert_close(found[1], torch.tensor([[std**2]], dtype=f64))


def test_a_student_of_an_exact_teacher_learns_the_map_of_its_paths():
    """On the line the end of a path is known: it keeps its share of the law."""
    schedule = VPSchedule()
    means = torch.tensor([[-1.0], [1.0]], dtype=f64)
    law = GaussianMixture(means, 0.25, torch.tensor([0.4, 0.6], dtype=f64))
    times = log_snr_times(schedule, 24, -8.0, 8.0)
    start = torch.randn(1000, 1, dtype=f64)
    xs = paths(law.denoiser(schedule), schedule, start, times)
    points = (value.float() for value in path_points(schedule, xs, times))
    student = Denoiser(MLP(1, 64), schedule, "v")

    def loss(denoiser, batch):
        x0, eps, t = batch
        return denoising_loss(denoiser, x0, t=t, eps=eps)

    batches = shuffled(*points, size=256)
    student = train(student, loss, batches, 600, rate=5e-3, ema=0.98).ema

    share = (torch.arange(200, dtype=f64) + 0.5) / 200
    x = torch.special.ndtri(share)[:, None]
    ladder = torch.linspace(-3, 3, 6001, dtype=f64)
    below = torch.special.ndtr((ladder[:, None] - means[:, 0]) / 0.25) @ law.weights
    ends = ladder[torch.searchsorted(below, share).clamp(max=6000)][:, None]
    mean = law.denoiser(schedule)(x, times[0])
    with torch.no_grad():
        answer = student(x.float(), times[0]).double()
    error = (answer - ends).square().mean().sqrt()
    assert float((mean - ends).square().mean().sqrt()) > 0.9 and float(error) < 0.15


def test_a_lesson_is_the_noisy_part_of_paths_with_their_labels(monkeypatch):
    teacher = awake(TINY.build())
    x0, eps, t, label = lesson(teacher, 5, seed=3)
    assert x0.shape == eps.shape == (5 * TAUGHT, 1, 28, 28)
    times = sampling_times(teacher.schedule, distillation.CALLS)
    assert torch.equal(t, times[:TAUGHT].repeat_interleave(5))
    assert torch.equal(x0[:5], x0[-5:]) and torch.equal(label[:5], label[-5:])
    assert label.min() >= 0 and label.max() <= 3  # 3 is null
    alpha, sigma = teacher.schedule.at(t[0], x0)
    start = alpha * x0[:5] + sigma * eps[:5]
    noise = teacher.schedule.noise((5, 1, 28, 28), torch.Generator().manual_seed(3))
    torch.testing.assert_close(start, noise, atol=1e-5, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        told = distillation.given(teacher, {"label": label[:5]})
        ends = sample(told, teacher.schedule, noise, times, distillation.dpmpp_2m_step)
    torch.testing.assert_close(x0[:5], ends.float(), atol=1e-5, rtol=0)
    loss = few_step_loss(TINY.build(), (x0, eps, t, label))
    assert loss.shape == (35,) and bool(loss.isfinite().all())


def awake(module):
    """The module with weights as if trained: no zero layers."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module.eval()


def test_the_calls_of_four_are_points_that_were_taught():
    schedule = cosine_schedule()
    points = sampling_times(schedule, distillation.CALLS)[:TAUGHT]
    calls = few_step_times(schedule, 4)[:-1]
    levels = schedule.log_snr(calls), schedule.log_snr(points[::2])
    torch.testing.assert_close(*levels, atol=3e-3, rtol=0)
    assert [len(few_step_times(schedule, n)) for n in (1, 2, 4)] == [2, 3, 5]


def test_batches_repeat_themselves_and_lots_do_not(tmp_path, monkeypatch):
    checkpoints.save(tmp_path / "t.safetensors", awake(TINY.build()), TINY)
    monkeypatch.setattr(distillation, "LOT", 4)
    batches = taught(7, seed=1, teacher=str(tmp_path / "t.safetensors"))
    first, second, other = batches(0), batches(3), batches(4)
    assert [len(part) for part in first] == [7] * 4
    again = taught(7, seed=1, teacher=str(tmp_path / "t.safetensors"))
    assert all(torch.equal(*pair) for pair in zip(again(3), second, strict=True))
    lot = torch.cat([batches(k)[0] for k in range(4)]).flatten(1)
    assert len(lot.unique(dim=0)) == 4  # each path's end, TAUGHT times
    assert len(torch.cat([lot, other[0].flatten(1)]).unique(dim=0)) > 4


@pytest.mark.parametrize("there", [False, True])
def test_the_teacher_is_where_training_puts_the_student(monkeypatch, there):
    """An accelerator of any kind, if there is one; a GPU of one maker is none."""
    found = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not there)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: there)
    device = torch.device("meta")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: device)
    monkeypatch.setattr(
        checkpoints, "load", lambda name, device: found.update({name: str(device)})
    )
    taught(7, teacher="it")
    assert found == {"it": "meta" if there else "cpu"}


@pytest.mark.slow
def test_the_recipe_begins_at_its_teacher(tmp_path, monkeypatch):
    monkeypatch.setattr(distillation, "LOT", 20)
    recipe = RECIPES["fashion-few-step"]
    monkeypatch.setitem(vars(recipe), "facts", None)
    monkeypatch.setitem(vars(recipe), "batch", 4)
    path = run_recipe("fashion-few-step", tmp_path, steps=1, precision="no", rate=1e-6)
    student, teacher = checkpoints.load(path), checkpoints.load("fashion-unet")
    x, label = torch.randn(2, 1, 28, 28), torch.tensor([3, 8])
    with torch.no_grad():
        same = [net(x, 900, {"label": label}) for net in (student, teacher)]
    torch.testing.assert_close(*same, atol=1e-3, rtol=0)
    assert facts(path)["note"] == recipe.note


def test_a_consistency_step_keeps_nothing_of_the_noise_it_came_with():
    schedule, x = FlowSchedule(), torch.randn(4, 2, dtype=f64)
    z = torch.randn(4, 2, dtype=f64)
    x_s, x0, _ = consistency_step(
        lambda x, t: 0 * x + 2, schedule, x, 1.0, 0.25, None, lambda: z
    )
    torch.testing.assert_close(x_s, 0.75 * x0 + 0.25 * z)
    end, _, _ = consistency_step(lambda x, t: 0 * x + 2, schedule, x, 1.0, 0.0)
    torch.testing.assert_close(
        end, ddim_step(lambda x, t: 0 * x + 2, schedule, x, 1.0, 0.0)[0]
    )


@pytest.mark.parametrize("told", [{}, {"student": True}])
def test_the_command_line_samples_a_student_as_one(told, tmp_path, monkeypatch):
    heard = {}

    def generate(denoiser, n, calls, **how):
        heard.update(how)
        return torch.zeros(n, 1, 28, 28)

    monkeypatch.setattr(recipes, "generate", generate)
    path = tmp_path / "net.safetensors"
    checkpoints.save(path, TINY.build(), TINY, told)
    options = ["--n", "1", "--calls", "2", "--out", str(tmp_path / "x.png")]
    assert main(["sample", str(path), *options]) == 0
    assert heard.get("step") is (consistency_step if told else None)
    assert len(heard.get("times", [])) == (3 if told else 0)


def test_scores_begin_from_noise_that_no_lesson_of_the_recipe_began_from():
    recipe = RECIPES["fashion-few-step"]
    lots = recipe.steps * recipe.batch // (distillation.LOT * TAUGHT) + 1
    seeds = {1_000_003 * seed + k for seed in range(3) for k in range(lots)}
    assert distillation.UNSEEN not in seeds
