"""One look for every picture of the book: light, dark, and on a phone.

Call :func:`style` once, then make the picture the last line of a cell: every function
here returns its figure closed, so that it is shown once, there. Backgrounds are
transparent; the ink is a mid grey that reads on white and on near-black. The
same calls give the same bytes at every run on one machine.

Pictures are (N, C, H, W) in [-1, 1]; -1 is black, 1 is white, row 0 is the top.
"""

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from diffusion_lib.plotting.film import save_film as save_film
from diffusion_lib.plotting.frames import animation as animation
from diffusion_lib.plotting.frames import explore as explore
from diffusion_lib.plotting.frames import match, text
from diffusion_lib.plotting.frames import slider as slider
from diffusion_lib.plotting.frames import table as table

INK = "#7B7B7B"
_HUES = ("#467BFB", "#D67114", "#04A65A", "#CA36A4", "#8C6A27")
_DASHES: tuple[Any, ...] = ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)), ":")
_SCHEDULES = ("linear", "cosine", "quadratic", "sigmoid", "constant")
_SAMPLERS = ("DDPM", "DDIM", "Heun", "DPM-Solver++ 2M")

COLORS = {"data": _HUES[0], "model": _HUES[1], "exact": _HUES[2], "noise": INK}
COLORS |= dict(zip(_SCHEDULES, _HUES, strict=True))
COLORS |= dict(zip(_SAMPLERS, _HUES, strict=False))
"""Name -> colour: the same for the same thing on every page."""

_LINES = dict(zip(_HUES, _DASHES, strict=True)) | {INK: "-"}
_WIDTH = 6.0  # inches; 100 CSS pixels each, drawn with 200 dots
_LOOK: Any = {
    "figure.figsize": (_WIDTH, 3.0),
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "axes.facecolor": "none",
    "axes.prop_cycle": cycler(color=_HUES, linestyle=_DASHES),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "font.size": 12.0,
    "axes.titlesize": 12.0,
    "figure.titlesize": 12.0,
}
_INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color")
_LOOK |= dict.fromkeys((*_INKED, "ytick.color", "axes.titlecolor"), INK)


def style() -> None:
    """Set matplotlib's defaults to the book's look; in a notebook, twice the dots."""
    plt.rcParams.update(_LOOK)
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("retina")


