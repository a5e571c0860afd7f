"""Data: Fashion-MNIST, pictures of one's own, and toy sets. Pictures in [-1, 1]."""

import gzip
import hashlib
import math
import os
import socket
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]

# SHA-256 of the decompressed files (Xiao et al. 2017, MIT licence)
FASHION_MNIST = {
    "train-images-idx3-ubyte": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
    ),
    "train-labels-idx1-ubyte": (
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
    ),
    "t10k-images-idx3-ubyte": (
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
    ),
    "t10k-labels-idx1-ubyte": (
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
    ),
}
PICTURE_FILES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
MEMORY = 8 * 2**30  # bytes that the pictures of a folder may take, as float32


def fashion_mnist(split: str = "train") -> tuple[Tensor, Tensor]:
    """Return (pictures (N, 1, 28, 28) in [-1, 1], labels (N,)); 60,000 or 10,000.

    Looks in $DIFFUSION_DATA, Debian's folder and the cache, then downloads through
    torchvision. Raises ValueError for another split, FileNotFoundError (with every way
    to get the data) if there are none, ValueError if a file is not the known one.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    prefix = "train" if split == "train" else "t10k"
    folder = fashion_mnist_folder()
    x = _idx(folder, f"{prefix}-images-idx3-ubyte")
    y = _idx(folder, f"{prefix}-labels-idx1-ubyte")
    return x[:, None].float() / 127.5 - 1, y.long()


def cache_folder() -> Path:
    """Return where downloads are kept: $XDG_CACHE_HOME (or ~/.cache)/diffusion_lib."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "diffusion_lib"


def fashion_mnist_folder(download: bool = True) -> Path:
    """Return the first folder that holds all four files, downloading them if needed."""
    cache = cache_folder()
    folders = [
        Path("/usr/share/datasets/fashion-mnist"),
        cache / "fashion-mnist",
        cache / "FashionMNIST" / "raw",
    ]
    if named := os.environ.get("DIFFUSION_DATA"):
        folders.insert(0, Path(named))
    for folder in folders:
        if all(_file(folder, name) for name in FASHION_MNIST):
            return folder
    reason = _download(cache) if download else "download was not asked for"
    if reason is None:
        return folders[-1]
    raise FileNotFoundError(
        f"Fashion-MNIST is in none of {', '.join(map(str, folders))} and could not be "
        f"downloaded ({reason}). Any of these helps: a network; `apt-get install "
        "dataset-fashion-mnist`; the four *-ubyte.gz files of "
        "github.com/zalandoresearch/fashion-mnist in a folder named by $DIFFUSION_DATA"
    )


def _file(folder: Path, name: str) -> Path | None:
    found = [p for p in (folder / f"{name}.gz", folder / name) if p.is_file()]
    return found[0] if found else None


def _download(cache: Path) -> str | None:
    """Fetch with torchvision; return why it failed, or None."""
    from torchvision.datasets import FashionMNIST

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        FashionMNIST(str(cache), download=True)
    except (OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        socket.setdefaulttimeout(before)
    return None


def _idx(folder: Path, name: str) -> Tensor:
    """Read one idx file, plain or gzipped, and check that it is the known one."""
    path = _file(folder, name) or folder / name  # gone? reading it says which
    raw = path.read_bytes()
    try:
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it or move it away, and try again"
        ) from None
    if hashlib.sha256(raw).hexdigest() != FASHION_MNIST[name]:
        raise ValueError(
            f"{path} is not Fashion-MNIST's: delete it or move it away, and try again"
        )
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)
    return torch.from_numpy(values.copy())


