"""Notebooks: plain Markdown, in step with their pages, the same each time."""

import json
import re
import shutil

import nbformat
import pytest
from ledger_pages import METADATA_KEY
from notebooks import Page, code_hash, hand_out, main, orphans
from pages import ROOT, Book
from plain_markdown import Plain

from diffusion_lib import ledger

BOOK = Book()
LEFT_OVER = re.compile(
    r"\{[a-z]+(?::[a-z]*)?\}`|^[`:]{3,}\s*\{|^:::|^\([\w-]+\)=", re.M
)
FRONT = """---
jupytext:
  text_representation: {extension: .md, format_name: myst}
kernelspec: {display_name: Python 3, language: python, name: python3}
---
"""
BODY = """
(ch-one)=
# One

Then {cite:t}`ho2020ddpm` and {cite}`vincent2011,song2021ddim`,
{doc}`two`, {ref}`ch-two`.

$$
a = b
$$ (eq-a)

See {eq}`eq-a`, {numref}`fig-a`, {numref}`ex-a`, [two](two.md), [here](ch-one),
[there](#ch-two), {glue:text}`n`.

:::{margin} Aside
Not $x$.
:::

````{tab-set}
```{tab-item} First
{eq}`eq-a`
```
````

```{code-cell} ipython3
:tags: [check-output]

from myst_nb import glue
glue("n", "3.14", display=False)
print("three")
```

```{code-cell} ipython3
---
mystnb:
  figure:
    name: fig-a
    caption: Seen in {eq}`eq-a`.
---
1
```

```{exercise-start} Try
:label: ex-a
```
Do.

```{exercise-end}
```

```{solution-start} ex-a
:class: dropdown
```
Done.

```{solution-end}
```
"""


@pytest.fixture
def small_book(tmp_path):
    folder = tmp_path / "book"
    folder.mkdir()
    shutil.copy(ROOT / "book" / "references.bib", folder)
    shutil.copy(ROOT / "_config.yml", tmp_path)
    parts = [
        {"numbered": True, "chapters": [{"file": "book/one"}, {"file": "book/two"}]}
    ]
    toc = {"root": "book/intro", "parts": parts}
    (tmp_path / "_toc.yml").write_text(json.dumps(toc))
    (folder / "one.md").write_text(FRONT + BODY)
    (folder / "two.md").write_text(FRONT + "\n(ch-two)=\n# Two\n")
    return Book(tmp_path)


def markdown(notebook):
    return "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")


def test_myst_becomes_plain_markdown(small_book):
    text = markdown(Page(small_book, "one").notebook)
    assert not LEFT_OVER.search(text)
    for expected in (
        "Ho et al. (2020) and (Vincent, 2011; Song et al., 2021),",
        "[Two](two.ipynb), [Two](two.ipynb)",
        "a = b\n\\tag{1.1}\n$$",
        "See (1.1), Fig. 1.1, Exercise 1.1, [two](two.ipynb)",
        "[here](#One),\n[there](two.ipynb#Two)",
        "> **Aside**\n>\n> Not $x$.",
        "**First**\n\n(1.1)",
        "**Fig. 1.1.** Seen in (1.1).",
        "### Exercise 1.1: Try",
        "#### Solution to exercise 1.1",
        "- Ho, Jain, Abbeel (2020). [Denoising Diffusion Probabilistic Models]",
    ):
        assert expected in text


@pytest.mark.parametrize(
    "text",
    ["{unknown}`x`", "```{unknown}\n```", "{eq}`eq-none`", "[x](no-such-label)"],
)
def test_what_has_no_plain_form_is_refused(small_book, text):
    with pytest.raises(ValueError, match="one"):
        Plain(small_book, "one", {})(text)


def test_an_unclosed_block_is_refused(small_book):
    with pytest.raises(ValueError, match="never closed"):
        Plain(small_book, "one", {})("```{note}\ntext")


@pytest.mark.slow
def test_a_page_goes_out_of_step_and_back(small_book):
    """Write, run, edit the text, edit the code: each is noticed, and only that."""
    page = Page(small_book, "one")
    page.path.write_text(page.text())
    found = " ".join(page.problems())
    assert "stored output" in found and "'n'" in found and "since it was run" in found
    page.execute()
    page.path.write_text(page.text())
    again = Page(small_book, "one")
    assert again.problems() == [] and again.text() == page.text()
    assert "3.14" in markdown(again.notebook)

    source = small_book.folder / "one.md"
    source.write_text(FRONT + BODY.replace("Done.", "Done so."))
    edited = Page(small_book, "one")
    assert edited.problems() == ["one.ipynb is out of step with its page"]
    assert not edited.must_run()
    source.write_text(FRONT + BODY.replace('"three"', '"four"'))
    changed = Page(small_book, "one")
    assert changed.must_run() and any("stored output" in x for x in changed.problems())
    warns = 'import warnings; warnings.warn("not so")'
    source.write_text(FRONT + BODY.replace('print("three")', warns))
    with pytest.raises(SystemExit, match="(?s)one warns, mend it.*not so"):
        Page(small_book, "one").execute()


