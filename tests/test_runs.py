"""Runs of a measurement: resumed, made anew, shared between processes."""

import subprocess
import sys
from collections import Counter

import pytest

from diffusion_lib import measurements
from diffusion_lib.measurements.runs import claimed, each_run, seed_by_seed

RUNS = seed_by_seed(["first", "second"], 3)


@pytest.fixture
def study(monkeypatch):
    """A study "little" that counts its runs in the list returned."""
    made = []

    def one_run(row, seed):
        made.append((row, seed))
        return {"frechet": len(made)}

    def little(report):
        yield from each_run("little", {"n": 7}, RUNS, one_run, report)

    monkeypatch.setitem(measurements.MEASUREMENTS, "little", (little, ["data.py"]))
    return made


def test_every_run_is_made_once_and_in_order(study, measured):
    told = []
    document = measured("little", told.append)
    assert [(run["row"], run["seed"]) for run in document["runs"]] == study == RUNS
    assert document["n"] == 7 and document["seconds"] == 0
    assert told[3] == "second, seed 1: frechet 4.00"


def test_a_finished_study_is_made_anew(study, measured):
    measured("little")
    document = measured("little")
    assert study == 2 * RUNS
    assert [run["frechet"] for run in document["runs"]] == [7, 8, 9, 10, 11, 12]


def test_a_claimed_run_is_left_to_whoever_claimed_it(study, measured):
    with claimed("little", "second, 0") as mine:
        assert mine
        document = measured("little")
    assert study == [run for run in RUNS if run != ("second", 0)]
    document = measured("little")
    assert study[-1] == ("second", 0) and len(study) == len(RUNS)
    assert [(run["row"], run["seed"]) for run in document["runs"]] == RUNS


def test_runs_of_a_row_that_is_no_more_are_dropped(study, measured, monkeypatch):
    with claimed("little", "second, 2"):
        measured("little")
    monkeypatch.setattr(sys.modules[__name__], "RUNS", seed_by_seed(["second"], 6))
    rows = {run["row"] for run in measured("little")["runs"]}
    assert rows == {"second"} and study[-4:] == [("second", s) for s in (2, 3, 4, 5)]


SHARED = """
import os, sys, time
from pathlib import Path
from diffusion_lib import ledger, measurements
from diffusion_lib.measurements.runs import each_run, seed_by_seed

folder = Path(sys.argv[1])
for module in (ledger, measurements):
    module.results_folder = lambda: folder
measurements.runs.cache_folder = lambda: folder

def one_run(row, seed):
    if seed == 0:  # wait until the other process makes a run, too
        (folder / f"{os.getpid()}.here").touch()
        while len(list(folder.glob("*.here"))) < 2:
            time.sleep(0.01)
    return {"frechet": 1.0, "process": os.getpid()}

def little(report):
    runs = seed_by_seed(["first", "second"], 6)
    yield from each_run("little", {}, runs, one_run, report)

measurements.MEASUREMENTS["little"] = little, ["data.py"]
measurements.measure("little")
"""


def test_two_processes_share_the_runs(tmp_path, measured):
    command = [sys.executable, "-c", SHARED, str(tmp_path / "results")]
    (tmp_path / "results").mkdir()
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    runs = measurements.runs.result("little")["runs"]
    pairs = [(run["row"], run["seed"]) for run in runs]
    assert pairs == seed_by_seed(["first", "second"], 6)
    assert len(Counter(run["process"] for run in runs)) == 2
