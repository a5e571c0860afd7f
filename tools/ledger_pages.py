"""The two generated pages: the equation ledger and the cost ledger."""

import json
from functools import cache
from pathlib import Path

import nbformat
from docutils import nodes
from jupyter_cache import get_cache
from myst_nb.core.read import create_nb_reader
from pages import Book, Label
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

LOGGER = logging.getLogger(__name__)
METADATA_KEY = "diffusion_course_ledger"
SPHINX_ID = {"equation": "equation-{}", "figure": "{}", "exercise": "{}"}
SPHINX_KIND = {"equation": "displaymath"}


class ledger(nodes.General, nodes.Element):  # noqa: N801 - docutils' way of naming
    """Stands in the page until all pages have been read."""


class EquationLedger(SphinxDirective):
    """`{equation-ledger}`: every numbered equation and the check that holds it."""

    def run(self) -> list[nodes.Node]:
        """Leave a placeholder."""
        return [ledger(rows=equation_table)]


class CostLedger(SphinxDirective):
    """`{cost-ledger}`: seconds, network calls and FLOPs of each page."""

    def run(self) -> list[nodes.Node]:
        """Leave a placeholder."""
        return [ledger(rows=cost_table)]


def costs_file(app: Sphinx, docname: str) -> Path:
    """Where the kernel of a page leaves its counts: beside the cached outputs."""
    name = docname.replace("/", "-")
    return Path(app.config.nb_execution_cache_path) / f"costs-{name}.json"


def executed(app: Sphinx, docname: str) -> nbformat.NotebookNode | None:
    """The page with its outputs, as the execution cache has it."""
    path, env = app.env.doc2path(docname), app.env
    text = Path(path).read_text(encoding="utf8")
    reader = create_nb_reader(path, env.myst_config, env.mystnb_config, text)
    if reader is None:  # a page without code
        return None
    store = get_cache(app.config.nb_execution_cache_path)
    record = store.match_cache_notebook(reader.read(text))
    return store.get_cache_bundle(record.pk).nb


def checks(app: Sphinx, docname: str) -> dict[str, dict]:
    """Label -> what `verify` measured on this page."""
    notebook = executed(app, docname)
    cells = notebook.cells if notebook else []
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    found = [o.get("metadata", {}).get(METADATA_KEY) for o in outputs]
    return {record["label"]: dict(record) for record in found if record}


@cache
def entries(app: Sphinx) -> list[tuple[str, Label, dict | None]]:
    """(label, where it stands, what its check measured) of all numbered equations."""
    rows, known = [], {}
    for label, stands in Book(Path(app.srcdir)).labels.items():
        if stands.kind == "equation":
            if stands.page not in known:
                known[stands.page] = checks(app, f"book/{stands.page}")
            rows.append((label, stands, known[stands.page].get(label)))
    return rows


def equation_table(app: Sphinx, here: str) -> nodes.Node:
    """One row for each numbered equation, in reading order."""
    rows = [["Equation", "Kind", "Tolerance", "Measured", "Compared"]]
    for label, stands, record in entries(app):
        docname = f"book/{stands.page}"
        uri = f"{app.builder.get_relative_uri(here, docname)}#equation-{label}"
        text = f"({stands.number}) {stands.page}"
        rows.append([link(text, uri), *row_of(label, record)])
    return table(rows)


def row_of(label: str, record: dict | None) -> list[str]:
    """Kind, tolerance, measured difference and route of one equation."""
    if label.startswith("def-"):
        return ["definition", "", "", ""]
    if record is None:
        return ["missing", "", "", ""]
    absolute, relative = record["atol"], record["rtol"]
    parts = [f"{absolute:.0e}"] if absolute or not relative else []
    parts += [f"{relative:.0e} of the value"] if relative else []
    return ["checked", " + ".join(parts), f"{record['error']:.1e}", record["route"]]


def cost_table(app: Sphinx, here: str) -> nodes.Node:
    """One row for each page with code, and the sum."""
    book = Book(Path(app.srcdir))
    rows = [["Page", "Budget, s", "Seconds", "Network calls", "GFLOP", ""]]
    total = [0.0, 0.0, 0, 0.0]
    for page in book.notebooks:
        cost = cost_of(app, book, page)
        over = "over budget" if cost[1] > cost[0] else ""
        if over:
            LOGGER.info("%s took %.0f s, its budget is %g s", page, cost[1], cost[0])
        uri = app.builder.get_relative_uri(here, f"book/{page}")
        rows.append([link(page, uri), *printed(cost), over])
        total = [a + b for a, b in zip(total, cost, strict=True)]
    return table([*rows, ["all pages", *printed(total), ""]])


