"""A measurement made of runs: interrupted it goes on, and processes may share it.

Locks and unfinished trainings lie beside the results, in results/.runs.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..ledger import code_hash, result, results_folder
from .shared import Report

CODE = code_hash()  # of what runs here, whatever becomes of the files meanwhile


def seed_by_seed(rows: Iterable[str], seeds: int) -> list[tuple[str, int]]:
    """Return every (row, seed), all rows of the first seed first."""
    rows = list(rows)
    return [(row, seed) for seed in range(seeds) for row in rows]


def each_run(
    name: str,
    found: dict[str, Any],
    runs: list[tuple[str, int]],
    one_run: Callable[[str, int], dict[str, Any]],
    report: Report,
    shown: str = "frechet",
) -> Iterator[dict[str, Any]]:
    """Make the runs (row, seed) that results/NAME.json lacks; yield found after each.

    Processes that measure the same at once share the runs: each is made by the one that
    claims it first. found then has the others' too, and must be written before the next
    is asked for; only then is the run's folder removed.

    Args:
        name: of the measurement.
        found: its settings; raises ValueError if NAME.json was measured with others.
        runs: all of them, in the order in which they shall stand.
        one_run: one_run(row, seed) -> its scores, among them the one to be shown.
        report: is told what each run found.
        shown: the score to tell.
    """
    _check_settings(name, found)
    for row, seed in runs:
        with claimed(name, row, seed) as mine:
            if not mine:
                report(f"{row}, seed {seed}: left to another process")
                continue
            if any((run["row"], run["seed"]) == (row, seed) for run in made(name)):
                continue
            start = time.perf_counter()
            run = {"row": row, "seed": seed, **one_run(row, seed)}
            took = time.perf_counter() - start
            with alone(name):
                before = (stored(name) or {}).get("seconds", 0)
                found["seconds"] = round(before + took, 1)
                place = {pair: i for i, pair in enumerate(runs)}
                known = [r for r in made(name) if (r["row"], r["seed"]) in place]
                known.append(run)
                found["runs"] = sorted(known, key=lambda r: place[r["row"], r["seed"]])
                yield found
            shutil.rmtree(run_folder(name, row, seed), ignore_errors=True)
        report(f"{row}, seed {seed}: {shown} {run[shown]:.2f}")


def stored(name: str) -> dict[str, Any] | None:
    """Return results/NAME.json, None if there is none."""
    return result(name) if (results_folder() / f"{name}.json").is_file() else None


def made(name: str) -> list[dict[str, Any]]:
    """Return the runs of results/NAME.json, each with the hash of its code."""
    before = stored(name) or {"runs": []}
    return [{"code": before["code"], **run} for run in before["runs"]]


def run_folder(name: str, row: str, seed: int) -> Path:
    """Return the folder from which this code's training of a run resumes."""
    return _place(name) / f"{row}, {seed}, {CODE}"


@contextmanager
def claimed(name: str, row: str, seed: int) -> Iterator[bool]:
    """Say whether this process may make the run; no other may until it is left."""
    lock = FileLock(_place(name) / f"{row}, {seed}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def alone(name: str) -> FileLock:
    """Keep other processes from changing results/NAME.json, while one does."""
    return FileLock(_place(name) / "result.lock")


def _place(name: str) -> Path:
    place = results_folder() / ".runs" / name
    place.mkdir(parents=True, exist_ok=True)
    return place


def _check_settings(name: str, found: dict[str, Any]) -> None:
    before = stored(name) or {}
    for key, value in json.loads(json.dumps(found)).items():
        if not isinstance(value, dict) and before.get(key, value) != value:
            raise ValueError(
                f"results/{name}.json was measured with {key} = {before[key]}, now it "
                f"is {value}: `measure {name} --anew` puts it aside and begins again"
            )
