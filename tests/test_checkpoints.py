"""Checkpoints: what is written comes back; what is not ours is refused."""

import json
import os
import pickle
import stat

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from diffusion_lib import checkpoints
from diffusion_lib.checkpoints import Spec, available, facts, load, save
from diffusion_lib.denoiser import Denoiser

SPEC = Spec(
    "UNet",
    {"width": 8, "stem": 4, "dim": 8, "classes": 3},
    "cosine_schedule",
    {"T": 50},
    "x0",
)


@pytest.fixture
def file(tmp_path):
    module = SPEC.build()
    torch.nn.init.normal_(module.net.out.weight)
    save(tmp_path / "net.safetensors", module, SPEC, {"seed": 7, "scores": [1.5]})
    return tmp_path / "net.safetensors", module


def test_a_denoiser_comes_back_in_half_precision(file):
    path, module = file
    back = load(path)
    assert isinstance(back, Denoiser) and not back.training
    assert (back.prediction, back.schedule.T) == ("x0", 50)
    for name, value in module.net.state_dict().items():
        got = back.net.state_dict()[name]
        assert got.dtype == torch.float32 and torch.equal(got, value.half().float())
    x, cond = torch.randn(2, 1, 8, 8), {"label": torch.tensor([0, 3])}
    module.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            back(x, 20, cond), module(x, 20, cond), rtol=0, atol=0.02
        )


def test_a_bare_net_comes_back(tmp_path):
    spec = Spec("MLP", {"size": 2, "width": 8})
    net = spec.build()
    save(tmp_path / "mlp.safetensors", net, spec)
    x, u = torch.randn(3, 2), torch.rand(3)
    torch.testing.assert_close(
        load(tmp_path / "mlp.safetensors")(x, u), net(x, u), rtol=0, atol=5e-3
    )


def test_facts_travel_in_the_header(file):
    told = facts(file[0])
    assert told["seed"] == 7 and told["scores"] == [1.5]
    assert Spec(**told["spec"]) == SPEC


def test_saving_leaves_one_file_and_replaces_it_whole(file):
    path, module = file
    save(path, module, SPEC, {"seed": 8})
    assert [p.name for p in path.parent.iterdir()] == ["net.safetensors"]
    assert facts(path)["seed"] == 8


@pytest.fixture
def umask():
    """The usual one of a shared machine: others may read."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def permissions(path):
    return oct(stat.S_IMODE(path.stat().st_mode))


def test_others_may_read_what_is_saved(umask, tmp_path):
    save(tmp_path / "net.safetensors", SPEC.build(), SPEC)
    assert permissions(tmp_path / "net.safetensors") == oct(0o644)


def test_a_full_disk_is_an_error_of_the_system(tmp_path):
    """Its library raises its own, which no command line expects."""
    path = tmp_path / "net.safetensors"
    with (
        pytest.raises(OSError, match="net.safetensors cannot be written: no space"),
        checkpoints.written_whole(path),
    ):
        raise SafetensorError("no space")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deeper" / "log.csv"
    with checkpoints.written_whole(path) as partial:
        partial.write_text("first")
    with pytest.raises(KeyError), checkpoints.written_whole(path) as partial:
        partial.write_text("half")
        raise KeyError
    assert [p.name for p in path.parent.iterdir()] == ["log.csv"]
    assert path.read_text() == "first"


def test_a_folder_stands_for_its_model(tmp_path):
    save(tmp_path / "model.safetensors", SPEC.build(), SPEC, {"seed": 7})
    assert facts(tmp_path)["seed"] == 7 and facts(str(tmp_path))["seed"] == 7
    assert isinstance(load(tmp_path), Denoiser)
    assert checkpoints.is_known(tmp_path)


def test_a_folder_does_not_hide_what_is_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("fashion-unet/model.safetensors", SPEC.build(), SPEC, {"seed": 7})
    assert "scores" in facts("fashion-unet")


@pytest.mark.parametrize("name", available())
def test_every_shipped_checkpoint_loads_and_is_small(name):
    module = load(name)
    assert all(p.isfinite().all() for p in module.parameters())
    assert {"steps", "seconds", "data", "first_losses"} <= set(facts(name))


def test_all_shipped_files_together_stay_under_30_mb():
    files = list(checkpoints.FOLDER.glob("*.safetensors"))
    assert "fashion-classifier" in available()
    assert sum(f.stat().st_size for f in files) < 30e6


@pytest.mark.parametrize("keep", [0, 4, 100, 5000])
def test_a_truncated_file_is_refused(file, keep):
    path, _ = file
    path.write_bytes(path.read_bytes()[:keep])
    for read in (load, facts):
        with pytest.raises(ValueError, match="damaged or no safetensors"):
            read(path)


def test_a_pickle_is_refused_unread(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    path = tmp_path / "net.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="no safetensors file"):
        load(path)
    torch.save(SPEC.build(), path)
    with pytest.raises(ValueError, match="no safetensors file"):
        load(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("header", [None, {"format": "pt"}, {"spec": "{}"}])
def test_a_foreign_file_is_refused(tmp_path, header):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path, metadata=header)
    with pytest.raises(ValueError, match="not written by"):
        load(path)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("not json", "not written by"),
        (json.dumps({"network": "UNet"}), "not written by"),
        (json.dumps({"net": "os"}), "unknown name 'os'"),
        (json.dumps({"net": "UNet", "net_options": {"depth": 3}}), "does not take"),
        (json.dumps({"net": "UNet", "schedule": "sqrt_schedule"}), "unknown name"),
        (json.dumps({"net": "UNet"}), "weights do not fit"),
    ],
)
def test_a_header_that_cannot_be_built_is_refused(tmp_path, spec, message):
    path = tmp_path / "other.safetensors"
    header = {"spec": spec, "facts": "{}"}
    save_file({"weight": torch.zeros(3)}, path, metadata=header)
    with pytest.raises(ValueError, match=message):
        load(path)


def test_unknown_names_are_answered_with_the_known(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint 'fashion'.*fashion-classifier"):
        load("fashion")
    with pytest.raises(ValueError, match="no checkpoint"):
        load("nowhere/net.safetensors")
    with pytest.raises(ValueError, match="did you mean 'fashion-unet'"):
        load("fashion_unet")
    with pytest.raises(ValueError, match="a folder without model.safetensors"):
        load(tmp_path)
    assert not checkpoints.is_known(tmp_path)


def test_a_path_of_another_kind_is_refused_before_writing(tmp_path):
    with pytest.raises(ValueError, match=r"ending in \.safetensors"):
        save(tmp_path / "net.pt", SPEC.build(), SPEC)
    assert not list(tmp_path.iterdir())


def test_weights_that_half_precision_cannot_hold_are_refused(tmp_path):
    module = SPEC.build()
    torch.nn.init.constant_(module.net.out.weight, 1e6)
    with pytest.raises(ValueError, match="out.weight"):
        save(tmp_path / "net.safetensors", module, SPEC)
