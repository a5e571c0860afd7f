"""Data: Fashion-MNIST as published, pictures of one's own, toy laws."""

import gzip
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lib import data


def test_fashion_mnist_is_all_there(fashion):
    x, label = fashion
    assert x.shape == (10_000, 1, 28, 28) and x.dtype == torch.float32
    assert (float(x.min()), float(x.max())) == (-1.0, 1.0)
    assert torch.bincount(label).tolist() == [1000] * 10
    assert len(data.CLASSES) == 10


def test_the_training_split_is_the_known_one():
    """Mean and deviation of the 60,000 pictures in [0, 1] are widely published."""
    x, label = data.fashion_mnist("train")
    assert x.shape == (60_000, 1, 28, 28) and label[:5].tolist() == [9, 0, 0, 3, 0]
    assert float((x.mean() + 1) / 2) == pytest.approx(0.2860, abs=1e-4)
    assert float(x.std() / 2) == pytest.approx(0.3530, abs=1e-4)


def test_pixels_are_the_bytes(fashion):
    x, _ = fashion
    grey = (x[:100] + 1) * 127.5
    torch.testing.assert_close(grey, grey.round(), rtol=0, atol=1e-4)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A copy of the real files that a test may damage, and no other place to look."""
    real = data.fashion_mnist_folder(download=False)
    for name in data.FASHION_MNIST:
        shutil.copy(data._file(real, name), tmp_path)
    monkeypatch.setenv("DIFFUSION_DATA", str(tmp_path))
    return tmp_path


def test_files_that_are_not_the_known_ones_are_refused(elsewhere):
    name = "t10k-labels-idx1-ubyte"
    known = data._file(elsewhere, name)
    raw = known.read_bytes()
    raw = bytearray(gzip.decompress(raw) if known.suffix == ".gz" else raw)
    raw[-1] ^= 1
    known.unlink()
    (elsewhere / name).write_bytes(raw)
    with pytest.raises(ValueError, match=f"{name} is not Fashion-MNIST's"):
        data.fashion_mnist("test")


def test_a_truncated_download_is_refused(elsewhere):
    path = elsewhere / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(b"labels" * 1000)[:-9])
    with pytest.raises(ValueError, match="is damaged.*delete it"):
        data.fashion_mnist("test")


def test_a_download_with_wrong_bytes_inside_is_refused(elsewhere):
    path = elsewhere / "t10k-labels-idx1-ubyte.gz"
    raw = bytearray(gzip.compress(b"labels" * 1000))
    raw[10] = 0xFF  # where deflate begins: zlib.error, not OSError
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=f"{path.name} is damaged.*move it away"):
        data.fashion_mnist("test")


def test_a_file_that_is_gone_is_named(elsewhere, monkeypatch):
    name = "t10k-labels-idx1-ubyte"
    monkeypatch.setattr(data, "fashion_mnist_folder", lambda: elsewhere)
    data._file(elsewhere, name).unlink()  # after the folder was looked through
    with pytest.raises(FileNotFoundError, match=name):
        data.fashion_mnist("test")


def test_without_data_every_way_to_get_them_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(data, "_file", lambda folder, name: None)
    monkeypatch.setattr(data, "_download", lambda cache: "no network")
    with pytest.raises(FileNotFoundError, match="no network.*apt-get.*DIFFUSION_DATA"):
        data.fashion_mnist("train")


def test_own_pictures_are_cut_square_and_sorted(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = (255, 0, 51)  # the middle third is what stays
    Image.fromarray(wide).save(tmp_path / "b.png")
    (tmp_path / "inner").mkdir()
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / "inner" / "c.bmp")
    (tmp_path / "a.txt").write_text("no picture")
    x = data.image_folder(tmp_path, 8)
    assert x.shape == (2, 3, 8, 8) and x.dtype == torch.float32
    colour = torch.tensor([1.0, -1.0, -0.6])[:, None, None]
    torch.testing.assert_close(x[0, :, 2:6, 2:6], colour.expand(3, 4, 4))
    assert bool((x[1] == 1).all())
    assert data.image_folder(tmp_path, 4, channels=1).shape == (2, 1, 4, 4)


def test_pictures_are_turned_upright(tmp_path):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[0] = 255
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "turned.png", exif=exif)
    x = data.image_folder(tmp_path, 8, channels=1)
    assert x[0, 0, -1].min() == 1 and x[0, 0, 0].max() == -1


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, kind):
    grey = np.repeat([0, 13107, 65535], 3).astype(np.uint16).reshape(3, 3)
    Image.fromarray(grey).save(tmp_path / f"deep.{kind}")
    for channels in (1, 3):
        x = data.image_folder(tmp_path, 3, channels)
        expected = torch.tensor([-1, -0.6, 1.0])[:, None].expand(1, channels, 3, 3)
        torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pictures_of_32_bits_are_refused(tmp_path, kind):
    Image.fromarray(np.ones((4, 4), kind)).save(tmp_path / "deep.tiff")
    with pytest.raises(ValueError, match="deep.tiff .*save it as 8- or 16-bit"):
        data.image_folder(tmp_path, 4)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_laid_on_white(tmp_path, mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 4, 2))
    image.convert(mode).save(tmp_path / "cut-out.png")
    x = data.image_folder(tmp_path, 4)
    assert bool((x[0, :, :2] == 1).all()) and bool((x[0, :, 2:] == -1).all())


def damaged(path):
    """A PNG whose second chunk is broken, for which Pillow raises SyntaxError."""
    Image.new("L", (64, 64)).save(path)
    raw = bytearray(path.read_bytes())
    raw[40] ^= 0xFF
    path.write_bytes(raw)


def test_all_damaged_pictures_are_told_at_once(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "whole.png")
    damaged(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"0.png cannot .*: delete it or move it away"):
        data.image_folder(tmp_path, 4)
    for i in range(1, 7):
        damaged(tmp_path / f"{i}.png")
    told = r"0.png.*4.png cannot .*; \.\.\. 7 files in all: delete them or move"
    with pytest.raises(ValueError, match=told) as error:
        data.image_folder(tmp_path, 4)
    assert "5.png" not in str(error.value) and "whole" not in str(error.value)


def test_more_than_memory_holds_is_refused_unread(tmp_path):
    (tmp_path / "unread.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="12.0 GiB of memory, more than 8.*smaller"):
        data.image_folder(tmp_path, 2**15, channels=3)


@pytest.mark.parametrize(
    "name, content, message",
    [
        (None, None, "holds no pictures"),
        ("broken.png", b"nothing", "broken.png cannot be read"),
        ("broken.jpg", b"\xff\xd8\xff", "broken.jpg cannot be read"),
    ],
)
def test_folders_without_readable_pictures_are_refused(
    tmp_path, name, content, message
):
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.image_folder(tmp_path, 8)


def test_other_bad_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a folder"):
        data.image_folder(tmp_path / "none", 8)
    with pytest.raises(ValueError, match="1 .* or 3"):
        data.image_folder(tmp_path, 8, channels=4)
    with pytest.raises(ValueError, match="size"):
        data.image_folder(tmp_path, 0)
    with pytest.raises(ValueError, match="'train' or 'test', got 'validation'"):
        data.fashion_mnist("validation")


TOYS = [data.three_bars, data.two_moons, data.checkerboard, data.swiss_roll]


@pytest.mark.parametrize("toy", TOYS)
def test_toys_follow_their_generator(toy):
    draws = [toy(500, generator=torch.Generator().manual_seed(k)) for k in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert draws[0].shape == (500, 1 if toy is data.three_bars else 2)
    assert toy(1).shape[0] == 1


def test_three_bars_are_three_bars():
    x = data.three_bars(50_000, torch.Generator().manual_seed(1))[:, 0]
    assert float(x.mean()) == pytest.approx(0, abs=0.02)
    assert float(x.var()) == pytest.approx(1, abs=0.02)
    scale = math.sqrt(0.6 * 1.4**2 + 0.4**2 / 12)
    bar = (x * scale / 1.4).round()
    share = [float((bar == k).double().mean()) for k in (-1, 0, 1)]
    assert share == pytest.approx([0.3, 0.4, 0.3], abs=0.01)
    assert float((x * scale - 1.4 * bar).abs().max()) < 0.2 + 1e-6


def test_checkerboard_fills_the_dark_squares_only():
    x = data.checkerboard(8000, torch.Generator().manual_seed(1))
    column, row = (x + 2).floor().long().unbind(1)
    assert bool(((column + row) % 2 == 0).all())
    counts = torch.bincount(4 * column + row, minlength=16)
    assert int((counts > 0).sum()) == 8
    assert float(counts[counts > 0].double().std() / 1000) < 0.1


def test_moons_are_half_circles_and_the_roll_a_spiral():
    x = data.two_moons(5000, noise=0.0) / 1.3
    centres = torch.tensor([[-0.5, -0.25], [0.5, 0.25]])
    from_centre = torch.cdist(x, centres)
    assert float((from_centre - 1).abs().min(1).values.max()) < 1e-5
    roll = 6.5 * data.swiss_roll(5000, noise=0.0)
    angle = torch.atan2(roll[:, 1], roll[:, 0])
    turns = (roll.norm(dim=1) - angle) / (2 * math.pi)
    torch.testing.assert_close(turns, turns.round(), rtol=0, atol=1e-4)
