"""The loop: its schedules, its average, what is drawn, what is refused."""

import math
import shutil
from typing import NamedTuple

import pytest
import torch
from torch import nn

from diffusion_lib.denoiser import Denoiser
from diffusion_lib.losses import denoising_loss
from diffusion_lib.networks import MLP
from diffusion_lib.schedules import FlowSchedule
from diffusion_lib.training import Settings, shuffled, train

X = torch.randn(48, 2, generator=torch.Generator().manual_seed(1)).double()


def squared(net, batch):
    """A loss that draws nothing: fit the sum of the inputs."""
    (x,) = batch
    return (net(x) - x.sum(1, keepdim=True)).pow(2).mean(1)


def noisy(denoiser, batch):
    return denoising_loss(denoiser, batch[0])


def small(net, batch):
    return net(batch[0]).pow(2).mean(1)


def line():
    torch.manual_seed(5)
    return nn.Linear(2, 1).double()


def denoiser():
    torch.manual_seed(5)
    return Denoiser(MLP(2, width=16), FlowSchedule())


def fit(module=None, loss=squared, steps=20, size=16, **options):
    module = line() if module is None else module
    x = X if loss is squared else X.float()
    return train(module, loss, shuffled(x, size=size), steps, **options)


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_the_rate_warms_up_and_falls_by_half_a_cosine():
    rate_at = Settings(steps=100, rate=0.5, warmup=10).rate_at
    assert rate_at(0) == pytest.approx(0.05)
    assert rate_at(4) == pytest.approx(
        0.25 * (1 + math.cos(0.04 * math.pi)) / 2, rel=1e-12
    )
    assert rate_at(50) == pytest.approx(0.25) and rate_at(100) == pytest.approx(0)
    falling = [rate_at(k) for k in range(10, 101)]
    assert falling == sorted(falling, reverse=True)
    assert Settings(steps=10, rate=0.5, warmup=0).rate_at(0) == 0.5
    stays = Settings(steps=100, rate=0.5, warmup=10, falls=False).rate_at
    assert [stays(k) for k in (0, 9, 50, 99)] == pytest.approx([0.05, 0.5, 0.5, 0.5])
    for steps, warmup in ((1000, 100), (400, 50), (3, 1)):
        given = Settings(steps, warmup=warmup)
        assert all(Settings(steps).rate_at(k) == given.rate_at(k) for k in range(steps))


def test_the_first_step_is_adam_s():
    """Bias-corrected, it moves every weight by the rate against the slope's sign."""
    net = line()
    before = weights(net)
    squared(net, shuffled(X, size=16)(0)).mean().backward()
    slope = torch.cat([p.grad.flatten() for p in net.parameters()])
    run = fit(net, steps=1, rate=0.01, warmup=0, weight_decay=0.0)
    expected = before - 0.01 * slope.sign()
    torch.testing.assert_close(weights(run.model), expected, rtol=1e-5, atol=1e-7)


def test_the_average_is_the_formula():
    """It starts as the first weights, then moves 1 - min(ema, (1 + k) / (10 + k))."""
    net, path = line(), []
    run = fit(
        net,
        steps=12,
        rate=0.05,
        warmup=0,
        ema=0.5,  # reached after eight updates
        on_step=lambda k, loss: path.append(weights(net)),
    )
    average = path[0]
    for k, here in enumerate(path[1:], start=1):
        decay = min(0.5, (1 + k) / (10 + k))
        average = decay * average + (1 - decay) * here
    torch.testing.assert_close(weights(run.ema), average)
    assert not torch.allclose(weights(run.ema), weights(run.model))