def cost_of(app: Sphinx, book: Book, page: str) -> list[float]:
    """Budget, seconds, network calls and GFLOP of a page's last run."""
    docname = f"book/{page}"
    path = costs_file(app, docname)
    counts = json.loads(path.read_text()) if path.exists() else {}
    run = app.env.nb_metadata.get(docname, {}).get("exec_data") or {}
    flops = counts.get("flops", 0) / 1e9
    return [book.budgets[page], run.get("runtime") or 0, counts.get("calls", 0), flops]


def printed(cost: list[float]) -> list[str]:
    """Numbers as the cost ledger shows them."""
    budget, seconds, calls, gflop = cost
    return [f"{budget:g}", f"{seconds:.1f}", f"{calls:,}", f"{gflop:,.0f}"]


def link(text: str, uri: str) -> nodes.Node:
    """A link to another page of the book."""
    return nodes.reference("", text, internal=True, refuri=uri)


def table(rows: list[list]) -> nodes.table:
    """A table of strings and links; the first row is its head."""
    group = nodes.tgroup(cols=len(rows[0]))
    group += [nodes.colspec(colwidth=1) for _ in rows[0]]
    lines = [nodes.row("", *[entry(cell) for cell in row]) for row in rows]
    group += [nodes.thead("", lines[0]), nodes.tbody("", *lines[1:])]
    return nodes.table("", group, classes=["ledger"])


def entry(cell: str | nodes.Node) -> nodes.entry:
    """One cell of a table."""
    inside = nodes.Text(cell) if isinstance(cell, str) else cell
    return nodes.entry("", nodes.paragraph("", "", inside))


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the tables where their placeholders stand."""
    for place in list(doctree.findall(ledger)):
        place.replace_self(place["rows"](app, docname))


def rewrite(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """The generated pages are written anew each time, whichever page was read."""
    return [f"book/{page}" for page in ("equation-ledger", "cost-ledger")]


def bare_figures(notebook: nbformat.NotebookNode | None) -> list[str]:
    """The first lines of cells that drew a picture without name, caption and alt."""
    bare = []
    for cell in notebook.cells if notebook else []:
        settings = cell.metadata.get("mystnb", {})
        figure, image = settings.get("figure", {}), settings.get("image", {})
        named = figure.get("name") and figure.get("caption") and image.get("alt")
        drawn = any("image/png" in o.get("data", {}) for o in cell.get("outputs", []))
        if drawn and not named:
            bare.append(cell.source.split("\n")[0])
    return bare


def hold(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of unchecked equations, bare figures, and numbers that do not agree."""
    for page in Book(Path(app.srcdir)).notebooks:
        for line in bare_figures(executed(app, f"book/{page}")):
            note = "a figure without name, caption or alt text: %s"
            LOGGER.warning(note, line, location=f"book/{page}")
    for label, stands, record in entries(app):
        if label.startswith("eq-") and record is None:
            where = f"book/{stands.page}"
            LOGGER.warning("no cell verifies the equation %s", label, location=where)
    for label, stands in Book(Path(app.srcdir)).labels.items():
        docname = f"book/{stands.page}"
        kind = SPHINX_KIND.get(stands.kind, stands.kind)
        numbers = env.toc_fignumbers.get(docname, {}).get(kind, {})
        found = numbers.get(SPHINX_ID.get(stands.kind, "").format(label), ())
        number = ".".join(map(str, found))
        if number != stands.number:
            note = "%s is numbered %r in the book but %r in its notebook"
            LOGGER.warning(note, label, number, stands.number, location=docname)


def register(app: Sphinx) -> None:
    """Register directives and events with Sphinx."""
    app.add_node(ledger)
    app.add_directive("equation-ledger", EquationLedger)
    app.add_directive("cost-ledger", CostLedger)
    app.connect("doctree-resolved", fill)
    app.connect("env-updated", rewrite)
    app.connect("env-check-consistency", hold)
