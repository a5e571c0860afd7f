"""Sliders, animations, tables: every frame, its words, its time, the same bytes."""

import io
import re
from base64 import b64decode

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from test_plotting import look, rendered, still

from diffusion_lib.plotting import animation, explore, grid, save_film, slider, table

__all__ = ["look"]  # the fixture that every test here uses by itself


def moving(n: int) -> list[Figure]:
    return [still(k / n) for k in range(n)]


def tags(html: str, name: str) -> list[dict[str, str]]:
    found = re.findall(rf"<{name}\b([^>]*(?:=>[^>]*)*)>", html)
    return [dict(re.findall(r'([\w-]+)="([^"]*)"', tag)) for tag in found]


def test_slider_holds_every_frame_with_its_words():
    html = slider(moving(3), [0, 0.5, torch.tensor(1.0)], "fig-demo", "A line").data
    pictures = tags(html, "img")
    assert [p["alt"] for p in pictures] == ["A line: 0", "A line: 0.5", "A line: 1"]
    assert ["none" in re.search(r"display:\w+", p["style"])[0] for p in pictures] == [
        False,
        True,
        True,
    ]
    sizes = {Image.open(io.BytesIO(frame(p))).size for p in pictures}
    assert sizes == {(900, 450)} and len({p["src"] for p in pictures}) == 3
    (control,) = tags(html, "input")
    assert control["type"] == "range" and control["max"] == "2"
    assert control["aria-valuetext"] == "0" and 'id="fig-demo"' in html


def frame(picture: dict[str, str]) -> bytes:
    kind, data = picture["src"].split(",")
    assert kind == "data:image/webp;base64"
    return b64decode(data)


def test_slider_frames_are_the_figures_losslessly():
    x = torch.linspace(-1, 1, 3 * 64).reshape(1, 3, 8, 8)
    (picture, _) = tags(slider([grid(x), grid(-x)], "ab", "s").data, "img")
    seen = np.asarray(Image.open(io.BytesIO(frame(picture))).convert("RGBA"))
    meant = rendered(grid(x), 150)
    opaque = meant[..., 3] == 255
    assert (seen[..., 3] == meant[..., 3]).all() and opaque.sum() > 10_000
    assert (seen[opaque] == meant[opaque]).all()


def test_slider_needs_nothing_from_outside():
    html = slider(moving(2), ["a", "b"], "s").data
    assert not re.search(
        r"https?:|//|<script|\brequire\b", re.sub(r"base64,[^\"]*", "", html)
    )


def test_slider_escapes_labels():
    html = slider(moving(2), ['<b> & "q"', "x < y"], "s", 'say "hi"').data
    words = re.sub(r'(onclick|oninput|src)="[^"]*"', "", html)
    assert "<b>" not in words and "&lt;b&gt; &amp; &quot;q&quot;" in words
    assert tags(words, "img")[1]["alt"] == "say &quot;hi&quot;: x &lt; y"


@pytest.mark.parametrize(
    ("figures", "labels", "name", "says"),
    [
        ([], [], "s", "one size"),
        (moving(2), [1], "s", "1 labels for 2 figures"),
        (moving(1), [1], 'x" onload="', "letters, digits"),
        ([still(), grid(torch.zeros(1, 1, 4, 4))], [1, 2], "s", "one size"),
    ],
)
def test_slider_refuses_what_it_cannot_show(figures, labels, name, says):
    with pytest.raises(ValueError, match=says):
        slider(figures, labels, name)


