"""Moving figures and tables as static files: slider, explore, animation, table.

All read without a kernel and without a network, from ``file://`` too. An animation is
an animated PNG, so a page gives it a caption and alt text as any figure, and nbval,
which never compares image/png, needs no tag. (A GIF would: it is compared. It also has
no half-transparent pixels, so its text is ragged on a dark page.)
"""

import base64
import io
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence, Sized
from html import escape
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

if TYPE_CHECKING:
    from IPython.display import HTML
    from IPython.display import Image as Picture

_DPI = 150  # dots of an inch in a frame; it is shown as 100 CSS pixels
_FIT = "max-width:100%;height:auto;padding:0;background:none"
_STEP = (
    "const b=this.closest('.frames'),p=b.querySelectorAll('img'),"
    "l=p[this.value].dataset.label;"
    "p.forEach((e,i)=>e.style.display=i==this.value?'block':'none');"
    "b.querySelector('output').textContent=l;this.setAttribute('aria-valuetext',l)"
)
_PLAY = (
    "const b=this,s=b.nextElementSibling,"
    "say=(t,a)=>{b.textContent=t;b.setAttribute('aria-label',a)},"
    "stop=()=>{clearInterval(b.timer);b.timer=0;say('\u25b6','play')};"
    "if(b.timer)stop();else{say('\u25a0','stop');b.timer=setInterval(()=>{"
    "if(!b.isConnected)return stop();"
    "s.value=(+s.value+1)%(+s.max+1);s.oninput()},400)}"
)


