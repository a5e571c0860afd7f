"""The book's Sphinx extension: cache key, kernels that count, generated pages.

- The execution cache is keyed by the library, its checkpoints and the results too,
  so that a figure is drawn anew when what it shows has changed.
- Kernels count network calls and FLOPs (costs.py); what they find lies beside the
  cache, so that pages taken from the cache keep their figures.
- `{equation-ledger}` and `{cost-ledger}` become tables of what the last build found
  (ledger_pages.py); an equation that states something and has no check is a warning.
- `{api}` becomes the reference of the library (api_page.py).
"""

import hashlib
import os
import shutil
from pathlib import Path

import api_page
import ledger_pages
from pages import Book
from sphinx.application import Sphinx
from sphinx.config import Config

KEYED = ("diffusion_lib/**/*.py", "diffusion_lib/checkpoints/*", "results/*.json")


def source_key(root: Path) -> str:
    """Hash what a page's figures depend on besides its own code."""
    digest = hashlib.sha256()
    paths = {p for pattern in KEYED for p in root.glob(pattern) if p.is_file()}
    for path in sorted(paths | {root / "tools" / "costs.py"}):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def configure(app: Sphinx, config: Config) -> None:
    """Point the cache, the kernels and the published address to their places."""
    root = Path(app.srcdir)
    cache = root / "_build" / "cache" / source_key(root)
    config.nb_execution_cache_path = str(cache)
    config.ogp_site_url = Book(root).site + "/"
    startup = root / "_build" / "ipython" / "profile_default" / "startup"
    for folder in (cache, startup):
        folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(root / "tools" / "costs.py", startup)
    os.environ["IPYTHONDIR"] = str(startup.parents[1])
    os.environ["DIFFUSION_BOOK"] = "1"


def count_for(app: Sphinx, docname: str, source: list[str]) -> None:
    """Tell the kernel that runs this page where to leave its costs."""
    os.environ["DIFFUSION_COURSE_COSTS"] = str(ledger_pages.costs_file(app, docname))


def setup(app: Sphinx) -> dict[str, object]:
    """Register with Sphinx."""
    app.connect("config-inited", configure, priority=100)
    app.connect("source-read", count_for)
    ledger_pages.register(app)
    api_page.register(app)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
