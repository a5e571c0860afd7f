"""The ledger: equations held true, exercises checked, numbers handed to the prose.

A numbered equation of the book that can be tested is tested by `verify`, which
compares two sides computed by independent routes and refuses a comparison that
could not fail. What it measured travels as metadata of its output: a cached page
keeps its entries, and the printed line is the same on every machine.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

METADATA_KEY = "diffusion_course_ledger"
PACKAGE = Path(__file__).resolve().parent

Value = Tensor | np.ndarray | float | list | tuple


def verify(
    label: str,
    left: Value,
    right: Value,
    atol: float = 0.0,
    rtol: float = 0.0,
    route: str = "",
) -> None:
    """Hold the equation `label` true: its two sides agree to the tolerance.

    Args:
        label: the equation's label on the page ("eq-...").
        left: one side, any shape.
        right: the other, by an independent route; same shape, or one is a number.
        atol: largest absolute difference, in the units of the equation.
        rtol: largest difference relative to `right`, added to `atol`.
        route: what was compared with what, in a few words, for the ledger.

    Raises:
        AssertionError: the sides differ.
        ValueError: the comparison says nothing: one object on both sides, shapes
            that do not match, no entries, NaN, or a tolerance so loose that a
            factor of 1 + 10 x tolerance or a flipped sign would pass.
    """
    if _same_object(left, right):
        raise ValueError(f"{label}: both sides are one object; compute one anew")
    a, b = _array(label, left), _array(label, right)
    if a.shape != b.shape and a.ndim and b.ndim:
        raise ValueError(f"{label}: shapes {a.shape} and {b.shape} do not match")
    error = float(np.abs(a - b).max())
    if not _agree(a, b, atol, rtol):
        raise AssertionError(
            f"{label} does not hold: the sides differ by {error:.3g}, "
            f"allowed is {_tolerance(atol, rtol)}"
        )
    _prove_it_can_fail(label, a, b, atol, rtol)
    how = f" ({route})" if route else ""
    _show(
        f"{label} holds to {_tolerance(atol, rtol)}{how}",
        {"label": label, "atol": atol, "rtol": rtol, "error": error, "route": route},
    )


def check(
    name: str, answer: Any, right: Value, atol: float = 1e-6, rtol: float = 0.0
) -> None:
    """Compare an exercise's answer with the right one and say what is wrong.

    Args:
        name: the exercise's label ("ex-...").
        answer: the reader's answer; `...` (still unanswered) only prints a reminder.
        right: what it should be.
        atol: largest absolute difference.
        rtol: largest difference relative to `right`, added to `atol`.

    Raises:
        AssertionError: the answer is wrong; the text says how.
    """
    if answer is ...:
        _show(f"{name}: put your answer in place of the dots, then run this cell.")
        return
    try:
        a = _array(name, answer)
    except (TypeError, ValueError) as problem:
        raise AssertionError(f"{name}: not yet: {problem}") from None
    b = _array(name, right)
    if a.shape != b.shape:
        raise AssertionError(
            f"{name}: not yet: your answer has shape {a.shape}, expected is {b.shape}"
        )
    if not _agree(a, b, atol, rtol):
        signs = "; the sign is the other way round" if _agree(-a, b, atol, rtol) else ""
        raise AssertionError(
            f"{name}: not yet: off by up to {np.abs(a - b).max():.3g}{signs}. "
            "Look at the hint and try again."
        )
    _show(f"{name}: right.")


def glue(name: str, value: Any) -> None:
    """Keep a value of the run under a name for the prose; nothing without myst_nb."""
    try:
        from myst_nb import glue as keep
    except ImportError:
        return
    keep(name, value, display=False)


def result(name: str) -> dict[str, Any]:
    """Read a measurement too long for a page: `results/NAME.json` as a dict.

    Raises:
        ValueError: no such result (the text lists those there are), or a damaged one.
    """
    path = results_folder() / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.json"))) or "none"
        raise ValueError(f"no result named {name!r}; there are: {known}")
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}): mend or delete it") from None


def by_row(name: str) -> dict[str, dict[str, np.ndarray]]:
    """Return the runs of `result(name)`: of each row, every score over the seeds.

    A score is (runs, ...), in the order of the seeds; one that some run lacks is left
    out. Rows come in the order of their first runs. Raises ValueError as `result` does.
    """
    runs = sorted(result(name)["runs"], key=lambda run: run["seed"])
    table = {}
    for row in dict.fromkeys(run["row"] for run in runs):
        own = [run for run in runs if run["row"] == row]
        keys = [key for key in own[0] if all(key in run for run in own)]
        table[row] = {key: np.array([run[key] for run in own]) for key in keys}
    return table


def mean_and_spread(values: Value, digits: int = 2) -> str:
    """Return "mean ± standard deviation"; of one value the mean, of none "–"."""
    numbers = np.asarray(values, dtype=float).ravel()
    if numbers.size == 0:
        return "–"
    about = f" ± {numbers.std(ddof=1):.{digits}f}" if numbers.size > 1 else ""
    return f"{numbers.mean():.{digits}f}{about}"


def results_folder() -> Path:
    """Where results lie: inside an installed package, else beside it in a checkout."""
    inside = PACKAGE / "results"
    return inside if inside.is_dir() else PACKAGE.parent / "results"


def code_hash(*names: str) -> str:
    """Hash named library files ("samplers.py", "networks/*.py"); all if none is named.

    Returns the first 12 hexadecimal digits of a SHA-256 over names and contents.

    Raises:
        ValueError: a name that matches no file.
    """
    digest = hashlib.sha256()
    for name in names or ("**/*.py",):
        paths = sorted(PACKAGE.glob(name))
        if not paths:
            raise ValueError(f"no library file matches {name!r}")
        for path in paths:
            digest.update(path.relative_to(PACKAGE).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _prove_it_can_fail(
    label: str, a: np.ndarray, b: np.ndarray, atol: float, rtol: float
) -> None:
    """Plant a wrong factor and a wrong sign; ValueError if either goes unseen.

    The factor is 1 + 10 x tolerance, the tolerance relative to the largest value.
    Above 2 the tolerance would hide the most common slips, so that is refused too.
    """
    size = float(np.abs(b).max())
    slack = atol / size + rtol if size else math.inf
    factor = 1 + 10 * max(slack, np.finfo(float).eps)
    if factor > 2 or _agree(factor * a, b, atol, rtol) or _agree(-a, b, atol, rtol):
        raise ValueError(
            f"{label}: with a tolerance of {_tolerance(atol, rtol)} on values of size "
            f"{size:.3g} a wrong factor or sign would pass; tighten it to a tenth of "
            "the values, and compare with something that is not zero"
        )


def _array(name: str, value: Value) -> np.ndarray:
    """Any tensor, array or number as float64; ValueError if it says nothing."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().double()
    array = np.asarray(value, dtype=np.float64)
    if array.size == 0:
        raise ValueError(f"{name}: nothing to compare, a side is empty")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: a side has NaN or infinite entries")
    return array


def _agree(a: np.ndarray, b: np.ndarray, atol: float, rtol: float) -> bool:
    return bool((np.abs(a - b) <= atol + rtol * np.abs(b)).all())


def _same_object(left: Any, right: Any) -> bool:
    """One object, or two views of the same entries (a transpose is another view)."""
    if left is right:
        return not isinstance(left, int)  # Python keeps one object for each small int
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        same = left.data_ptr() == right.data_ptr() and left.stride() == right.stride()
        return same and left.shape == right.shape and left.numel() > 0
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        where = "__array_interface__"
        return getattr(left, where)["data"] == getattr(right, where)["data"] and (
            left.strides == right.strides and left.shape == right.shape
        )
    return False


def _tolerance(atol: float, rtol: float) -> str:
    parts = [f"{atol:g}"] if atol or not rtol else []
    return " + ".join(parts + ([f"{rtol:g} of the value"] if rtol else []))


def _show(line: str, record: dict[str, Any] | None = None) -> None:
    """Print a line; in a notebook carry the record along as the output's metadata."""
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        print(line)
        return
    if record is None or get_ipython() is None:
        print(line)
    else:
        display({"text/plain": line}, raw=True, metadata={METADATA_KEY: record})
