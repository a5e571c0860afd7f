"""The ledger: what `verify` accepts, what it refuses, and that it can fail."""

import json
import math

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from diffusion_lib import ledger
from diffusion_lib.ledger import (
    by_row,
    check,
    code_hash,
    mean_and_spread,
    result,
    verify,
)

VALUES = torch.linspace(-1, 1, 11, dtype=torch.float64)


def test_two_routes_that_agree_print_one_stable_line(capsys):
    """The measured error must not be in the line: it differs between machines."""
    verify("eq-square", VALUES**2, VALUES * VALUES.clone(), atol=1e-12, route="powers")
    assert capsys.readouterr().out == "eq-square holds to 1e-12 (powers)\n"


@pytest.mark.parametrize("sides", [(1.0, 1), (VALUES.numpy() + 0, VALUES), ([2], [2])])
def test_numbers_arrays_tensors_and_lists_compare(sides):
    verify("eq-any", *sides, atol=1e-12)


@pytest.mark.parametrize("factor", [1 + 1e-5, -1.0, 0.0])
def test_a_wrong_side_fails(factor):
    with pytest.raises(AssertionError, match="eq-wrong does not hold"):
        verify("eq-wrong", factor * VALUES, VALUES, atol=1e-6)


def test_relative_tolerance_serves_small_values():
    verify("eq-small", VALUES * 1e-9, 1e-9 * VALUES.clone(), rtol=1e-12)
    with pytest.raises(AssertionError):
        verify("eq-small", VALUES * 1.1e-9, 1e-9 * VALUES, rtol=1e-3)


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (VALUES, VALUES, "one object"),
        (VALUES, VALUES[:], "one object"),
        (VALUES.numpy(), VALUES.numpy(), "one object"),
        (VALUES, VALUES[:5].clone(), "shapes"),
        (torch.zeros(0), torch.zeros(0), "empty"),
        (math.nan, 1.0, "NaN"),
        (1e-4, 0.0, "would pass"),
        (0.4, 0.4 + 1e-9, "would pass"),
    ],
)
def test_comparisons_that_say_nothing_are_refused(left, right, message):
    with pytest.raises(ValueError, match=message):
        verify("eq-empty", left, right, atol=0.1)


def test_symmetry_of_a_matrix_may_be_verified():
    """A transposed view shares memory, but not the same entries in order."""
    matrix = torch.tensor([[1.0, 2.0], [2.0, 3.0]])
    verify("eq-symmetric", matrix, matrix.T, atol=1e-12)
    verify("eq-symmetric", matrix.numpy(), matrix.numpy().T, atol=1e-12)


def test_whatever_verify_accepts_would_fail_with_a_planted_factor():
    for size in (1e-3, 1.0, 1e3):
        verify("eq-scaled", size * VALUES, VALUES * size, atol=1e-2 * size)
        with pytest.raises(AssertionError):
            verify("eq-scaled", 1.1001 * size * VALUES, VALUES * size, atol=1e-2 * size)


def test_in_a_notebook_the_record_is_metadata_of_the_output():
    shell = InteractiveShell.instance()
    try:
        with capture_output() as captured:
            verify("eq-meta", 2.0 + 1e-9, 2.0, atol=1e-6, route="by hand")
    finally:
        shell.clear_instance()
    (output,) = captured.outputs
    record = output.metadata[ledger.METADATA_KEY]
    assert output.data == {"text/plain": "eq-meta holds to 1e-06 (by hand)"}
    assert record["label"] == "eq-meta" and record["route"] == "by hand"
    assert record["error"] == pytest.approx(1e-9, rel=1e-3)


def test_an_exercise_is_unanswered_right_or_wrong(capsys):
    check("ex-one", ..., 1.0)
    check("ex-one", np.float32(1.0), 1.0)
    said = capsys.readouterr().out.splitlines()
    assert "in place of the dots" in said[0] and said[1] == "ex-one: right."
    with pytest.raises(AssertionError, match="off by up to 0.5"):
        check("ex-one", 1.5, 1.0)
    with pytest.raises(AssertionError, match="sign"):
        check("ex-one", -1.0, 1.0)
    with pytest.raises(AssertionError, match="shape"):
        check("ex-one", [1.0, 1.0], 1.0)
    with pytest.raises(AssertionError, match="not yet"):
        check("ex-one", "one", 1.0)


def test_results_are_read_and_a_missing_one_names_the_others(tmp_path, monkeypatch):
    (tmp_path / "scores.json").write_text(json.dumps({"n": 3}))
    monkeypatch.setattr(ledger, "results_folder", lambda: tmp_path)
    assert result("scores") == {"n": 3}
    with pytest.raises(ValueError, match="scores"):
        result("missing")


def test_runs_are_gathered_by_row_in_the_order_of_seeds(tmp_path, monkeypatch):
    runs = [
        {"row": "b", "seed": 1, "frechet": 3.0, "levels": [1.0, 2.0]},
        {"row": "a", "seed": 0, "frechet": 9.0, "only": 1.0},
        {"row": "b", "seed": 0, "frechet": 1.0, "levels": [3.0, 4.0], "only": 2.0},
    ]
    (tmp_path / "study.json").write_text(json.dumps({"runs": runs}))
    monkeypatch.setattr(ledger, "results_folder", lambda: tmp_path)
    rows = by_row("study")
    assert rows["b"]["frechet"].tolist() == [1.0, 3.0]
    assert rows["b"]["levels"].tolist() == [[3.0, 4.0], [1.0, 2.0]]
    assert "only" in rows["a"] and "only" not in rows["b"]


@pytest.mark.parametrize(
    "values, text",
    [([1.0, 3.0], "2.0 ± 1.4"), ([0.25], "0.2"), ([], "–")],
)
def test_mean_and_spread(values, text):
    assert mean_and_spread(values, 1) == text


def test_code_hash_follows_the_named_files(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "PACKAGE", tmp_path)
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "b.py").write_text("2")
    before = code_hash("a.py"), code_hash()
    (tmp_path / "b.py").write_text("3")
    assert code_hash("a.py") == before[0] and code_hash() != before[1]
    with pytest.raises(ValueError, match="c.py"):
        code_hash("c.py")
