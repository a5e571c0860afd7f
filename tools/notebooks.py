"""Write book/*.md (the source) as book/*.ipynb (for Colab, Jupyter and nbval).

    python tools/notebooks.py                 rewrite the notebooks from the pages
    python tools/notebooks.py --execute       run the pages whose code changed, too
    python tools/notebooks.py --execute NAME  run the named pages
    python tools/notebooks.py --check         change nothing; fail if out of step
    python tools/notebooks.py --blank FOLDER  notebooks to hand out, without solutions

One way only, with the same cell ids each time. Outputs are stored only in cells
tagged `check-output`, which `pytest --nbval` then compares; glued values are kept
in the notebook's metadata, so that rewriting a page does not need to run it.
"""

import argparse
import copy
import hashlib
import re
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from pages import Book
from plain_markdown import Plain, caption

KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SHOWN = ("text/plain", "text/html", "application/papermill.record/text/plain")
SOLUTION = re.compile(
    r"^(?P<mark>[`:]{3,})\{solution-start\}.*?^(?P=mark)\{solution-end\}\n(?P=mark) *$",
    re.M | re.S,
)


def compared(cell: NotebookNode) -> bool:
    """Is this a cell whose output nbval compares?"""
    return "check-output" in cell.metadata.get("tags", [])


def code_hash(notebook: NotebookNode) -> str:
    """A short hash of the code cells: what decides if a page must be run again."""
    code = [(c.source, compared(c)) for c in notebook.cells if c.cell_type == "code"]
    return hashlib.sha256(repr(code).encode()).hexdigest()[:12]


class Page:
    """One page of the book and the notebook beside it."""

    def __init__(self, book: Book, name: str) -> None:
        self.book, self.name = book, name
        self.path = book.folder / f"{name}.ipynb"
        self.source = jupytext.reads(book.text(name), fmt="md:myst")
        stored = self.path.exists()
        self.old = nbformat.read(self.path, as_version=4) if stored else None
        self.kept = self.old.metadata.get("course", {}) if self.old else {}
        self.notebook = self.build()

    def build(self) -> NotebookNode:
        """Make the notebook: plain Markdown, kept outputs, numbered cell ids."""
        self.plain = Plain(self.book, self.name, self.kept.get("glue", {}))
        cells = [new for cell in self.source.cells for new in self.convert(cell)]
        if works := self.plain.bibliography.listing():
            cells.append(nbformat.v4.new_markdown_cell(f"## References\n\n{works}"))
        for i, cell in enumerate(cells):
            cell["id"] = f"{self.name[:50]}-{i:03d}"
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={**KERNEL})
        notebook.metadata["course"] = self.kept
        nbformat.validate(notebook)
        return notebook

    def convert(self, cell: NotebookNode) -> list[NotebookNode]:
        """Convert one cell; a figure's caption becomes a cell below it."""
        if cell.cell_type != "code":
            text = self.plain(cell.source)
            return [nbformat.v4.new_markdown_cell(text)] if text else []
        new = nbformat.v4.new_code_cell(cell.source)
        if tags := cell.metadata.get("tags"):
            new.metadata["tags"] = tags
        if compared(new):
            new.outputs, new.execution_count = self.stored_output(new.source)
        figure = cell.metadata.get("mystnb", {}).get("figure")
        if not figure:
            return [new]
        below = caption(self.plain, figure["name"], figure["caption"])
        return [new, nbformat.v4.new_markdown_cell(below)]

    def stored_output(self, source: str) -> tuple[list, int | None]:
        """The output stored for the same code, if there is one."""
        for cell in self.old.cells if self.old else []:
            if cell.cell_type == "code" and cell.source == source and cell.outputs:
                return cell.outputs, cell.execution_count
        return [], None

    def blank(self) -> str:
        """The notebook to hand out: without solutions and stored outputs."""
        text = SOLUTION.sub("", self.book.text(self.name))
        if "{solution-" in text:
            raise ValueError(f"{self.name}: a solution is not fenced as the others are")
        page = copy.copy(self)
        page.source, page.old = jupytext.reads(text, fmt="md:myst"), None
        notebook = page.build()
        del notebook.metadata["course"]
        return nbformat.writes(notebook) + "\n"

    def must_run(self) -> bool:
        """Has the code changed since the outputs and values were stored?"""
        return self.kept.get("code") != code_hash(self.notebook)

    def execute(self) -> None:
        """Run the page; store the compared outputs and the glued values."""
        run = copy.deepcopy(self.notebook)
        where = {"metadata": {"path": str(self.book.folder)}}
        NotebookClient(run, timeout=600, record_timing=False, resources=where).execute()
        glued: dict[str, str] = {}
        for cell, done in zip(self.notebook.cells, run.cells, strict=True):
            for output in done.get("outputs", []):
                glued |= glued_value(output)
                if output.get("name") == "stderr":
                    sys.exit(f"{self.name} warns, mend it: {output.text}")
            if cell.cell_type == "code" and compared(cell):
                cell.outputs = [stripped(output) for output in done.outputs]
                cell.execution_count = 1
        self.kept = {"code": code_hash(self.notebook), "glue": glued}
        self.old = self.notebook
        self.notebook = self.build()

    def problems(self) -> list[str]:
        """What keeps this notebook from being in step with its page."""
        text = self.path.read_text(encoding="utf8") if self.path.exists() else ""
        bad = [] if text == self.text() else ["is out of step with its page"]
        if self.must_run():
            bad.append("has code that was changed since it was run")
        if any(compared(c) and not c.outputs for c in self.notebook.cells):
            bad.append("has a `check-output` cell without a stored output")
        bad += [f"lacks a value for the glued {name!r}" for name in self.plain.missing]
        return [f"{self.name}.ipynb {problem}" for problem in bad]

    def text(self) -> str:
        """The notebook as it is written to disk."""
        return nbformat.writes(self.notebook) + "\n"


