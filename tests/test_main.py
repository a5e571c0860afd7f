"""The command line: from a folder of colour pictures to a grid, and what it refuses."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from diffusion_lib import Spec, available, facts, load, recipes, save
from diffusion_lib.__main__ import main

PHOTO = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Crops of a colour photograph, of several sizes, one with a palette, one grey."""
    folder, photo = tmp_path_factory.mktemp("crops"), Image.open(PHOTO)
    for i in range(10):
        left, top = 40 * i, 50 * i
        crop = photo.crop((left, top, left + 90 + 5 * i, top + 120 - 3 * i))
        crop.save(folder / f"{i}.{'jpg' if i % 2 else 'png'}")
    photo.convert("P").save(folder / "palette.png")
    photo.convert("L").save(folder / "grey.png")
    return folder


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    assert main(arguments(folder, run)) == 0
    return run / "model.safetensors"


def arguments(folder, run, steps=4):
    size = ["--size", "16", "--steps", str(steps), "--batch", "4"]
    return ["train", "--data", str(folder), "--folder", str(run), *size]


def test_from_a_folder_of_colour_pictures_to_a_grid(trained, tmp_path):
    out = tmp_path / "deeper" / "grid.png"
    options = ["--n", "4", "--calls", "3", "--out", str(out)]
    assert main(["sample", str(trained), *options]) == 0
    grid = np.asarray(Image.open(out))
    assert grid.shape == (2 * 16 + 6, 2 * 16 + 6, 3)  # two by two, two pixels between
    assert grid[..., 0].std() > 1 and (grid[..., 0] != grid[..., 2]).any()


def test_training_ends_with_a_grid_of_its_own(trained):
    grid = np.asarray(Image.open(trained.parent / "samples.png"))
    assert grid.shape == (4 * 18 + 2, 4 * 18 + 2, 3) and grid.std() > 1


def test_training_goes_on_from_a_checkpoint_of_another_make(folder, tmp_path, capsys):
    """The new file is built as the start was: classes, schedule, prediction."""
    grey = ["--channels", "1", "--start", "fashion-unet"]
    assert main([*arguments(folder, tmp_path, 1), *grey]) == 0
    path = tmp_path / "model.safetensors"
    assert Spec(**facts(path)["spec"]) == Spec(**facts("fashion-unet")["spec"])
    assert load(path).net.classes == 10
    assert main([*arguments(folder, tmp_path / "rgb", 1), *grey[2:]]) == 2
    assert "give --channels 1" in capsys.readouterr().err


def test_a_finished_run_is_not_repeated(trained, folder, capsys):
    before, written = load(trained).state_dict(), trained.stat().st_mtime_ns
    assert main(arguments(folder, trained.parent)) == 0
    assert trained.stat().st_mtime_ns > written
    assert_close(load(trained).state_dict(), before, rtol=0, atol=0)
    printed = capsys.readouterr().out
    assert "12 pictures of 16 x 16" in printed
    assert "nothing left to train" in printed and "all 4 steps" in printed


def test_an_interrupted_run_says_where_it_goes_on(
    folder, tmp_path, monkeypatch, capsys
):
    def loss(denoiser, batch):
        loss.calls += 1
        if loss.calls == 103:
            raise KeyboardInterrupt
        return sum((p**2).sum() for p in denoiser.parameters())

    loss.calls = 0
    monkeypatch.setattr(recipes, "unlabelled_loss", loss)
    asked = [*arguments(folder, tmp_path, 104), "--precision", "no"]
    assert main(asked) == 130
    assert "going on" not in capsys.readouterr().out
    assert main(asked) == 0
    assert f"going on from step 100, saved in {tmp_path}\n" in capsys.readouterr().out


def test_a_run_of_other_pictures_or_settings_is_refused(trained, folder, capsys):
    for change, text in (
        (["--channels", "1"], "of 3 x 16 x 16, batch 4"),
        (["--steps", "5"], "(steps was 4, is 5)"),
    ):
        assert main([*arguments(folder, trained.parent), *change]) == 2
        message = capsys.readouterr().err
        assert text in message and message.count("\n") == 1


