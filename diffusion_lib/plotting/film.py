"""A run of a sampler as a moving picture in a file of its own."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

FORMATS = (".gif", ".webp", ".png")


def save_film(
    frames: Sequence[Tensor],
    path: str | Path,
    columns: int = 8,
    seconds: float = 4.0,
    hold: float = 1.5,
    scale: int = 3,
) -> Path:
    """Write batches (N, C, H, W) in [-1, 1], one after the other, as an endless film.

    path: .gif, .webp or .png (animated); seconds for all, hold more on the last; each
    pixel becomes scale x scale. Values outside are clipped. Returns the path. Raises
    ValueError for another ending, or fewer than two frames of one shape.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"cannot write {path.name!r}: use one of {', '.join(FORMATS)}")
    if len(frames) < 2 or len({frame.shape for frame in frames}) > 1:
        raise ValueError("a film needs two frames or more, of one shape (N, C, H, W)")
    first, *rest = (_picture(frame, columns, scale) for frame in frames)
    each = round(1000 * seconds / len(frames))
    times = [each] * len(rest) + [each + round(1000 * hold)]
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, save_all=True, append_images=rest, duration=times, loop=0)
    return path


def _picture(frame: Tensor, columns: int, scale: int) -> Image.Image:
    # here, for torchvision takes seconds to import
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    tiles = (frame.detach().float().cpu().clamp(-1, 1) + 1) / 2
    sheet = to_pil_image(make_grid(tiles, nrow=columns, padding=1, pad_value=1.0))
    size = scale * sheet.width, scale * sheet.height
    return sheet.resize(size, Image.Resampling.NEAREST)
