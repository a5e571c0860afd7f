"""Runs of a measurement: resumed, made anew, shared between processes, never lost."""

import subprocess
import sys

import pytest

from diffusion_lib import measurements
from diffusion_lib.measurements import runs as runs_module
from diffusion_lib.measurements.runs import claimed, each_run, run_folder, seed_by_seed

RUNS = seed_by_seed(["first", "second"], 3)


class Stop(Exception):
    """What breaks a measurement off."""


@pytest.fixture
def study(measured, monkeypatch):
    """A study "little" that counts its runs in the list returned; it may be changed."""
    made = []
    study = {"runs": RUNS, "n": 7, "made": made, "stop": 99}

    def one_run(row, seed):
        folder = run_folder("little", row, seed)
        folder.mkdir(parents=True)
        if len(made) == study["stop"]:
            raise Stop
        made.append((row, seed))
        return {"frechet": len(made)}

    def little(report):
        found = {"n": study["n"], "levels": (0, 1)}
        yield from each_run("little", found, study["runs"], one_run, report)

    monkeypatch.setitem(measurements.MEASUREMENTS, "little", (little, ["data.py"]))
    return study


def rows(document):
    return [(run["row"], run["seed"]) for run in document["runs"]]


def test_every_run_is_made_once_and_in_order(study, measured):
    told = []
    document = measured("little", told.append)
    assert rows(document) == study["made"] == RUNS
    assert document["n"] == 7
    assert told[3] == "second, seed 1: frechet 4.00"
    assert not run_folder("little", "first", 0).exists()


def test_seconds_add_up_over_all_runs(study, measured, monkeypatch):
    clock = iter(range(0, 999, 2))  # each look is 2 seconds after the last
    monkeypatch.setattr(runs_module.time, "perf_counter", lambda: next(clock))
    study["stop"] = 2
    with pytest.raises(Stop):
        measured("little")
    assert runs_module.stored("little")["seconds"] == 4
    study["stop"] = 99
    run_folder("little", "first", 1).rmdir()
    assert measured("little")["seconds"] == 12


def test_what_is_finished_stays_unless_asked_for_anew(study, measured, tmp_path):
    first = measured("little")
    assert measured("little") == first and study["made"] == RUNS
    study["stop"] = 7
    with pytest.raises(Stop):
        measured("little", anew=True)
    aside = tmp_path / "results" / "little.before"
    with pytest.raises(ValueError, match="leave --anew out to go on"):
        measured("little", anew=True)
    assert aside.read_text().count("frechet") == len(RUNS)
    study["stop"] = 99
    run_folder("little", "second", 0).rmdir()
    document = measured("little")
    assert [run["frechet"] for run in document["runs"]] == [7, 8, 9, 10, 11, 12]


def test_only_the_runs_of_new_rows_are_made(study, measured):
    measured("little")
    study["runs"] = seed_by_seed(["new", "second"], 3)
    document = measured("little")
    assert rows(document) == study["runs"]
    assert study["made"][6:] == [("new", 0), ("new", 1), ("new", 2)]


def test_runs_with_other_settings_are_not_mixed(study, measured):
    first = measured("little")
    study["n"] = 8
    with pytest.raises(ValueError, match="n = 7, now it is 8.*--anew"):
        measured("little")
    assert runs_module.stored("little") == first


def test_each_run_keeps_the_hash_of_its_code(study, measured, monkeypatch):
    study["stop"] = 2
    with pytest.raises(Stop):
        measured("little")
    study["stop"] = 99
    run_folder("little", "first", 1).rmdir()
    monkeypatch.setattr(measurements, "code_hash", lambda *names: "another")
    document = measured("little")
    codes = [run["code"] for run in document["runs"]]
    assert len(set(codes[:2])) == 1 and set(codes[2:]) == {"another"}
    assert codes[0] != "another" and "little" in measurements.stale()


def test_a_damaged_result_is_not_overwritten(study, measured, tmp_path):
    measured("little")
    path = tmp_path / "results" / "little.json"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(ValueError, match="little.json is damaged"):
        measured("little")
    assert len(study["made"]) == len(RUNS)


def test_a_training_is_kept_until_its_result_is_written(study, measured, monkeypatch):
    def full(path, document):
        raise OSError("no space left")

    monkeypatch.setattr(measurements, "write", full)
    with pytest.raises(OSError, match="no space"):
        measured("little")
    assert run_folder("little", "first", 0).exists()


def test_a_claimed_run_is_left_to_whoever_claimed_it(study, measured):
    told = []
    with claimed("little", "second", 0) as mine:
        assert mine
        measured("little", told.append)
    assert study["made"] == [run for run in RUNS if run != ("second", 0)]
    assert "second, seed 0: left to another process" in told
    document = measured("little")
    assert study["made"][-1] == ("second", 0) and len(study["made"]) == len(RUNS)
    assert rows(document) == RUNS


SHARED = """
import os, sys, time
from pathlib import Path
from diffusion_lib import ledger, measurements
from diffusion_lib.measurements.runs import each_run, seed_by_seed

folder = Path(sys.argv[1])
for module in (ledger, measurements, measurements.runs):
    module.results_folder = lambda: folder

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
    document = runs_module.stored("little")
    assert rows(document) == seed_by_seed(["first", "second"], 6)
    assert len({run["process"] for run in document["runs"]}) == 2