def test_samples_are_not_overwritten(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "samples.png").write_bytes(b"mine")
    for name in ("samples-2.png", "samples-3.png"):
        assert main(["sample", str(trained.parent), "--n", "1", "--calls", "1"]) == 0
        assert capsys.readouterr().out == f"written: {name}\n"
        assert (tmp_path / name).is_file()
    assert (tmp_path / "samples.png").read_bytes() == b"mine"


def test_a_folder_of_pictures_is_scored(tmp_path, fashion, capsys):
    pictures, _ = fashion
    for i, x in enumerate(pictures[:100, 0]):
        Image.fromarray(((x + 1) * 127.5).byte().numpy()).save(tmp_path / f"{i}.png")
    assert main(["score", str(tmp_path), "--n", "100"]) == 0
    printed = capsys.readouterr().out
    told, printed = printed.splitlines()[0], printed.split()
    assert "made grey" in told and "Fashion-MNIST's test pictures" in told
    assert "smaller is better" in told and told.startswith("100 of the folder's 100")
    assert 0 < float(printed[printed.index("frechet") + 1]) < 50


def test_a_folder_of_classes_is_scored_by_lot(tmp_path, fashion, capsys):
    """Not its first files by name, which would be of one class."""
    for i, (x, label) in enumerate(zip(*(v[:600] for v in fashion), strict=True)):
        (tmp_path / f"{label}").mkdir(exist_ok=True)
        picture = Image.fromarray(((x[0] + 1) * 127.5).byte().numpy())
        picture.save(tmp_path / f"{label}" / f"{i}.png")
    for part in (tmp_path, tmp_path / "0"):
        assert main(["score", str(part), "--n", "50"]) == 0
    found = [float(v) for v in re.findall(r"frechet +(\S+)", capsys.readouterr().out)]
    assert found[0] < 0.7 * found[1]


def test_a_recipe_s_folder_is_its_checkpoint(tmp_path, capsys):
    saved(tmp_path / "fashion-little.safetensors")
    (tmp_path / "state.safetensors").touch()
    out = str(tmp_path / "grid.png")
    told = ["sample", str(tmp_path), "--n", "1", "--calls", "1", "--out", out]
    assert main(told) == 0


def test_only_what_looks_like_the_test_pictures_is_scored(trained, tmp_path, capsys):
    saved(tmp_path / "tall.safetensors", {"size": [28, 56]})
    cases = {
        tmp_path / "tall.safetensors": "1 x 28 x 56",
        trained.parent: "3 x 16 x 16",
    }
    for name, shape in cases.items():
        assert main(["score", str(name), "--n", "10", "--calls", "1"]) == 2
        assert (
            f"paints pictures of {shape}: only 1 x 28 x 28" in capsys.readouterr().err
        )


def test_a_few_pictures_are_too_few_to_score(tmp_path, capsys):
    Image.new("L", (28, 28)).save(tmp_path / "one.png")
    assert main(["score", str(tmp_path)]) == 2
    assert "1 pictures are too few to score: give 6" in capsys.readouterr().err


def saved(path, told=None, **options):
    torch.manual_seed(0)
    spec = Spec("UNet", {"width": 8, "stem": 4, "dim": 8, **options}, "cosine_schedule")
    save(path, spec.build(), spec, told)
    return str(path)


def test_a_model_that_needs_more_than_noise_says_so(capsys):
    for command in ("sample", "score"):
        assert main([command, "fashion-upsampler-28", "--n", "2"]) == 2
        assert "needs 'low_res' and 'level'" in capsys.readouterr().err


def test_list_and_measure_tell_what_there_is(capsys):
    facts = ["list", "--facts"]
    for command in (facts, ["measure"], ["measure", "--stale"], ["data"]):
        assert main(command) == 0
    printed = capsys.readouterr().out
    for name in ("fashion-unet", "test_accuracy", "ablation", "scores"):
        assert name in printed


def test_the_list_has_a_short_line_for_each(capsys):
    assert main(["list"]) == 0
    *lines, recipes = capsys.readouterr().out.splitlines()
    words = {line.split()[0]: line.split()[1:7] for line in lines}
    assert set(words) == set(available()) and recipes.startswith("recipes: ")
    assert all(len(line) <= 105 for line in lines)
    assert words["fashion-unet"] == "1 x 28 x 28 label".split()
    assert words["fashion-latent-text"] == "1 x 28 x 56 text".split()
    assert words["fashion-upsampler-28"] == "1 x 28 x 28 a".split()
    assert words["fashion-clip"][:2] == ["no", "generator"]


