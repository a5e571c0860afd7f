"""MyST Markdown -> the plain Markdown that Colab, Jupyter and GitHub show well.

Directives become bold titles and quotes, roles become links and numbers. What is
not known here raises ValueError, so nothing of MyST is left over in a notebook.
"""

import ast
import re
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import yaml
from pages import EQUATION, Book
from references import Bibliography

FENCE = re.compile(
    r"^(?P<indent> *)(?P<mark>`{3,}|:{3,})\{(?P<name>[\w:-]+)\}(?P<arg>.*)"
)
CODE = re.compile(r"^ *(?P<mark>`{3,}|~{3,})")
ROLE = re.compile(r"\{(?P<name>[a-z]+(?::[a-z]*)?)\}`(?P<body>[^`]+)`")
TITLED = re.compile(r"(?P<title>.*?)\s*<(?P<target>[^>]+)>$", re.S)
WORDS = {"figure": "Fig.", "exercise": "Exercise"}
QUOTED = {"note", "tip", "warning", "important", "seealso", "hint", "caution"}


class Plain:
    """Rewrites the Markdown of one page; remembers which works it cites."""

    def __init__(self, book: Book, page: str, glued: dict[str, str]) -> None:
        self.book, self.page, self.glued = book, page, glued
        self.bibliography = Bibliography(book.folder / "references.bib")
        self.missing: list[str] = []  # glued names without a value

    def __call__(self, text: str) -> str:
        """Rewrite a Markdown cell."""
        return re.sub(
            r"\n{3,}", "\n\n", "\n".join(self.lines(text.split("\n")))
        ).strip()

    def lines(self, source: list[str]) -> list[str]:
        """Rewrite lines: directives first, then whatever stands between them."""
        out: list[str] = []
        rest = list(source)
        while rest:
            line = rest.pop(0)
            if fence := FENCE.match(line):
                indent, body = fence["indent"], take_block(rest, fence["mark"])
                new = self.directive(fence["name"], fence["arg"].strip(), body)
                out += ["", *((indent + x if x else x) for x in new), ""]
            elif code := CODE.match(line):
                out += [line, *take_block(rest, code["mark"]), code["mark"]]
            elif not re.match(r"^(\([\w-]+\)=|% )", line):
                out.append(self.inline(line))
        return out

    def inline(self, line: str) -> str:
        """Rewrite equation numbers, links and roles in one line."""
        if tag := EQUATION.match(line):
            return rf"\tag{{{self.book.labels[tag['label']].number}}}" + "\n$$"
        line = re.sub(r"(?<=\]\()([^)\s:]+)(?=\))", lambda m: self.link(m[1]), line)
        return ROLE.sub(lambda m: self.role(m["name"], m["body"]), line)

    def link(self, target: str) -> str:
        """Make a relative link of the book work from a notebook on its own."""
        page, _, anchor = target.partition("#")
        label = self.book.labels.get(anchor if not page else target)
        if label is not None:
            heading = f"#{label.title.strip().replace(' ', '-')}"
            there = "" if label.page == self.page else self.link(f"{label.page}.md")
            return there + (heading if label.kind == "section" else "")
        if page.endswith(".md"):
            stem = Path(page).stem
            if stem in self.book.notebooks:
                return f"{stem}.ipynb"
            return f"{self.book.site}/book/{stem}.html"
        path = f"book/{page}" if not page.startswith("../") else page[3:]
        if not (self.book.root / path).exists():
            raise ValueError(f"{self.page}: the link to {target!r} leads nowhere")
        kind = "raw" if path.startswith("book/_static") else "blob"
        return f"{self.book.repository}/{kind}/main/{path}"

    def role(self, name: str, body: str) -> str:
        """Rewrite one role."""
        named = TITLED.match(body)
        title, target = (named["title"], named["target"]) if named else ("", body)
        if name.startswith("cite"):
            return self.bibliography.cite(target, name.partition(":")[2] or "p")
        if name.startswith("glue"):
            return self.value(body)
        if name in {"eq", "numref", "ref", "doc"}:
            return self.reference(name, title, target)
        if name == "math":
            return f"${body}$"
        if name in {"term", "abbr"}:
            return title or target
        if name.startswith("py:") or name in {"func", "class"}:
            return f"`{title or target.lstrip('~').split('.')[-1]}`"
        raise ValueError(f"{self.page}: no plain form known for the role {{{name}}}")

    def reference(self, role: str, title: str, target: str) -> str:
        """Rewrite a reference to an equation, a figure, an exercise or a page."""
        if role == "doc":
            heading = re.search(r"^# (.+)$", self.book.text(target), re.M)
            return f"[{title or heading[1]}]({self.link(target + '.md')})"
        if target not in self.book.labels:
            raise ValueError(f"{self.page}: nothing carries the label {target}")
        label = self.book.labels[target]
        if role == "ref":
            text = title or label.title
        elif role == "eq":
            text = f"({label.number})"
        else:
            form = title or f"{WORDS[label.kind]} %s"
            text = form.replace("{number}", "%s").replace("%s", label.number)
        if label.page == self.page:
            return text
        return f"[{text}]({self.link(label.page + '.md')})"

    def value(self, body: str) -> str:
        """Put a glued value in place; notes the name where there is none yet."""
        name, _, form = body.partition(":")
        if name not in self.glued:
            self.missing.append(name)
            return "(value)"
        value = self.glued[name].strip("'\"")
        return format(float(value), form) if form else value

    def directive(self, name: str, arg: str, block: list[str]) -> list[str]:
        """Rewrite one directive with its options and body."""
        options, body = split_options(block)
        form = FORMS.get(name) or FORMS.get(name.partition(":")[0])
        if form is None and name in QUOTED:
            return quote(self, name.capitalize(), body if not arg else [arg, *body])
        if form is None:
            raise ValueError(f"{self.page}: no plain form known for {{{name}}}")
        return form(self, arg, options, body)


