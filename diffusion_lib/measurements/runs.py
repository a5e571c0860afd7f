"""A measurement made of runs: interrupted it goes on, and processes may share it."""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..data import cache_folder
from ..ledger import result
from .shared import Report


def seed_by_seed(rows: Iterable[str], seeds: int) -> list[tuple[str, int]]:
    """Return every (row, seed), all rows of the first seed first."""
    rows = list(rows)
    return [(row, seed) for seed in range(seeds) for row in rows]


def unfinished(name: str, total: int) -> dict[str, Any] | None:
    """Return results/NAME.json if it has fewer runs than total, else None."""
    before = _stored(name)
    return before if before and len(before["runs"]) < total else None


def each_run(
    name: str,
    found: dict[str, Any],
    runs: list[tuple[str, int]],
    one_run: Callable[[str, int], dict[str, Any]],
    report: Report,
    shown: str = "frechet",
) -> Iterator[dict[str, Any]]:
    """Make the runs (row, seed) that results/NAME.json lacks; yield found after each.

    If it lacks none, all are made anew. Processes that measure the same at once share
    the runs: each is made by the one that claims it first. found then has the others'
    too, and must be written before the next is asked for.

    one_run(row, seed) -> its scores, among them the one to be shown.
    """
    old = None if unfinished(name, len(runs)) else _stored(name)

    def place(run: dict[str, Any]) -> int:
        return runs.index((run["row"], run["seed"]))

    def so_far() -> tuple[list[dict[str, Any]], int]:
        now = _stored(name)
        if now is None or now == old:
            return [], 0
        kept = [run for run in now["runs"] if (run["row"], run["seed"]) in runs]
        return kept, now["seconds"]

    for row, seed in runs:
        with claimed(name, f"{row}, {seed}") as mine:
            done = {(run["row"], run["seed"]) for run in so_far()[0]}
            if not mine or (row, seed) in done:
                continue
            start = time.perf_counter()
            run = {"row": row, "seed": seed, **one_run(row, seed)}
            with alone(name):
                others, seconds = so_far()
                found["seconds"] = seconds + round(time.perf_counter() - start)
                found["runs"] = sorted([*others, run], key=place)
                yield found
        report(f"{row}, seed {seed}: {shown} {run[shown]:.2f}")


@contextmanager
def run_folder(name: str, row: str, seed: int) -> Iterator[Path]:
    """Give a folder from which a training resumes; remove it when all went well."""
    folder = cache_folder() / name / f"{row}, {seed}"
    yield folder
    shutil.rmtree(folder)


@contextmanager
def claimed(name: str, run: str) -> Iterator[bool]:
    """Say whether this process may make the run; no other may until it is left."""
    lock = _lock(name, run)
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
    """Keep other processes from changing what NAME has found, while one does."""
    return _lock(name, "found")


def _stored(name: str) -> dict[str, Any] | None:
    try:
        return result(name)
    except ValueError:
        return None


def _lock(name: str, what: str) -> FileLock:
    path = cache_folder() / name / f"{what}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)
