"""Every page keeps the promises that its readers count on."""

import re

import jupytext
import pytest
import yaml
from pages import Book
from plain_markdown import Plain

BOOK = Book()
PAGES = BOOK.notebooks
LESSONS = [page for page in PAGES if page != "faq"]  # answers, nothing to practise
NUMBERED = re.compile(r"\(\s*((?:eq|def)-[\w-]+)\s*\)|:label:\s*((?:eq|def)-[\w-]+)")
HEADINGS = ("## Exercises", "## Summary", "## Pitfalls", "## Further reading")


def cells(page, kind="code"):
    notebook = jupytext.reads(BOOK.text(page), fmt="md:myst")
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def prose(page):
    """The page without code cells, as one text."""
    return "\n".join(cell.source for cell in cells(page, "markdown"))


def test_every_page_is_in_the_contents_and_has_a_budget():
    files = {path.stem for path in BOOK.folder.glob("*.md")}
    assert files == set(BOOK.chapters)
    assert set(PAGES) == set(BOOK.budgets)
    assert sum(BOOK.budgets.values()) <= 680


def test_order_lives_in_the_contents_alone():
    names = [p.name for p in BOOK.folder.iterdir() if p.suffix in (".md", ".ipynb")]
    assert [name for name in names if re.search(r"\d", name)] == []


def test_labels_are_unique():
    kinds = r"^\$\$[ \t]*\(([\w-]+)\)|^:label: (\S+)|^ +name: (fig-\S+)|^\(([\w-]+)\)="
    found = re.findall(kinds, "\n".join(map(BOOK.text, PAGES)), re.M)
    labels = ["".join(groups) for groups in found]
    assert {label for label in labels if labels.count(label) > 1} == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_numbered_equation_is_a_definition_or_verified(page):
    text, code = prose(page), "\n".join(cell.source for cell in cells(page))
    equations = [
        k for k, v in BOOK.labels.items() if (v.page, v.kind) == (page, "equation")
    ]
    assert {label[:3] for label in equations} <= {"eq-", "def"}, (
        "label: eq-... or def-..."
    )
    assert not re.search(r"\\begin\{(align|equation|gather)[*}]", text), "use aligned"
    assert "{math}\n" not in text, "write $$ ... $$ (eq-...)"
    verified = set(re.findall(r"""verify\(\s*["']([\w-]+)["']""", code))
    statements = {label for label in equations if label.startswith("eq-")}
    assert statements == verified, (
        "each eq-... needs verify('eq-...', ...), and only it"
    )


@pytest.mark.parametrize("page", LESSONS)
def test_a_page_opens_and_closes_as_all_do(page):
    text = prose(page)
    goals = re.search(
        r"After this chapter you can\n:class: tip\n((?:[-* ] ?.*\n)+)", text
    )
    assert goals and 3 <= len(re.findall(r"^- ", goals[1], re.M)) <= 5
    assert "Before you start" in text and "**You need:**" in text
    seconds = f"{BOOK.budgets[page]:g} seconds to run on 2 CPU cores"
    time = re.search(r"\*\*Time:\*\* about \d+ minutes to read; (.*?)\.", text)
    assert time and time[1] == seconds
    assert [h for h in HEADINGS if f"\n{h}\n" not in f"\n{text}\n"] == []


@pytest.mark.parametrize("page", LESSONS)
def test_exercises_have_hints_and_executed_folded_solutions(page):
    text = BOOK.text(page)
    exercises = re.findall(
        r"\{exercise-start\}[^\n]*\n:label: (\S+)(.*?)\{exercise-end\}", text, re.S
    )
    assert 3 <= len(exercises), "three exercises or more"
    assert len(exercises) == text.count("{exercise-start}"), "{exercise-end} is missing"
    for label, body in exercises:
        assert "{admonition} Hint" in body, f"{label} has no hint"
        solution = re.search(
            rf"\{{solution-start\}} {label}\n:class: dropdown\n(.*?)\{{solution-end\}}",
            text,
            re.S,
        )
        assert solution, f"{label} has no folded solution"
        assert "{code-cell}" in solution[1], f"the solution of {label} runs nothing"
        checked = re.search(rf"""check\(\s*["']{label}["']""", solution[1])
        assert checked, f"the solution of {label} is not checked"


