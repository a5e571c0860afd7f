"""Imports point down only: the library can be read from the bottom to the top."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import diffusion_lib

ROOT = Path(diffusion_lib.__file__).parent
LAYERS = [
    "grids",
    "schedules networks data plotting analytic ledger grammar captions tokens",
    "denoiser process",
    "losses samplers guidance inverse likelihood convert baselines",
    "checkpoints",
    "metrics diagnostics",
    "training_state lora",
    "training",
    "recipes classifiers cascade control text_recipes concept distillation latent",
    "measurements",
    "commands",
    "__main__",
]
RANK = {name: i for i, layer in enumerate(LAYERS) for name in layer.split()}
FILES = [path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"]


def part(path):
    """The module of the table that a file belongs to: networks/unet.py is networks."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(path):
    """Absolute dotted names of the library's modules that a file imports to run."""
    package = ["diffusion_lib", *path.relative_to(ROOT).parent.parts]
    tree = ast.parse(path.read_text())
    for_types = [n for n in ast.walk(tree) if isinstance(n, ast.If)]
    for_types = [n for n in for_types if ast.unparse(n.test) == "TYPE_CHECKING"]
    hints = {id(child) for n in for_types for child in ast.walk(n)}
    for node in ast.walk(tree):
        if id(node) in hints:
            continue
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")]
            names = [".".join(filter(None, [*base, a.name])) for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (n for n in names if n.startswith("diffusion_lib"))


def edges():
    for path in FILES:
        for name in imports(path):
            target = name.split(".")[1] if "." in name else ""
            if target != part(path):
                yield part(path), target


def test_every_module_has_its_place():
    assert {part(path) for path in FILES} <= set(RANK)


@pytest.mark.parametrize("below, above", [("schedules", "denoiser"), ("data", "train")])
def test_the_table_is_read_from_the_ground(below, above):
    assert RANK[below] < RANK.get(above, len(LAYERS))


def test_imports_point_down_only():
    wrong = [f"{a} imports {b}" for a, b in edges() if RANK.get(b, 99) > RANK[a]]
    assert not wrong


def test_there_is_no_circle():
    """Neighbours in a layer may import each other one way only."""
    left = {name: {b for a, b in edges() if a == name} for name in RANK}
    while ground := {name for name, needs in left.items() if not needs}:
        left = {n: needs - ground for n, needs in left.items() if n not in ground}
    assert not left


def test_imports_are_found():
    """The reading itself: a relative and an absolute one."""
    found = set(edges())
    assert ("samplers", "process") in found and ("recipes", "training") in found


def test_public_names_exist_and_are_listed_once():
    names = diffusion_lib.__all__
    assert len(names) == len(set(names))
    assert [n for n in names if not hasattr(diffusion_lib, n)] == []


def test_importing_the_library_spares_what_takes_seconds():
    """Every page begins with this import; torchvision alone would double its time."""
    code = "import diffusion_lib, sys; print('torch' in sys.modules, *sys.modules)"
    run = [sys.executable, "-c", code]
    words = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    there, *modules = words.split()
    assert there == "True" and "torchvision" not in modules
