"""Write constraints.txt: one tested set of versions for python 3.11 to 3.13.

CUDA packages are left out: torch names its own, and they differ between machines.
"""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = """\
# The versions the book was last tested with (python 3.11 to 3.13); used by make alone.
# Written by: make constraints
"""
COMMAND = """uv pip compile --quiet --upgrade --universal --python-version 3.11
    --no-header --no-annotate --extra book --extra test --extra bench pyproject.toml"""


def constraints() -> str:
    """Resolve the newest versions that fit together on every supported python."""
    done = subprocess.run(
        COMMAND.split(), cwd=ROOT, check=True, capture_output=True, text=True
    )
    lines = done.stdout.splitlines(keepends=True)
    return HEAD + "".join(x for x in lines if not re.match("nvidia|cuda|triton", x))


if __name__ == "__main__":
    (ROOT / "constraints.txt").write_text(constraints(), encoding="utf8")