@pytest.mark.parametrize("page", PAGES)
def test_figures_have_names_captions_and_alternative_texts(page):
    assert "<img" not in prose(page)
    assert not re.search(r"!\[\]\(", prose(page)), "a picture without alt text"
    for cell in cells(page):
        settings = cell.metadata.get("mystnb", {})
        figure, image = settings.get("figure", {}), settings.get("image", {})
        if not settings:
            continue
        assert figure.get("name", "").startswith("fig-") and figure.get("caption")
        html = any(
            word in cell.source for word in ("slider(", "animation(", "explore(")
        )
        assert image.get("alt") or html or "HTML(" in cell.source, figure["name"]


@pytest.mark.parametrize("page", PAGES)
def test_cells_are_short_and_run(page):
    long = [cell.source for cell in cells(page) if len(cell.source.splitlines()) > 25]
    assert long == []
    assert "sys.path" not in "\n".join(c.source for c in cells(page)[1:])
    opened = len(re.findall(r"^ *[`:]{3,}\{code-cell\}", BOOK.text(page), re.M))
    assert opened == len(cells(page)), "a cell inside a directive is not executed"


@pytest.mark.parametrize("page", PAGES)
def test_something_of_every_page_is_compared(page):
    assert any("check-output" in c.metadata.get("tags", []) for c in cells(page))


def test_no_page_is_left_unfinished():
    """No placeholder is left on a page."""
    words = re.compile(r"TODO|FIXME|XXX|left as an exercise|it can be shown", re.I)
    assert [page for page in PAGES if words.search(BOOK.text(page))] == []


@pytest.mark.parametrize("page", PAGES)
def test_no_letter_in_brackets_becomes_a_sign(page):
    """Typographic replacements make a copyright sign of the third of (a), (b), ..."""
    words = re.sub(r"\$\$.*?\$\$|\$.*?\$|`+.*?`+", "", prose(page), flags=re.S)
    assert re.findall(r"(?<!\w)\((?:c|r|p|tm)\)", words, re.I) == []


def test_the_introduction_leads_to_every_page():
    links = re.findall(r"\]\(([\w-]+)\.md\)", BOOK.text("intro"))
    assert set(PAGES) - {"intro"} <= set(links)


def test_budgets_are_one_file_of_positive_seconds():
    budgets = yaml.safe_load((BOOK.folder / "budgets.yml").read_text())
    assert all(seconds > 0 for seconds in budgets.values())


def test_every_word_of_the_glossary_is_explained_once_and_leads_somewhere():
    _, block = BOOK.text("glossary").split(":sorted:\n")
    entries = dict(re.findall(r"^(\S.*)\n((?:    .+\n)+)", block, re.M))
    assert len(entries) == len(re.findall(r"^[^\s`]", block, re.M)) > 100
    leads = re.compile(r"\(([\w-]+)\.md\)|See \{term\}")
    assert [word for word, text in entries.items() if not leads.search(text)] == []
    pages = {page for text in entries.values() for page in leads.findall(text)}
    assert set(PAGES) - pages <= {"intro", "folklore", "faq", "bug-lab"}


@pytest.mark.parametrize("page", ["field", "teaching"])
def test_pages_without_code_cite_and_link_to_what_there_is(page):
    text = Plain(BOOK, page, {})(BOOK.text(page))  # refuses unknown labels and works
    assert "{" not in re.sub(r"\$.*?\$", "", text)
    assert set(re.findall(r"\]\(([\w-]+)\.md\)", BOOK.text(page))) <= set(BOOK.chapters)


def test_plans_and_questions_for_teachers_stand_where_they_say():
    text = " ".join(map(BOOK.text, ("teaching", "field"))).replace("\n", " ")
    sections = re.findall(r'\]\(([\w-]+)\.md\),[^"|[.]*"([^"]+)"', text)
    assert len(sections) > 12
    for page, section in sections:
        assert re.search(rf"^##+ {re.escape(section)}$", BOOK.text(page), re.M), section
    asked = re.findall(
        r"^\| \[.*?\]\(([\w-]+)\.md\) \|.*\{eq\}`(.*?)`", BOOK.text("teaching"), re.M
    )
    assert len(asked) > 15
    assert [label for page, label in asked if BOOK.labels[label].page != page] == []
