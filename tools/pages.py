"""What the book's sources say of themselves: order, numbers, labels, address.

Everything else in `tools` asks here, so that a notebook, the built page and the
tests number the same equation alike.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
EQUATION = re.compile(r"^\$\$[ \t]*\((?P<label>[\w-]+)\)[ \t]*$", re.M)
FIGURE = re.compile(
    r"^ +figure:\n(?: +(?!name:).*\n)*? +name: *(?P<label>\S+)"
    r"|\{figure\}.*\n(?::(?!name:).*\n)*:name: *(?P<static>\S+)",
    re.M,
)
EXERCISE = re.compile(
    r"^[`:]{3,}\{exercise(?:-start)?\} *(?P<title>.*)\n:label: *(?P<label>\S+)", re.M
)
SECTION = re.compile(r"^\((?P<label>[\w-]+)\)=\n+#+ +(?P<title>.+)$", re.M)
KINDS = {"equation": EQUATION, "figure": FIGURE, "exercise": EXERCISE}


@dataclass(frozen=True)
class Label:
    """Where a label stands: its kind, its number as printed, its page and title."""

    kind: str
    number: str
    page: str
    title: str = ""


class Book:
    """The sources under `root/book`, in the order of `_toc.yml`."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self.folder = root / "book"

    @cached_property
    def config(self) -> dict:
        """`_config.yml` as a dict."""
        return yaml.safe_load((self.root / "_config.yml").read_text(encoding="utf8"))

    @cached_property
    def repository(self) -> str:
        """The repository's address, as `_config.yml` has it."""
        return self.config["repository"]["url"]

    @cached_property
    def site(self) -> str:
        """Where the built book is published: the Pages address of the repository."""
        owner, name = self.repository.split("/")[-2:]
        return f"https://{owner.lower()}.github.io/{name}"

    @cached_property
    def chapters(self) -> dict[str, int | None]:
        """Page name -> chapter number (None where unnumbered), in reading order."""
        toc = yaml.safe_load((self.root / "_toc.yml").read_text(encoding="utf8"))
        pages: dict[str, int | None] = {Path(toc["root"]).name: None}
        number = 0
        for part in toc["parts"]:
            for chapter in part["chapters"]:
                number += bool(part.get("numbered"))
                name = Path(chapter["file"]).name
                pages[name] = number if part.get("numbered") else None
        return pages

    def text(self, page: str) -> str:
        """The source of a page."""
        return (self.folder / f"{page}.md").read_text(encoding="utf8")

    @cached_property
    def notebooks(self) -> list[str]:
        """Pages with code, in reading order (then any that `_toc.yml` forgot)."""
        found = {p.stem for p in self.folder.glob("*.md")}
        order = [p for p in self.chapters if p in found] + sorted(
            found - {*self.chapters}
        )
        return [p for p in order if self.text(p).startswith("---\njupytext:")]

    @cached_property
    def labels(self) -> dict[str, Label]:
        """Label -> where it stands and the number it is printed with."""
        labels: dict[str, Label] = {}
        unnumbered = dict.fromkeys(KINDS, 0)  # pages outside the numbered parts share
        for page, chapter in self.chapters.items():
            if not (self.folder / f"{page}.md").exists():
                continue
            text = self.text(page)
            for kind, pattern in KINDS.items():
                for n, found in enumerate(pattern.finditer(text), 1):
                    if chapter is None:
                        n = unnumbered[kind] = unnumbered[kind] + 1
                    group = found.groupdict()
                    label = group["label"] or group.get("static")
                    number = str(n) if chapter is None else f"{chapter}.{n}"
                    labels[label] = Label(kind, number, page, group.get("title") or "")
            for found in SECTION.finditer(text):
                labels[found["label"]] = Label("section", "", page, found["title"])
        return labels

    @cached_property
    def budgets(self) -> dict[str, float]:
        """Page name -> seconds it may take to run on 2 CPU cores."""
        path = self.folder / "budgets.yml"
        return yaml.safe_load(path.read_text(encoding="utf8"))