def panels(columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Return an empty figure and its axes, row by row, to hand to the plots below."""
    fig, axes = plt.subplots(rows, columns, squeeze=False, figsize=(_WIDTH, 3.0 * rows))
    plt.close(fig)
    return fig, list(axes.flat)


def grid(
    x: ArrayLike, columns: int | None = None, titles: Sequence[object] | None = None
) -> Figure:
    """Show pictures as one figure, row by row.

    ``x`` is (N, C, H, W) with C = 1 (grey) or 3 (RGB), in [-1, 1]; what lies outside is
    clipped. ``titles`` stand above the pictures, one each. Raises ValueError on another
    shape, NaN, or pictures in 0..255.
    """
    tiles = _tiles(x)
    if titles is not None:
        match(titles, "titles", tiles, "pictures")
    columns = min(len(tiles), columns or (8 if titles is None else 5))
    if columns < 1:
        raise ValueError(f"columns is {columns}: give 1 or more")
    rows = math.ceil(len(tiles) / columns)
    padded = np.zeros((rows * columns, *tiles.shape[1:]), np.uint8)
    padded[: len(tiles)] = tiles
    shaped = padded.reshape(rows, columns, *tiles.shape[1:])
    fig, ax, centres = _montage(shaped, top=0.0 if titles is None else 0.3)
    for (u, v), title in zip(centres, titles or (), strict=False):
        ax.text(u, v - tiles.shape[1] / 2, text(title), ha="center", va="bottom")
    return fig


def strip(
    frames: Sequence[ArrayLike] | ArrayLike,
    labels: Sequence[object],
    rows: Sequence[object] | None = None,
    xlabel: str = "time $t$",
) -> Figure:
    """Show how pictures change: a row for each example, a column for each time.

    ``frames`` holds one (N, C, H, W) batch for each of ``labels``; ``rows`` names the N
    examples. Raises ValueError where their numbers differ, and as :func:`grid` does.
    """
    batches = [_tiles(frame) for frame in frames]  # type: ignore[union-attr]
    match(labels, "labels", batches, "frames")
    if len({batch.shape for batch in batches}) != 1:
        raise ValueError("frames must be one or more, of one shape (N, C, H, W)")
    tiles = np.stack(batches, axis=1)  # (N, frames, H, W, 4)
    if rows is not None:
        match(rows, "row names", tiles, "rows")
    fig, ax, centres = _montage(tiles, left=1.0 if rows else 0.0, bottom=0.55)
    across, down = centres[: len(labels), 0], centres[:: len(labels), 1]
    ax.set_xticks(across, [text(label) for label in labels])
    ax.set_xlabel(xlabel)
    if rows is not None:
        ax.set_yticks(down, [text(row) for row in rows])
    return fig


def curves(
    x: ArrayLike,
    ys: Mapping[str, ArrayLike],
    xlabel: str,
    ylabel: str,
    ax: Axes | None = None,
) -> Figure:
    """Draw named curves y(x); a name in :data:`COLORS` always has its own colour."""
    ax = panels()[1][0] if ax is None else ax
    for (name, y), color in zip(ys.items(), _colors(ys), strict=True):
        line = {"model": "-", "exact": "--"}.get(name, _LINES[color])
        ax.plot(_array(x), _array(y), color=color, linestyle=line, label=name)
    return _finish(ax, xlabel, ylabel)


def loss_curve(
    losses: ArrayLike, window: int = 50, ax: Axes | None = None, ylabel: str = "loss"
) -> Figure:
    """Draw the loss (steps,) of every step, faint, and its mean over ``window`` steps.

    The loss axis is logarithmic. Raises ValueError on another shape or too few steps.
    """
    values = _array(losses)
    if values.ndim != 1 or not 1 <= window <= len(values):
        raise ValueError(f"need (steps,) with steps >= {window}, got {values.shape}")
    ax = panels()[1][0] if ax is None else ax
    steps = np.arange(1, len(values) + 1)
    mean = np.convolve(values, np.full(window, 1 / window), mode="valid")
    ax.plot(
        steps, values, "-", color=COLORS["noise"], alpha=0.5, lw=1, label="each step"
    )
    label = f"mean of {window} steps"
    ax.plot(steps[window - 1 :], mean, "-", color=COLORS["model"], label=label)
    ax.set_yscale("log")
    return _finish(ax, "training step", ylabel)


def histogram(
    samples: Mapping[str, ArrayLike],
    density: Mapping[str, Callable[[NDArray[Any]], ArrayLike]] | None = None,
    limits: tuple[float, float] = (-4.0, 4.0),
    top: float | None = None,
    xlabel: str = "value",
    ax: Axes | None = None,
) -> Figure:
    """Draw histograms of named samples (n,), and named densities over them.

    The bins (80) and ``limits`` are fixed, and ``top`` fixes the height, so that frames
    of an animation compare; a sample outside ``limits`` counts in n but is not drawn.
    """
    ax = panels()[1][0] if ax is None else ax
    edges = np.linspace(*limits, 81)
    for (name, values), color in zip(samples.items(), _colors(samples), strict=True):
        flat = _array(values).ravel()
        height = np.histogram(flat, edges)[0] / (max(flat.size, 1) * np.diff(edges))
        ax.stairs(height, edges, fill=True, alpha=0.5, color=color, label=name)
    u = np.linspace(*limits, 400)
    for name, law in (density or {}).items():
        ax.plot(u, _array(law(u)), color=COLORS.get(name, COLORS["exact"]), label=name)
    ax.set_ylim(0, top)
    return _finish(ax, xlabel, "density")


def _array(x: ArrayLike) -> NDArray[Any]:
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        x = x.double() if x.is_floating_point() else x
    return np.asarray(x)


def _tiles(x: ArrayLike) -> NDArray[np.uint8]:
    """Check pictures (N, C, H, W) and return them as RGBA bytes (N, H, W, 4)."""
    pictures = _array(x)
    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3) or not pictures.size:
        raise ValueError(
            f"pictures must be (N, C, H, W) with C = 1 or 3 and N, H, W > 0, got "
            f"{pictures.shape}: add or move the missing axis"
        )
    scaled = "scale them to [-1, 1] by x / 127.5 - 1"
    if not np.issubdtype(pictures.dtype, np.floating):
        raise ValueError(f"pictures are {pictures.dtype}, not floats: {scaled}")
    if not np.isfinite(pictures).all():
        raise ValueError("pictures hold NaN or infinity: look for where they arose")
    if pictures.min() >= 0 and pictures.max() > 2:
        raise ValueError(f"pictures reach {pictures.max():g} and nothing < 0: {scaled}")
    levels = np.rint((pictures.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    rgb = np.broadcast_to(levels, (len(levels), 3, *levels.shape[2:]))
    opaque = np.full_like(rgb[:, :1], 255)
    return np.concatenate([rgb, opaque], axis=1).transpose(0, 2, 3, 1)


def _montage(
    tiles: NDArray[np.uint8], top: float = 0.0, left: float = 0.0, bottom: float = 0.0
) -> tuple[Figure, Axes, NDArray[Any]]:
    """Show tiles (rows, columns, H, W, 4) in one image, with room in inches for text.

    Return also the tiles' centres (rows * columns, 2) in the image's own pixels.
    """
    rows, columns, height, width, _ = tiles.shape
    gap = max(1, width // 20)
    inches = min(_WIDTH - left, 1.2 * columns)
    above = gap + math.ceil(top * columns * (width + gap) / inches)
    canvas = np.pad(tiles, ((0, 0), (0, 0), (above, 0), (gap, 0), (0, 0)))
    canvas = canvas.transpose(0, 2, 1, 3, 4).reshape(rows * (above + height), -1, 4)
    tall = inches * canvas.shape[0] / canvas.shape[1]
    fig, ax = plt.subplots(figsize=(inches + left, tall + bottom))
    plt.close(fig)
    ax.imshow(canvas)
    ax.set(xticks=[], yticks=[])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.grid(False)
    v, u = np.mgrid[:rows, :columns].reshape(2, -1)
    right, down = u * (width + gap) + gap, v * (height + above) + above
    return fig, ax, np.stack([right + (width - 1) / 2, down + (height - 1) / 2], axis=1)


def _colors(names: Iterable[str]) -> list[str]:
    """Return each name's colour; a name without one takes a hue no other here has."""
    named = [COLORS.get(name) for name in names]
    spare = cycle([hue for hue in _HUES if hue not in named] or _HUES)
    return [color or next(spare) for color in named]


def _finish(ax: Axes, xlabel: str, ylabel: str) -> Figure:
    """Name the axes; keep one legend above all panels, each name in it once."""
    ax.set(xlabel=xlabel, ylabel=ylabel)
    fig: Any = ax.figure
    for old in list(fig.legends):
        old.remove()
    named = {
        name: handle
        for panel in fig.axes
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    ncols = 2 if len(named) == 4 else 3
    fig.legend(named.values(), named, loc="outside upper center", ncols=ncols)
    return fig