def solved(text):
    """The code of a page's solutions, cell by cell, cut out by hand."""
    parts = [part.split("{solution-end}")[0] for part in text.split("{solution-start}")]
    return [
        c
        for part in parts[1:]
        for c in re.findall(r"^```\{code-cell.*?^```", part, re.M | re.S)
    ]


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_a_blank_notebook_keeps_all_but_solution_and_outputs(small_book):
    page = Page(small_book, "one")
    full, before = markdown(page.notebook), page.text()
    blank = nbformat.reads(page.blank(), as_version=4)
    text = markdown(blank)
    assert "Done." in full and "Done." not in text and "solution" not in text.lower()
    assert full.replace("#### Solution to exercise 1.1\n\nDone.\n\n", "") == text
    assert all(not c.outputs and c.execution_count is None for c in code(blank))
    assert page.text() == before


def test_an_unusual_fence_hides_no_solution(small_book):
    source = small_book.folder / "one.md"
    source.write_text(
        FRONT + BODY.replace("```{solution-end}\n```", "````{solution-end}\n````")
    )
    with pytest.raises(ValueError, match="not fenced"):
        Page(small_book, "one").blank()


def test_what_is_handed_out_has_every_exercise_and_no_solution(tmp_path, capsys):
    main(["--blank", str(tmp_path / "new")])
    assert f"{len(BOOK.notebooks)} notebooks" in capsys.readouterr().out
    assert {p.stem for p in (tmp_path / "new").iterdir()} == set(BOOK.notebooks)
    for name in BOOK.notebooks:
        blank = nbformat.read(tmp_path / "new" / f"{name}.ipynb", as_version=4)
        text, cells = markdown(blank), [cell.source for cell in code(blank)]
        assert "Solution to" not in text and "{solution" not in text
        exercises = [
            x for x in BOOK.labels.values() if (x.page, x.kind) == (name, "exercise")
        ]
        assert text.count("### Exercise ") == len(exercises)
        assert all(f"### Exercise {x.number}: " in text for x in exercises)
        solutions = solved(BOOK.text(name))
        assert len(solutions) >= len(exercises)
        full = code(nbformat.read(BOOK.folder / f"{name}.ipynb", as_version=4))
        assert len(cells) == len(full) - len(solutions)
        for block in solutions:
            assert block.split("\n", 1)[1].removesuffix("\n```").strip() not in cells
        assert not any(cell.outputs for cell in code(blank))


def test_nothing_is_handed_out_over_other_files(tmp_path):
    (tmp_path / "notes.txt").touch()
    for folder, why in (
        (BOOK.folder, "in the book"),
        (BOOK.folder / "new", "in the book"),
        (tmp_path, "not an empty folder"),
        (tmp_path / "notes.txt", "not an empty folder"),
    ):
        with pytest.raises(SystemExit, match=why):
            hand_out(BOOK, folder)
    assert not (BOOK.folder / "new").exists()
    with pytest.raises(SystemExit):
        main(["--blank", str(tmp_path / "new"), "--check"])


def test_a_notebook_without_its_page_is_an_orphan(small_book):
    (small_book.folder / "gone.ipynb").write_text("{}")
    assert orphans(small_book) == ["gone.ipynb"]


def test_code_hash_sees_code_and_not_text(small_book):
    page = Page(small_book, "one")
    before = code_hash(page.notebook)
    page.notebook.cells[0].source += "more words"
    assert code_hash(page.notebook) == before
    next(c for c in page.notebook.cells if c.cell_type == "code").source += "\n1"
    assert code_hash(page.notebook) != before


def test_the_extension_reads_what_the_ledger_writes():
    assert METADATA_KEY == ledger.METADATA_KEY


@pytest.mark.parametrize("page", BOOK.notebooks)
def test_no_myst_is_left_over(page):
    notebook = nbformat.read(BOOK.folder / f"{page}.ipynb", as_version=4)
    assert not LEFT_OVER.search(markdown(notebook))
    assert [cell.id for cell in notebook.cells] == [
        f"{page}-{i:03d}" for i in range(len(notebook.cells))
    ]