def test_explore_is_a_slider_outside_a_live_notebook(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    drawn = []

    def draw(t):
        drawn.append(t)
        return still(t)

    html = explore(draw, "fig-t", "A line", t=torch.tensor([1.0, 0.5, 0.25])).data
    assert drawn == [1.0, 0.5, 0.25]
    assert [p["data-label"] for p in tags(html, "img")] == [
        "t = 1",
        "t = 0.5",
        "t = 0.25",
    ]


def test_explore_is_a_widget_in_a_live_notebook(monkeypatch):
    widgets = pytest.importorskip("ipywidgets")
    monkeypatch.setenv("JPY_SESSION_NAME", "page.ipynb")
    shown = []
    box = explore(lambda t: shown.append(t) or still(t), "fig-t", t=[0.5, 1.0])
    (choice,) = (w for w in box.children if isinstance(w, widgets.SelectionSlider))
    assert [value for _, value in choice.options] == [0.5, 1.0]
    box.update()
    choice.value = 1.0
    assert shown[0] == 0.5 and shown[-1] == 1.0


def test_explore_takes_one_key():
    for values in ({}, {"t": []}, {"s": [1], "t": [1]}):
        with pytest.raises(ValueError, match="exactly one key|one key"):
            explore(still, "s", **values)


def test_animation_plays_every_frame_for_its_time():
    figures, meant = moving(4), [rendered(figure, 150) for figure in moving(4)]
    film = Image.open(io.BytesIO(animation(figures, seconds=2.0, hold=1.0).data))
    assert film.format == "PNG" and film.n_frames == 4 and film.info["loop"] == 0
    times = []
    for k in range(4):
        film.seek(k)
        times.append(film.info["duration"])
        seen, inked = np.asarray(film.convert("RGBA")), meant[k][..., 3] == 255
        assert (seen[..., 3] == meant[k][..., 3]).all()
        assert (seen[inked] == meant[k][inked]).all() and inked.sum() > 1000
    assert times == [500, 500, 500, 1500]


def test_animation_refuses_what_does_not_move():
    with pytest.raises(ValueError, match="2 figures or more"):
        animation(moving(1))
    with pytest.raises(ValueError, match="seconds 0"):
        animation(moving(2), seconds=0)


def test_an_animation_is_output_that_nbval_never_compares():
    data, metadata = animation(moving(2))._repr_mimebundle_()
    assert set(data) - {"text/plain"} == {"image/png"}
    assert metadata["image/png"]["width"] == 600


def test_table_shows_numbers_to_three_digits_and_escapes_the_rest():
    columns = {
        "sampler": ["<DDIM>", "2M"],
        "calls": [1000, 10],
        "score": [5.4321, 138.4],
    }
    html = table(columns).data
    assert re.findall(r'<th scope="col">(.*?)</th>', html) == [
        "sampler",
        "calls",
        "score",
    ]
    cells = re.findall(r"<td>(.*?)</td>", html)
    assert cells == ["&lt;DDIM&gt;", "1000", "5.43", "2M", "10", "138"]
    with pytest.raises(ValueError, match=re.escape(str({"a": 1, "b": 2}))):
        table({"a": [1], "b": [1, 2]})


def test_the_same_calls_give_the_same_bytes():
    def films():
        return slider(moving(3), [1, 2, 3], "s").data, animation(moving(3)).data

    assert films() == films()


@pytest.mark.slow
def test_in_a_notebook_a_figure_is_shown_once_and_sharp():
    nbformat, nbclient = (
        pytest.importorskip("nbformat"),
        pytest.importorskip("nbclient"),
    )
    cells = [
        "import torch\nfrom diffusion_lib.plotting import grid, style, panels, curves\n"
        "style()",
        "grid(torch.zeros(4, 1, 8, 8))",
        "fig, axes = panels(2)\ncurves([0, 1], {'data': [0, 1]}, 'x', 'y', axes[0])",
        "quiet = grid(torch.zeros(4, 1, 8, 8))",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    nbclient.NotebookClient(book, timeout=120, kernel_name="python3").execute()
    shown = [[o for o in cell.outputs if "data" in o] for cell in book.cells]
    assert [len(outputs) for outputs in shown] == [0, 1, 1, 0]
    output = shown[2][0]
    width = Image.open(io.BytesIO(b64decode(output.data["image/png"]))).width
    assert width == pytest.approx(2 * output.metadata["image/png"]["width"], abs=2)
    assert width > 1000


@pytest.mark.parametrize("ending", [".gif", ".webp", ".png"])
def test_a_film_holds_every_frame_for_its_time(tmp_path, ending):
    frames = [torch.full((3, 1, 4, 5), level) for level in (-2.0, 0.0, 1.0)]
    path = save_film(
        frames,
        tmp_path / "new" / f"run{ending}",
        columns=3,
        seconds=0.6,
        hold=1,
        scale=2,
    )
    with Image.open(path) as film:
        assert film.n_frames == 3 and film.size == (2 * (3 * 6 + 1), 2 * (4 + 2))
        shown = []
        for k in range(3):
            film.seek(k)
            shown.append((film.convert("L").getpixel((4, 4)), film.info["duration"]))
    levels, times = zip(*shown, strict=True)
    assert levels == pytest.approx((0, 128, 255), abs=3)
    assert times[2] - times[0] == pytest.approx(1000, abs=20)


def test_what_is_no_film_is_refused(tmp_path):
    frame = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match="use one of .gif"):
        save_film([frame, frame], tmp_path / "run.mov")
    with pytest.raises(ValueError, match="two frames or more"):
        save_film([frame], tmp_path / "run.gif")
    with pytest.raises(ValueError, match="of one shape"):
        save_film([frame, frame[:1]], tmp_path / "run.gif")
