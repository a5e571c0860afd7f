"""Give the repository another address: `python tools/address.py https://...`.

It stands in `_config.yml`; the pages' first cells, the citation, the README and the
notebooks repeat it, and are rewritten here.
"""

import re
import sys
from pathlib import Path

import notebooks
from pages import ROOT, Book

ADDRESS = re.compile(r"https://[\w.-]+/[\w.-]+/[\w.-]+")


def carriers(root: Path) -> list[Path]:
    """The files that repeat the address."""
    fixed = [root / name for name in ("_config.yml", "CITATION.cff", "README.md")]
    return [*fixed, *sorted((root / "book").glob("*.md"))]


def move(root: Path, old: str, new: str) -> list[Path]:
    """Put the new address (and its Pages address) for the old one in every file."""
    pairs = [(old, new), *zip(spellings(old), spellings(new), strict=True)]
    changed = []
    for path in carriers(root):
        before = after = path.read_text(encoding="utf8")
        for a, b in pairs:
            after = re.sub(re.escape(a) + r"(?![\w-])", b, after)
        if after != before:
            path.write_text(after, encoding="utf8")
            changed.append(path)
    return changed


def spellings(address: str) -> list[str]:
    """Where the book is published, and Colab's path of the repository."""
    owner, name = address.split("/")[-2:]
    return [f"https://{owner.lower()}.github.io/{name}", f"/github/{owner}/{name}"]


def main(arguments: list[str]) -> None:
    """Run from the command line."""
    if len(arguments) != 1 or not ADDRESS.fullmatch(arguments[0]):
        sys.exit("give an address like https://github.com/owner/name")
    for path in move(ROOT, Book().repository, arguments[0]):
        print("rewritten:", path.relative_to(ROOT))
    notebooks.main([])


if __name__ == "__main__":
    main(sys.argv[1:])