@pytest.mark.parametrize("flag", ["--n", "--calls"])
@pytest.mark.parametrize("value", ["0", "-3", "1.5", "many"])
def test_numbers_are_checked_at_once(flag, value, capsys):
    with pytest.raises(SystemExit) as end:
        main(["sample", "fashion-unet", flag, value])
    assert end.value.code == 2
    assert (
        f"{flag}: give a whole number from 1, not {value!r}" in capsys.readouterr().err
    )


def test_a_net_without_conditions_says_what_to_leave_out(tmp_path, capsys):
    path = saved(tmp_path / "net.safetensors")
    for options, text in (
        (["--label", "bag"], "reads no label: leave --label out"),
        (["--prompt", "a bag"], "reads no text: leave --prompt out"),
        (["--scale", "3"], "leave --scale out"),
    ):
        assert main(["sample", path, *options]) == 2
        assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    "command, text",
    [
        (["train"], "a recipe's name or --data"),
        (["train", "fashion-unet", "--data", "."], "not both"),
        (["train", "no-such-recipe"], "no recipe 'no-such-recipe': there are"),
        (["train", "--data", "no-such-folder"], "is not a folder"),
        (["train", "fashion-unet", "--size", "64"], "--size needs --data"),
        (["train", "fashion-unet", "--batch", "8"], "--batch needs --data"),
        (["train", "--data", ".", "--start", "fashion-latent"], "works on latents"),
        (["sample", "no-such-model"], "no-such-model"),
        (["sample", "fashion_unet"], "did you mean 'fashion-unet'"),
        (
            ["sample", "fashion-unet", "--scale", "2"],
            ": add --label",
        ),
        (
            ["sample", "fashion-text", "--scale", "2"],
            ": add --prompt",
        ),
        (["sample", "fashion-unet", "--label", "teapot"], "unknown class 'teapot'"),
        (["sample", "fashion-classifier"], "is not a generator"),
        (["measure", "nothing"], "no measurement 'nothing': there are"),
    ],
)
def test_what_cannot_work_is_one_line_and_status_two(command, text, capsys):
    assert main(command) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    assert text in message


@pytest.mark.parametrize("size, near", [("18", "16 or 20"), ("3", "4")])
def test_a_size_that_the_net_cannot_halve_is_refused_unread(
    size, near, tmp_path, capsys
):
    (tmp_path / "unread.png").write_bytes(b"nothing")
    assert main([*arguments(tmp_path, tmp_path / "run"), "--size", size]) == 2
    message = capsys.readouterr().err
    assert "not a multiple of 4" in message and f"give --size {near}\n" in message


def test_what_the_system_refuses_is_one_line(trained, tmp_path, capsys):
    (tmp_path / "file").touch()
    out = str(tmp_path / "file" / "grid.png")  # below a file
    options = ["--n", "1", "--calls", "1", "--out", out]
    assert main(["sample", str(trained), *options]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1


@pytest.mark.slow
def test_a_reader_who_has_seen_enough_is_no_error():
    command = [sys.executable, "-m", "diffusion_lib", "list", "--facts"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


def test_without_a_command_there_is_help(capsys):
    assert main([]) == 2
    assert "examples:" in capsys.readouterr().out


def test_the_version_is_the_package_s(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert (
        capsys.readouterr().out == f"diffusion-course {version('diffusion-course')}\n"
    )


@pytest.mark.parametrize(
    "command, words",
    [
        (
            "train",
            ["same command goes on", "squares", "white", "subfolders", "bf16"],
        ),
        ("sample", ["Ankle boot", "a dark ankle boot", "samples-2.png", "same seed"]),
        ("score", ["Fashion-MNIST's test pictures", "smaller is better"]),
    ],
)
def test_help_of_a_command_says_what_happens(command, words, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert [word for word in words if word not in printed] == []


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert "sample fashion-unet --n 64 --label sneaker" in capsys.readouterr().out
