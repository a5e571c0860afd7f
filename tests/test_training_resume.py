"""The loop's folder: resumed as if never interrupted, logged, refused if another's."""

import csv
import json
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from diffusion_lib.denoiser import Denoiser
from diffusion_lib.losses import denoising_loss
from diffusion_lib.networks import MLP
from diffusion_lib.schedules import FlowSchedule
from diffusion_lib.training import Settings, shuffled, train

X = torch.randn(48, 2, generator=torch.Generator().manual_seed(1))


def denoiser(width=16):
    torch.manual_seed(5)
    return Denoiser(MLP(2, width=width), FlowSchedule())


def fit(folder, module=None, steps=20, **options):
    """Train on noise that is drawn anew at every step."""
    module = denoiser() if module is None else module
    return train(
        module,
        lambda denoiser, batch: denoising_loss(denoiser, batch[0]),
        shuffled(X, size=16),
        steps,
        folder=folder,
        **options,
    )


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


class Stop(Exception):
    """What breaks a run off."""


def stopped(folder, at, **options):
    """A run that breaks off after a step."""

    def stop(k, loss):
        if k == at:
            raise Stop

    with pytest.raises(Stop):
        fit(folder, save_every=5, on_step=stop, **options)


@pytest.mark.parametrize("at", [3, 5, 13, 19])
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(tmp_path, at):
    whole = fit(tmp_path / "whole", accumulate=2)
    stopped(tmp_path / "part", at, accumulate=2)
    steps = []
    part = fit(
        tmp_path / "part",
        accumulate=2,
        on_step=lambda k, loss: steps.append(k),
    )
    assert steps[0] == 5 * (at // 5) + 1
    assert part.losses == whole.losses
    for ours, theirs in ((part.model, whole.model), (part.ema, whole.ema)):
        assert torch.equal(weights(ours), weights(theirs))
    logs = [(tmp_path / name / "losses.csv").read_text() for name in ("whole", "part")]
    assert logs[0] == logs[1]


def test_a_finished_run_is_not_repeated(tmp_path):
    first = fit(tmp_path)
    again = fit(tmp_path, on_step=lambda k, loss: pytest.fail("it ran again"))
    assert again.losses == first.losses
    assert torch.equal(weights(again.ema), weights(first.ema))


def test_the_log_is_a_table(tmp_path):
    run = fit(tmp_path, steps=6, rate=0.3, warmup=2)
    with (tmp_path / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [float(row["loss"]) for row in rows] == run.losses
    rate_at = Settings(6, rate=0.3, warmup=2).rate_at
    assert [float(row["rate"]) for row in rows] == [rate_at(k) for k in range(6)]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"state.safetensors", "losses.csv", "training.lock"}


def test_two_trainings_do_not_share_a_folder(tmp_path):
    def second(k, loss):
        with pytest.raises(ValueError, match="another process is training in"):
            fit(tmp_path)

    run = fit(tmp_path, steps=2, on_step=second)
    assert fit(tmp_path, steps=2).losses == run.losses


def test_batches_may_be_drawn_when_they_are_asked_for(tmp_path):
    """Their draws come from the step's seed, too."""

    def draw(k):
        return (torch.randn(16, 2),)

    def run(folder, **options):
        loss = lambda module, batch: denoising_loss(module, batch[0])  # noqa: E731
        return train(denoiser(), loss, draw, 8, folder=folder, save_every=5, **options)

    def stop(k, loss):
        if k == 6:
            raise Stop

    whole = run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "part", on_step=stop)
    torch.manual_seed(99)
    assert run(tmp_path / "part").losses == whole.losses


def test_a_gradient_that_is_nan_is_neither_saved_nor_returned(tmp_path):
    def loss(module, batch):
        root = (0 * batch[0].sum() * next(module.parameters()).sum()).abs().sqrt()
        return denoising_loss(module, batch[0]).mean() + root

    with pytest.raises(ValueError, match="gradient became nan at step 0"):
        train(denoiser(), loss, shuffled(X, size=16), 3, folder=tmp_path, save_every=1)
    assert not (tmp_path / "state.safetensors").exists()


def test_others_may_read_a_run(tmp_path):
    """Like any file that is made here, whatever this machine's habit."""
    fit(tmp_path, steps=1)
    (tmp_path / "any").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_run_from_before_a_setting_goes_on(tmp_path):
    first, path = fit(tmp_path), tmp_path / "state.safetensors"
    with safe_open(path, "pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    known = json.loads(header["settings"])
    del known["falls"]
    save_file(tensors, path, metadata=header | {"settings": json.dumps(known)})
    assert fit(tmp_path).losses == first.losses
    with pytest.raises(ValueError, match="other settings"):
        fit(tmp_path, falls=False)


def test_a_folder_of_another_run_is_refused(tmp_path):
    fit(tmp_path)
    with pytest.raises(ValueError, match="other settings.*another folder") as error:
        fit(tmp_path, rate=0.1, steps=30)
    assert "(steps was 20, is 30; rate was 0.002, is 0.1)" in str(error.value)
    assert "start there from this run's last model" in str(error.value)
    told = r"another network \(\S+ was \(.*16.*\), is \(.*8.*\)\): build that one"
    with pytest.raises(ValueError, match=told) as error:
        fit(tmp_path, denoiser(width=8))
    assert "\n" not in str(error.value)
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged.*delete it"):
        fit(tmp_path)