Form = Callable[[Plain, str, dict, list[str]], list[str]]


def take_block(rest: list[str], mark: str) -> list[str]:
    """Take the lines up to the fence that closes `mark`, and that fence, off `rest`."""
    closing = re.compile(rf" *{re.escape(mark[0])}{{{len(mark)},}} *$")
    body = list(takewhile(lambda line: not closing.match(line), rest))
    if len(body) == len(rest):
        raise ValueError(f"a block opened with {mark} is never closed: {body[:2]}")
    del rest[: len(body) + 1]
    return body


def split_options(block: list[str]) -> tuple[dict, list[str]]:
    """Take the `:key: value` lines (or a YAML block) off the top of a directive."""
    if block and block[0].strip() == "---":
        end = block.index("---", 1)
        return yaml.safe_load("\n".join(block[1:end])), block[end + 1 :]
    top = list(takewhile(lambda line: re.match(r"^ *:[\w-]+:", line), block))
    pairs = (line.strip()[1:].split(":", 1) for line in top)
    return {key: value.strip() for key, value in pairs}, block[len(top) :]


def quote(plain: Plain, title: str, body: list[str]) -> list[str]:
    """A box becomes a quotation under a bold title."""
    inner = plain("\n".join(body)).split("\n")
    return [
        f"> **{plain.inline(title)}**",
        ">",
        *(f"> {line}".rstrip() for line in inner),
    ]


def _box(plain: Plain, arg: str, options: dict, body: list[str]) -> list[str]:
    return quote(plain, arg or "Note", body)


def _open(plain: Plain, arg: str, options: dict, body: list[str]) -> list[str]:
    """Tabs, cards and folds lie open, under their title."""
    return [*([f"**{plain.inline(arg)}**", ""] if arg else []), *plain.lines(body)]


def _exercise(plain: Plain, arg: str, options: dict, body: list[str]) -> list[str]:
    number = plain.book.labels[options["label"]].number
    title = f": {plain.inline(arg)}" if arg else ""
    return [f"### Exercise {number}{title}", "", *plain.lines(body)]


def _solution(plain: Plain, arg: str, options: dict, body: list[str]) -> list[str]:
    number = plain.book.labels[arg].number
    return [f"#### Solution to exercise {number}", "", *plain.lines(body)]


def _nothing(plain: Plain, arg: str, options: dict, body: list[str]) -> list[str]:
    return []


def _figure(plain: Plain, arg: str, options: dict, body: list[str]) -> list[str]:
    picture = f"![{options.get('alt', '')}]({plain.link(arg)})"
    return [picture, "", caption(plain, options.get("name"), "\n".join(body).strip())]


def _include(plain: Plain, arg: str, options: dict, body: list[str]) -> list[str]:
    source = (plain.book.folder / arg).read_text(encoding="utf8")
    for wanted in options.get("pyobject", "").split("."):
        nodes = [
            n for n in ast.walk(ast.parse(source)) if getattr(n, "name", 0) == wanted
        ]
        if nodes:
            first, last = nodes[0].lineno, nodes[0].end_lineno
            source = "\n".join(source.split("\n")[first - 1 : last])
    return ["```python", *source.rstrip().split("\n"), "```"]


def caption(plain: Plain, label: str | None, text: str) -> str:
    """The line under a figure: its number and what to see."""
    number = f"**Fig. {plain.book.labels[label].number}.** " if label else ""
    return number + plain.inline(text)


FORMS: dict[str, Form] = {
    "admonition": _box,
    "margin": _box,
    "sidebar": _box,
    "dropdown": _open,
    "tab-set": _open,
    "tab-item": _open,
    "prf": _box,
    "exercise": _exercise,
    "exercise-start": _exercise,
    "exercise-end": _nothing,
    "solution-start": _solution,
    "solution-end": _nothing,
    "figure": _figure,
    "literalinclude": _include,
}