def text(value: object, digits: int = 4) -> str:
    """Write a label: numbers and one-number tensors in ``digits`` digits, else str."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return str(value)
    if isinstance(value, str):
        return value
    whole = number.is_integer() and abs(number) < 1e6
    return str(int(number)) if whole else f"{number:.{digits}g}"


def match(names: Sized, kind: str, things: Sized, what: str) -> None:
    """Raise ValueError unless there are as many names as things."""
    if len(names) != len(things):
        count = f"{len(names)} {kind} for {len(things)} {what}"
        raise ValueError(f"{count}: give one for each")


def slider(
    figures: Sequence[Figure], labels: Sequence[object], name: str, alt: str = ""
) -> "HTML":
    """Return figures of one size as a slider: arrow keys move it, a button plays it.

    ``name`` is its id in the page. ``alt`` says what is drawn; the alt text of a frame
    is that and its label. Raises ValueError where labels and figures do not match.
    """
    from IPython.display import HTML

    match(labels, "labels", figures, "figures")
    if not re.fullmatch(r"[A-Za-z][\w-]*", name):
        raise ValueError(f"name is {name!r}: use letters, digits, - and _")
    frames, words = _render(figures), [escape(text(label)) for label in labels]
    width, title = round(100 * figures[0].get_figwidth()), escape(alt)
    pictures = "".join(
        f'<img alt="{f"{title}: {word}" if alt else word}" data-label="{word}" '
        f'src="data:image/webp;base64,{base64.b64encode(frame).decode()}" '
        f'width="{width}" style="display:{"none" if i else "block"};{_FIT}">'
        for i, (frame, word) in enumerate(zip(frames, words, strict=True))
    )
    return HTML(
        f'<div class="frames" id="{name}" role="group" aria-label="{title or name}">'
        f"{pictures}{_controls(len(frames) - 1, words[0], width)}</div>"
    )


def explore(
    draw: Callable[..., Figure], name: str, alt: str = "", /, **values: Sequence[Any]
) -> Any:
    """Show ``draw(key=value)`` for each of one key's values, the reader choosing.

    In a kernel of Jupyter's server or Colab an ipywidget that draws on demand;
    anywhere else, above all in the built book, the same pictures as a :func:`slider`.
    Raises ValueError unless exactly one key with at least one value is given.
    """
    if len(values) != 1 or not len(next(iter(values.values()))):
        raise ValueError(f"explore needs one key with values, got {list(values)}")
    ((key, choices),) = values.items()
    labels = [text(value) for value in choices]
    if not _live():
        figures = [draw(**{key: value}) for value in choices]
        return slider(figures, [f"{key} = {label}" for label in labels], name, alt)
    return _widget(draw, key, list(zip(labels, choices, strict=True)))


def animation(
    figures: Sequence[Figure], seconds: float = 4.0, hold: float = 1.0
) -> "Picture":
    """Return figures of one size as an endless animation, ``hold`` seconds on the last.

    What a reader should stop and study is a :func:`slider` instead. Equal neighbours
    become one longer frame. Raises ValueError where nothing could be seen to move.
    """
    from IPython.display import Image as Picture

    if len(figures) < 2 or seconds <= 0 or hold < 0:
        raise ValueError(
            f"need 2 figures or more, seconds > 0 and hold >= 0, got {len(figures)} "
            f"figures, seconds {seconds}, hold {hold}"
        )
    first, *rest = (Image.open(io.BytesIO(frame)) for frame in _render(figures))
    each = round(1000 * seconds / len(figures))
    times = [each] * len(rest) + [each + round(1000 * hold)]
    out = io.BytesIO()
    first.save(out, "PNG", save_all=True, append_images=rest, duration=times, loop=0)
    width = round(100 * figures[0].get_figwidth())
    return Picture(data=out.getvalue(), format="png", width=width)


def table(columns: Mapping[str, Sequence[object]], digits: int = 3) -> "HTML":
    """Return named columns as a table, numbers in ``digits`` digits.

    Raises ValueError where the columns differ in length.
    """
    from IPython.display import HTML

    if len({len(column) for column in columns.values()}) != 1:
        sizes = {name: len(column) for name, column in columns.items()}
        raise ValueError(f"columns must be of one length, got {sizes}")
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(text(v, digits))}</td>" for v in row) + "</tr>"
        for row in zip(*columns.values(), strict=True)
    )
    return HTML(
        '<table class="dataframe">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _render(figures: Sequence[Figure]) -> list[bytes]:
    """Close figures of one size and return each as lossless WebP, half a PNG's size."""
    sizes = {tuple(figure.get_size_inches()) for figure in figures}
    if len(sizes) != 1:
        raise ValueError(f"need figures of one size, got {len(sizes)} sizes")
    frames = []
    for figure in figures:
        out = io.BytesIO()
        figure.savefig(out, format="webp", dpi=_DPI, pil_kwargs={"lossless": True})
        plt.close(figure)
        frames.append(out.getvalue())
    return frames


def _controls(last: int, word: str, width: int) -> str:
    return (
        f'<div style="display:flex;align-items:center;gap:.6em;max-width:{width}px">'
        f'<button type="button" aria-label="play" onclick="{_PLAY}" style="width:2.4em;'
        "height:2.4em;padding:0;color:inherit;background:none;border:1px solid;"
        'border-radius:4px">\u25b6</button>'
        f'<input type="range" min="0" max="{last}" value="0" aria-label="frame" '
        f'aria-valuetext="{word}" oninput="{_STEP}" autocomplete="off" '
        'style="flex:1;min-width:0;height:2em">'
        f'<output style="min-width:6em">{word}</output></div>'
    )


def _live() -> bool:
    # Set by Jupyter's server and by Colab, not by book builds or test runs: where in
    # doubt the slider, which works everywhere.
    served = "JPY_SESSION_NAME" in os.environ or "google.colab" in sys.modules
    return served and find_spec("ipywidgets") is not None


def _widget(draw: Callable[..., Figure], key: str, options: list[Any]) -> Any:
    from ipywidgets import SelectionSlider, interactive

    def show(**chosen: Any) -> Figure:
        figure = draw(**chosen)
        plt.close(figure)  # the widget shows what is returned, once
        return figure

    choice = SelectionSlider(options=options, description=key, continuous_update=False)
    return interactive(show, **{key: choice})