def test_two_half_batches_are_one_whole():
    slopes = {1: [], 2: []}

    def parts(accumulate):
        net = line()
        return fit(
            net,
            size=16 // accumulate,
            accumulate=accumulate,
            clip=1e9,
            on_step=lambda k, loss: slopes[accumulate].append(net.weight.grad.clone()),
        )

    whole, halves = parts(1), parts(2)
    torch.testing.assert_close(torch.stack(slopes[1]), torch.stack(slopes[2]))
    torch.testing.assert_close(
        weights(halves.model), weights(whole.model), rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(
        torch.tensor(halves.losses), torch.tensor(whole.losses), rtol=1e-5, atol=1e-7
    )


def test_gradients_are_clipped():
    net, norms = line(), []
    fit(net, clip=0.1, on_step=lambda k, loss: norms.append(slope_norm(net)))
    assert norms == pytest.approx([0.1] * 20, rel=1e-3)  # all of them were longer


def slope_norm(net):
    return float(torch.cat([p.grad.flatten() for p in net.parameters()]).norm())


def test_every_part_of_every_step_has_its_own_noise():
    drawn = []

    def drawing(net, batch):
        drawn.append(float(torch.rand(())))
        return squared(net, batch)

    for seed in (0, 1):
        train(line(), drawing, shuffled(X, size=8), 4, accumulate=2, seed=seed)
    assert len(set(drawn)) == 16


def test_training_fits():
    run = fit(steps=200, rate=0.1)
    torch.testing.assert_close(
        weights(run.model), torch.tensor([1.0, 1.0, 0.0]).double(), rtol=0, atol=1e-3
    )
    assert run.losses[-1] < 1e-4 * run.losses[0] and len(run.losses) == 200


def test_a_denoiser_learns_and_its_average_is_a_denoiser():
    """One point: what remains is far below the loss of a fresh net."""
    run = train(
        denoiser(), noisy, lambda k: (torch.full((64, 2), 0.5),), 200, rate=0.01
    )
    assert sum(run.losses[-20:]) < 0.25 * sum(run.losses[:20])
    assert isinstance(run.ema, Denoiser) and run.ema.net is not run.model.net
    assert run.ema.schedule is run.model.schedule
    assert not run.ema.training and not run.model.training
    with torch.no_grad():
        guess = run.ema(torch.randn(100, 2), 1.0)
    assert float((guess - 0.5).abs().mean()) < 0.25


def test_a_run_is_its_seed_and_leaves_the_caller_s_alone():
    modules = [denoiser() for _ in range(3)]
    state = torch.get_rng_state()
    runs = [
        fit(module, noisy, seed=seed)
        for module, seed in zip(modules, (1, 1, 2), strict=True)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights(runs[0].ema), weights(runs[1].ema))
    assert runs[0].losses == runs[1].losses != runs[2].losses


def test_every_step_is_reported():
    told = []
    run = fit(steps=7, on_step=lambda k, loss: told.append((k, loss)))
    assert told == list(enumerate(run.losses, start=1))


def test_batches_are_epochs_in_ever_new_orders():
    x = torch.arange(10)
    batches = shuffled(x, x + 100, size=3, seed=4)
    epochs = [torch.cat([batches(3 * e + i)[0] for i in range(3)]) for e in range(4)]
    for epoch in epochs:
        assert len(epoch.unique()) == 9  # one example of ten is left out
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4
    a, b = batches(5)
    assert torch.equal(b, a + 100)
    assert torch.equal(a, shuffled(x, size=3, seed=4)(5)[0])  # in whatever order asked
    assert not torch.equal(epochs[0], torch.cat([shuffled(x, size=9, seed=5)(0)[0]]))


def test_mixed_precision_keeps_single_precision_weights():
    full = fit(denoiser(), noisy)
    mixed = fit(denoiser(), noisy, precision="bf16")
    assert {p.dtype for p in mixed.model.parameters()} == {torch.float32}
    assert mixed.losses != full.losses
    torch.testing.assert_close(
        torch.tensor(mixed.losses), torch.tensor(full.losses), rtol=0.02, atol=0
    )
    with torch.no_grad():  # and the net returned computes in single precision
        x = torch.randn(4, 2)
        y, bare = mixed.model(x, 0.5), MLP(2, width=16)
        bare.load_state_dict(mixed.model.net.state_dict())
        assert torch.equal(y, Denoiser(bare, FlowSchedule())(x, 0.5))


def nothing(net, batch):
    return net(batch[0]) * math.nan


def test_mixed_precision_reaches_what_the_loss_calls_beside_forward():
    seen = []

    def by_a_part(net, batch):
        seen.append(net[0](batch[0]).dtype)
        return small(net, batch)

    fit(nn.Sequential(nn.Linear(2, 1)), by_a_part, steps=1, precision="bf16")
    assert seen == [torch.bfloat16]


def test_an_interrupted_run_gives_the_module_back():
    def stop(k, loss):
        raise KeyboardInterrupt

    net = nn.Sequential(nn.Linear(2, 1))
    with pytest.raises(KeyboardInterrupt):
        fit(net, small, precision="bf16", on_step=stop)
    assert not net.training
    with torch.no_grad():
        exact = X.float() @ net[0].weight.T + net[0].bias
        torch.testing.assert_close(net(X.float()), exact)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: fit(loss=lambda n, b: nothing(n, (X,))), "became nan at step 0"),
        (lambda: fit(steps=0), "at least 1"),
        (lambda: fit(accumulate=0), "at least 1"),
        (lambda: fit(ema=1.0), r"ema lies in \[0, 1\)"),
        (lambda: fit(clip=0), "math.inf clips nothing"),
        (lambda: fit(clip=math.nan), "clip must be above 0"),
        (lambda: fit(save_every=0), "save_every must be at least 1"),
        (lambda: fit(rate=-1.0), "learning rate"),
        (lambda: fit(precision="fp4"), "fp4|precision"),
        (lambda: shuffled(X, X[:5], size=2), r"\[48, 5\] must be equal"),
        (lambda: shuffled(X, size=49), "at least the batch size 49"),
        (lambda: shuffled(X, size=0), "batch size 0"),
        (lambda: shuffled(X[:0], size=1), "batch size 1"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_setting_that_cannot_be_saved_is_refused_at_once():
    with pytest.raises(TypeError, match="plain numbers"):
        fit(rate=torch.tensor(1e-3))


def test_all_of_a_module_is_trained_even_if_a_part_is_called_net():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.head = nn.Linear(2, 2), nn.Linear(2, 1)

        def forward(self, x):
            return self.head(self.net(x))

    module = Two()
    before = module.head.weight.clone()
    run = fit(module, small, precision="no", steps=3)
    assert not torch.equal(module.head.weight, before)
    assert run.ema.head is not module.head


def test_a_named_tuple_reaches_the_loss_as_one():
    class Batch(NamedTuple):
        x: torch.Tensor

    train(
        nn.Linear(2, 1), lambda net, b: net(b.x).square(), lambda k: Batch(X.float()), 1
    )


def test_an_unknown_setting_is_refused():
    with pytest.raises(TypeError, match="learning_rate"):
        fit(learning_rate=1.0)


def test_a_compiled_net_trains_and_is_named_like_the_net_itself(tmp_path):
    def trained(compiles, steps=5):
        torch.manual_seed(0)
        denoiser = Denoiser(MLP(2, width=16).double(), FlowSchedule(), "flow")
        calls = []

        def backend(graph, inputs):
            return lambda *given: calls.append(1) or graph(*given)

        if compiles:
            denoiser.net.compile(backend=backend)
        folder = tmp_path / str(compiles)
        run = train(denoiser, noisy, shuffled(X, size=16), steps, folder=folder)
        return run, calls

    (compiled, calls), (plain, _) = trained(True), trained(False)
    assert calls and compiled.losses == pytest.approx(plain.losses, rel=1e-9)
    names = [set(run.ema.state_dict()) for run in (compiled, plain)]
    assert names[0] == names[1]
    shutil.rmtree(tmp_path / "False")
    (tmp_path / "True").rename(tmp_path / "False")
    resumed, _ = trained(False)  # the plain net takes up the compiled one's run
    assert resumed.losses == compiled.losses