def glued_value(output: NotebookNode) -> dict[str, str]:
    """{name: value} of an output made by `glue`, else {}."""
    name = output.get("metadata", {}).get("scrapbook", {}).get("name")
    shown = [v for k, v in output.get("data", {}).items() if k.endswith("text/plain")]
    return {name: re.sub(r"^'(.*)'$", r"\1", shown[0])} if name and shown else {}


def stripped(output: NotebookNode) -> NotebookNode:
    """An output without what differs between runs: pictures, counts, metadata."""
    output = copy.deepcopy(output)
    if "data" in output:
        output.data = {k: v for k, v in output.data.items() if k in SHOWN}
        output.metadata = NotebookNode()
    if "execution_count" in output:
        output.execution_count = 1
    return output


def orphans(book: Book) -> list[str]:
    """Notebooks whose page is gone."""
    known = set(book.notebooks)
    return [p.name for p in sorted(book.folder.glob("*.ipynb")) if p.stem not in known]


def hand_out(book: Book, folder: Path) -> None:
    """Write every notebook without its solutions into a new or empty folder."""
    if folder.resolve().is_relative_to(book.folder.resolve()):
        sys.exit(f"{folder} lies in the book, whose notebooks keep their solutions")
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        sys.exit(f"{folder} exists and is not an empty folder: give a new one")
    folder.mkdir(parents=True, exist_ok=True)
    for name in book.notebooks:
        text = Page(book, name).blank()
        (folder / f"{name}.ipynb").write_text(text, encoding="utf8")
    print(f"{len(book.notebooks)} notebooks without solutions written to {folder}")


def main(arguments: list[str]) -> None:
    """Run from the command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail if out of step")
    parser.add_argument("--execute", nargs="*", metavar="NAME", help="run pages")
    parser.add_argument(
        "--blank", type=Path, metavar="FOLDER", help="write them without solutions"
    )
    options = parser.parse_args(arguments)
    book, problems = Book(), []
    if options.blank and (options.check or options.execute is not None):
        parser.error("--blank neither checks nor runs: give it alone")
    if options.blank:
        return hand_out(book, options.blank)
    for name in book.notebooks:
        page = Page(book, name)
        wanted = options.execute
        if wanted is not None and (name in wanted if wanted else page.must_run()):
            print(f"running {name}", flush=True)
            page.execute()
        if options.check:
            problems += page.problems()
        else:
            page.path.write_text(page.text(), encoding="utf8")
    problems += [f"{name} has no page" for name in orphans(book)]
    if options.check and problems:
        sys.exit("\n".join([*problems, "run: python tools/notebooks.py --execute"]))
    print(f"{len(book.notebooks)} notebooks", "checked" if options.check else "written")


if __name__ == "__main__":
    main(sys.argv[1:])
