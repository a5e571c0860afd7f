"""The repository's frame: one address, one list of dependencies, a first cell."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import address
import jupytext
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from pages import ROOT, Book
from setuptools import find_packages

BOOK = Book()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
COLAB_CELL = f"""\
# On Colab only: fetch the course library (torch, numpy, ... are already there).
import importlib.util
import subprocess
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("diffusion_lib") is None:
    url = "git+{BOOK.repository}"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", url]
    subprocess.run(pip, check=True)"""
ON_COLAB = "import google.colab\n"
REFUSE = "import subprocess\ndef refuse(*a, **k): raise SystemExit('installed')\n"


def test_conda_environment_only_points_to_pyproject():
    env = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [d for d in env["dependencies"] if isinstance(d, str)]
    (pip,) = next(d["pip"] for d in env["dependencies"] if isinstance(d, dict))
    extras = set(re.fullmatch(r"-e \.\[(.*)\]", pip)[1].split(","))
    assert "pip" in conda and extras <= set(PROJECT["project"]["optional-dependencies"])
    (python,) = [d.split("=")[1] for d in conda if d.startswith("python=")]
    assert python in SpecifierSet(PROJECT["project"]["requires-python"])


def test_constraints_pin_every_dependency_and_no_cuda():
    text = (ROOT / "constraints.txt").read_text()
    pinned = {Requirement(x).name for x in text.splitlines() if not x.startswith("#")}
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"]]
    wanted += [r for extra in ("book", "test", "bench") for r in extras[extra]]
    assert {Requirement(r).name for r in wanted} <= pinned
    assert not re.search(r"^(nvidia|cuda|triton)|\+", text, re.M)


def test_every_package_of_the_library_is_installed():
    listed = set(PROJECT["tool"]["setuptools"]["packages"]) - {"diffusion_lib.results"}
    assert listed == set(find_packages(str(ROOT), include=["diffusion_lib*"]))


def test_the_address_stands_in_one_place():
    """What repeats it, repeats it rightly; nothing else names a repository of ours."""
    owner = BOOK.repository.removesuffix("/" + BOOK.repository.split("/")[-1])
    for path in address.carriers(ROOT):
        found = set(re.findall(rf"{re.escape(owner)}/[\w-]+", path.read_text()))
        assert found <= {BOOK.repository}, path.name
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["repository-code"] == BOOK.repository
    code = [*ROOT.glob("diffusion_lib/**/*.py"), *ROOT.glob("tools/*.py")]
    named = [p.name for p in code if BOOK.repository in p.read_text()]
    assert named == []


def test_one_command_moves_the_address(tmp_path):
    (tmp_path / "book").mkdir()
    old, new = "https://github.com/a/course", "https://github.com/B/other"
    text = (
        f"{old} {old}.git {old}-more https://a.github.io/course/ x/github/a/course/blob"
    )
    for path in (*address.carriers(tmp_path), tmp_path / "book" / "one.md"):
        path.write_text(text)
    assert len(address.move(tmp_path, old, new)) == 4
    assert (tmp_path / "book" / "one.md").read_text() == (
        f"{new} {new}.git {old}-more https://b.github.io/other/ x/github/B/other/blob"
    )


@pytest.mark.parametrize("page", BOOK.notebooks)
def test_every_page_begins_with_the_same_cell(page):
    notebook = jupytext.reads(BOOK.text(page), fmt="md:myst")
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.source == COLAB_CELL
    assert first.metadata["tags"] == ["remove-cell", "colab-setup"]


def python(folder: Path, code: str, interpreter: Path | str = sys.executable):
    """Run code in a fresh interpreter; returns the finished process."""
    env = {**os.environ, "PYTHONPATH": ""}
    command = [str(interpreter), "-c", code]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def pretend_colab(folder: Path) -> None:
    """A package `google.colab` for interpreters that start in the folder."""
    (folder / "google" / "colab").mkdir(parents=True)
    (folder / "google" / "colab" / "__init__.py").touch()


def colab_like(folder: Path) -> Path:
    """An environment with everything of this one except the library itself."""
    venv = [sys.executable, "-m", "venv", "--without-pip", folder / "env"]
    subprocess.run(venv, check=True)
    (here,) = [Path(p) for p in sys.path if p.endswith("site-packages")][:1]
    (there,) = (folder / "env" / "lib").glob("python*/site-packages")
    for path in here.iterdir():
        ours = "diffusion_course" in path.name or "diffusion_lib" in path.name
        if not ours and path.suffix != ".pth":
            (there / path.name).symlink_to(path)
    return folder / "env" / "bin" / "python"


@pytest.mark.slow
def test_the_first_cell_installs_the_library_on_colab(tmp_path):
    """From this repository's HEAD instead of the network."""
    pretend_colab(tmp_path)
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True)
    here = f"git+file://{ROOT}@{head.strip()}"
    cell = COLAB_CELL.replace(f"git+{BOOK.repository}", here)
    after = "\nimport diffusion_lib, torch; print(diffusion_lib.__file__)"
    done = python(tmp_path, ON_COLAB + cell + after, colab_like(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert str(tmp_path) in done.stdout


@pytest.mark.parametrize("before", ["", ON_COLAB])
def test_the_first_cell_installs_nothing_elsewhere_or_twice(tmp_path, before):
    """Not without Colab, and not on Colab once the library is there."""
    cell = COLAB_CELL.replace("subprocess.run(", "refuse(")
    assert cell != COLAB_CELL
    pretend_colab(tmp_path)
    done = python(tmp_path, before + REFUSE + cell)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["ci", "gpu", "publish"])
def test_workflows_are_valid_and_use_the_two_commands(name):
    text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text()
    assert yaml.safe_load(text)["jobs"]
    used = {"ci": ".ci/run", "gpu": "pytest --nbval book/", "publish": "make book"}
    assert used[name] in text


def test_ci_runs_the_two_commands_of_the_readme():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [x for x in lines if not x.startswith(("#", "set"))] == [
        "make book",
        "make test",
    ]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