def image_folder(path: str | Path, size: int, channels: int = 3) -> Tensor:
    """Return all pictures below path, (N, channels, size, size) in [-1, 1].

    Subfolders are read, too; sorted by name. Each is turned upright, laid on white
    where it is transparent, converted to grey (channels = 1) or RGB (3) of 8 bits, its
    shorter side resized to size, its centre cut out. Raises ValueError if path is no
    folder, holds no picture, holds files that cannot be read (naming the first five) or
    of 32 bits, or if all pictures together would take more than 8 GiB.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder")
    if size < 1:
        raise ValueError(f"size, the side in pixels, must be at least 1, got {size}")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels}")
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURE_FILES)
    if not files:
        raise ValueError(
            f"{path} holds no pictures ({', '.join(sorted(PICTURE_FILES))})"
        )
    _check_memory(len(files), size, channels)
    stack = torch.from_numpy(_pictures(files, size, channels)).permute(0, 3, 1, 2)
    return stack.float() / 127.5 - 1


def _check_memory(n: int, size: int, channels: int) -> None:
    if (needed := n * size**2 * channels * 4) > MEMORY:
        raise ValueError(
            f"{n:,} pictures of {size} x {size} in {channels} channel(s) would take "
            f"{needed / 2**30:.1f} GiB of memory, more than {MEMORY / 2**30:.0f}: give "
            "a smaller size, or fewer pictures"
        )


def _pictures(files: list[Path], size: int, channels: int) -> np.ndarray:
    """All files as bytes, (N, size, size, channels), or one error for all of them."""
    from PIL import Image

    pictures, damaged = [], []
    for file in files:
        try:
            pictures.append(_picture(file, size, channels))
        except (OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:
            damaged.append(f"{file} cannot be read as a picture ({error})")
        except Image.DecompressionBombError as error:
            damaged.append(f"{file} cannot be read safely ({error})")
    if damaged:
        more = f"; ... {len(damaged)} files in all" if len(damaged) > 5 else ""
        it = "it" if len(damaged) == 1 else "them"
        raise ValueError(
            f"{'; '.join(damaged[:5])}{more}: delete {it} or move {it} away"
        )
    return np.stack(pictures)


def _picture(file: Path, size: int, channels: int) -> np.ndarray:
    from PIL import Image, ImageOps

    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith(("I", "F")):
            image = _in_8_bits(image, opened.format == "PNG")
        if "A" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("L" if channels == 1 else "RGB")
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(size, size, channels)


def _in_8_bits(image, png: bool):
    """A picture of 16 bits, rounded to 8: PIL's own conversion would clip at 255."""
    from PIL import Image

    if not image.mode.startswith("I;16") and not (png and image.mode == "I"):
        raise ValueError("it has 32 bits a pixel: save it as 8- or 16-bit")
    return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))


def three_bars(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Return n draws (n, 1) from three separate bars on a line, mean 0, variance 1.

    Uniform on [-1.6, -1.2], [-0.2, 0.2] and [1.2, 1.6] with weights 0.3, 0.4, 0.3,
    shifted and scaled.
    """
    weights = torch.tensor([0.3, 0.4, 0.3])
    bar = torch.multinomial(weights, n, replacement=True, generator=generator)
    x = torch.tensor([-1.4, 0.0, 1.4])[bar] + 0.4 * (
        torch.rand(n, generator=generator) - 0.5
    )
    return (x / math.sqrt(0.6 * 1.4**2 + 0.4**2 / 12))[:, None]


def two_moons(
    n: int, noise: float = 0.1, generator: torch.Generator | None = None
) -> Tensor:
    """Return n points (n, 2) on two interleaved half circles, roughly in [-2, 2]^2."""
    angle = math.pi * torch.rand(n, generator=generator)
    upper = torch.rand(n, generator=generator) < 0.5
    x = torch.where(upper, angle.cos() - 0.5, 0.5 - angle.cos())
    y = torch.where(upper, angle.sin() - 0.25, 0.25 - angle.sin())
    jitter = noise * torch.randn(n, 2, generator=generator)
    return 1.3 * (torch.stack([x, y], dim=1) + jitter)


def checkerboard(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Return n points (n, 2), uniform on the dark squares of a 4 x 4 board."""
    column = torch.randint(0, 4, (n,), generator=generator)
    row = 2 * torch.randint(0, 2, (n,), generator=generator) + column % 2
    corner = torch.stack([column, row], dim=1) - 2
    return corner + torch.rand(n, 2, generator=generator)


def swiss_roll(
    n: int, noise: float = 0.1, generator: torch.Generator | None = None
) -> Tensor:
    """Return n points (n, 2) on a spiral of one and a half turns, within about 2.2."""
    angle = 1.5 * math.pi * (1 + 2 * torch.rand(n, generator=generator))
    spiral = torch.stack([angle * angle.cos(), angle * angle.sin()], dim=1)
    return spiral / 6.5 + noise * torch.randn(n, 2, generator=generator)
