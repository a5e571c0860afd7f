"""The command line: from a folder of colour pictures to a grid, and what it refuses."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from torch.testing import assert_close

from diffusion_lib import Spec, facts, load
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
    assert "12 pictures of 16 x 16" in capsys.readouterr().out


def test_a_folder_of_pictures_is_scored(tmp_path, fashion, capsys):
    pictures, _ = fashion
    for i, x in enumerate(pictures[:100, 0]):
        Image.fromarray(((x + 1) * 127.5).byte().numpy()).save(tmp_path / f"{i}.png")
    assert main(["score", str(tmp_path), "--n", "100"]) == 0
    printed = capsys.readouterr().out.split()
    assert 0 < float(printed[printed.index("frechet") + 1]) < 50


def test_a_model_that_needs_more_than_noise_says_so(capsys):
    for command in ("sample", "score"):
        assert main([command, "fashion-upsampler-14", "--n", "2"]) == 2
        assert "needs 'low_res' and 'level'" in capsys.readouterr().err


def test_list_and_measure_tell_what_there_is(capsys):
    for command in (["list"], ["measure"], ["measure", "--stale"], ["data"]):
        assert main(command) == 0
    printed = capsys.readouterr().out
    for name in ("fashion-unet", "test_accuracy", "ablation", "scores"):
        assert name in printed


@pytest.mark.parametrize(
    "command, text",
    [
        (["train"], "a recipe's name or --data"),
        (["train", "fashion-unet", "--data", "."], "not both"),
        (["train", "no-such-recipe"], "no recipe 'no-such-recipe': there are"),
        (["train", "--data", "no-such-folder"], "is not a folder"),
        (["sample", "no-such-model"], "no-such-model"),
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


def test_a_size_that_the_net_cannot_halve_is_refused(folder, tmp_path, capsys):
    assert main([*arguments(folder, tmp_path), "--size", "18"]) == 2
    assert "18" in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert "sample fashion-unet --n 64 --label sneaker" in capsys.readouterr().out
