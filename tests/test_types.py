"""The library's annotations are true of its code."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_mypy_finds_no_error_in_the_library(tmp_path):
    command = [sys.executable, "-m", "mypy", "--cache-dir", tmp_path, "diffusion_lib"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
