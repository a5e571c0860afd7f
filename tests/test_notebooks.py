"""Notebooks: plain Markdown, in step with their pages, the same each time."""

import json
import re
import shutil

import nbformat
import pytest
from ledger_pages import METADATA_KEY
from notebooks import Page, code_hash, orphans
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
