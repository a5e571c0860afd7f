"""Figures: the right pixels and numbers, colours for every eye, the same bytes."""

import io
import itertools
import re

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from diffusion_lib import plotting
from diffusion_lib.plotting import (
    COLORS,
    curves,
    grid,
    histogram,
    loss_curve,
    panels,
    strip,
    style,
)


@pytest.fixture(autouse=True)
def look():
    """Every test in the book's look, on no screen."""
    with matplotlib.rc_context():
        matplotlib.use("agg")
        style()
        yield


def pixels(fig: Figure) -> np.ndarray:
    """The montage as drawn, RGBA bytes."""
    return np.asarray(fig.axes[0].images[0].get_array())


def rendered(fig: Figure, scale: int = 100) -> np.ndarray:
    out = io.BytesIO()
    fig.savefig(out, format="png", dpi=scale, metadata={"Software": None})
    return np.asarray(Image.open(out).convert("RGBA"))


def still(level: float = 0.0) -> Figure:
    return curves([0, 1], {"data": [0, level]}, "x", "y")


def lightness(color: str) -> np.ndarray:
    """Linear RGB of a colour (IEC 61966-2-1)."""
    c = np.array(to_rgb(color))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2."""
    light = [lightness(c) @ [0.2126, 0.7152, 0.0722] + 0.05 for c in (one, other)]
    return max(light) / min(light)


def lab(linear: np.ndarray) -> np.ndarray:
    """CIE Lab of linear RGB; a distance of 2 is just seen."""
    to_xyz = [
        [0.4124, 0.3576, 0.1805],
        [0.2126, 0.7152, 0.0722],
        [0.0193, 0.1192, 0.9505],
    ]
    xyz = np.array(to_xyz) @ linear.clip(0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira and Fernandes (2009): full protanopia and deuteranopia
SIGHTS = {
    "typical": np.eye(3),
    "protanopia": np.array(
        [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.052]]
    ),
    "deuteranopia": np.array(
        [[0.3673, 0.8606, -0.228], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]]
    ),
}


@pytest.mark.parametrize("background", ["#ffffff", "#121212"])
def test_every_colour_reads_in_the_light_and_the_dark_theme(background):
    assert contrast(plotting.INK, background) > 4.2  # large text needs 3, small 4.5
    assert min(contrast(color, background) for color in COLORS.values()) > 3  # graphics


@pytest.mark.parametrize("sight", SIGHTS)
def test_colours_differ_for_every_sight(sight):
    seen = [lab(SIGHTS[sight] @ lightness(color)) for color in set(COLORS.values())]
    apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    assert len(seen) == 6 and min(apart) > 15


def test_figures_are_transparent_and_text_is_legible_at_390_pixels():
    assert rendered(still())[0, 0, 3] == 0
    points_to_pixels = 358 / (72 * matplotlib.rcParams["figure.figsize"][0])
    assert matplotlib.rcParams["font.size"] * points_to_pixels > 9.5


def test_grid_shows_each_picture_upright_in_its_place_on_its_scale():
    x = -torch.ones(3, 1, 4, 6)
    x[0, 0, 0, 0] = 1.0  # top left of the first
    x[1] = 0.0
    x[2, 0, 3, 5] = 9.0  # bottom right of the last, clipped
    shown = pixels(grid(x, columns=2))
    assert shown.shape == (2 * (4 + 1), 2 * (6 + 1), 4)  # a gap above and left of each
    expected = np.zeros((3, 4, 6))
    expected[0, 0, 0] = expected[2, 3, 5] = 255
    expected[1] = 128
    for k, (row, column) in enumerate([(1, 1), (1, 8), (6, 1)]):
        tile = shown[row : row + 4, column : column + 6]
        assert (tile[..., :3] == expected[k, ..., None]).all() and (
            tile[..., 3] == 255
        ).all()
    assert (shown[6:, 8:, 3] == 0).all()  # no fourth picture


def test_grid_draws_the_first_row_on_top():
    x = -torch.ones(1, 1, 8, 8)
    x[..., :4, :] = 1.0
    drawn = rendered(grid(x))
    rows = drawn[drawn[..., 3].min(axis=1) >= 0][:, drawn.shape[1] // 2]
    opaque = rows[rows[:, 3] == 255][:, 0].astype(int)
    assert opaque[:10].min() > 250 and opaque[-10:].max() < 5


def test_grid_keeps_the_order_of_the_channels():
    x = -torch.ones(1, 3, 5, 5)
    x[:, 0] = 1.0
    assert (pixels(grid(x))[3, 3] == [255, 0, 0, 255]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_type_gives_the_same_picture(dtype):
    x = torch.tensor([-1.0, -0.5, 0.0, 1.0]).reshape(1, 1, 2, 2)
    shown = pixels(grid(x.to(dtype).requires_grad_()))
    assert (shown == pixels(grid(x.numpy()))).all()


def test_titles_stand_above_their_own_pictures():
    fig = grid(
        torch.zeros(4, 1, 8, 8), columns=2, titles=["a", "b", 3, torch.tensor(4)]
    )
    texts = fig.axes[0].texts
    assert [t.get_text() for t in texts] == ["a", "b", "3", "4"]
    opaque = pixels(fig)[..., 3] == 255
    for label in texts:
        u, v = label.get_position()
        assert opaque[int(np.ceil(v)), int(u)] and not opaque[int(np.floor(v)), int(u)]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (torch.zeros(28, 28), "N, C, H, W"),
        (torch.zeros(2, 28, 28, 1), "C = 1 or 3"),
        (torch.zeros(0, 1, 28, 28), "N, H, W > 0"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "x / 127.5 - 1"),
        (torch.full((2, 1, 8, 8), 200.0), "x / 127.5 - 1"),
        (torch.full((2, 1, 8, 8), torch.nan), "NaN"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_remedy(bad, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        grid(bad)
    with pytest.raises(ValueError, match=re.escape(says)):
        strip([bad], [0])


def test_labels_that_do_not_match_are_refused():
    x = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match="1 titles for 2 pictures"):
        grid(x, titles=["one"])
    with pytest.raises(ValueError, match="columns is -1"):
        grid(x, columns=-1)
    with pytest.raises(ValueError, match="3 labels for 2 frames"):
        strip([x, x], [1, 2, 3])
    with pytest.raises(ValueError, match="one or more"):
        strip([], [])
    with pytest.raises(ValueError, match="one shape"):
        strip([x, x[:1]], [1, 2])
    with pytest.raises(ValueError, match="1 row names for 2 rows"):
        strip([x], [0], rows=["one"])


def test_strip_puts_examples_in_rows_and_times_in_columns():
    levels = torch.tensor([[-1.0, -0.5, 0.0], [0.25, 0.5, 1.0]])  # (example, time)
    frames = levels.T.reshape(3, 2, 1, 1, 1).expand(3, 2, 1, 5, 5)
    fig = strip(frames, torch.tensor([1000.0, 500.0, 0.05]), rows=["boot", "bag"])
    ax, shown = fig.axes[0], pixels(fig)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1000", "500", "0.05"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["boot", "bag"]
    at = shown[np.ix_(ax.get_yticks().astype(int), ax.get_xticks().astype(int))]
    assert (at[..., 0] == np.rint((levels.numpy() + 1) * 127.5)).all()
    assert ax.get_xlabel() == "time $t$"


def test_the_same_name_has_the_same_colour_everywhere():
    t = [0, 1, 2]
    lines = curves(t, {"cosine": t, "mine": t, "model": t}, "t", "y").axes[0].lines
    assert lines[0].get_color() == COLORS["cosine"]
    assert lines[2].get_color() == COLORS["model"]
    assert lines[1].get_color() not in (COLORS["cosine"], "none")
    blue, other = curves(t, {"data": t, "mine": t}, "t", "y").axes[0].lines
    assert other.get_color() != blue.get_color() == COLORS["data"]
    patches = histogram({"model": t, "mine": t}).axes[0].patches
    assert to_rgb(patches[0].get_facecolor()) == to_rgb(COLORS["model"])
    assert to_rgb(patches[1].get_facecolor()) != to_rgb(COLORS["model"])


def test_schedules_differ_in_dashes_too():
    names = ("linear", "cosine", "quadratic", "sigmoid", "constant")
    lines = curves([0, 1], {name: [0, 1] for name in names}, "t", "y").axes[0].lines
    assert len({str(line._dash_pattern) for line in lines}) == len(names)


def test_panels_share_one_legend_outside_the_data():
    fig, axes = panels(2)
    for ax, label in zip(axes, ("left", "right"), strict=True):
        got = curves([0, 1], {"data": [0, 1], "exact": [1, 0]}, "t", label, ax=ax)
    assert got is fig and len(fig.legends) == 1
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["data", "exact"]
    assert [ax.get_ylabel() for ax in axes] == ["left", "right"]
    fig.draw_without_rendering()
    top = max(ax.get_window_extent().y1 for ax in axes)
    assert fig.legends[0].get_window_extent().y0 >= top


def test_curves_show_the_numbers_given():
    line = curves(torch.arange(3), {"data": torch.tensor([1.0, 4, 9])}, "t", "y").axes[
        0
    ]
    assert (line.lines[0].get_xydata() == [[0, 1], [1, 4], [2, 9]]).all()


def test_loss_curve_ends_its_means_at_the_right_steps():
    losses = torch.arange(1.0, 11)
    raw, mean = loss_curve(losses, window=4).axes[0].lines
    assert (raw.get_xydata()[:, 0] == np.arange(1, 11)).all()
    assert mean.get_xydata()[0] == pytest.approx([4, 2.5])
    assert mean.get_xydata()[-1] == pytest.approx([10, 8.5])
    with pytest.raises(ValueError, match="steps >= 50"):
        loss_curve(losses)


def test_histogram_areas_are_shares_of_all_samples():
    samples = torch.cat([torch.full((30,), 0.01), torch.full((10,), 50.0)])
    fig = histogram({"data": samples}, {"exact": lambda u: u * 0 + 0.125}, top=1.0)
    values, edges, _ = fig.axes[0].patches[0].get_data()
    assert np.sum(values * np.diff(edges)) == pytest.approx(0.75)
    assert edges[[0, -1]].tolist() == [-4, 4] and fig.axes[0].get_ylim() == (0, 1)
    assert values.argmax() == 40  # 0.01 is in the first bin above 0
    assert set(fig.axes[0].lines[0].get_ydata()) == {0.125}


def test_the_same_calls_give_the_same_bytes():
    def everything():
        x = torch.linspace(-1, 1, 4 * 64).reshape(4, 1, 8, 8)
        figures = [grid(x, titles="abcd"), strip([x, -x], [1, 0]), still(1.0)]
        figures += [histogram({"data": x}), loss_curve(np.arange(1, 60))]
        return [rendered(figure).tobytes() for figure in figures]

    assert everything() == everything()
