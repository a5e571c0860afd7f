"""The generated page of the library's reference: `{api}`."""

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from types import ModuleType

from docutils import nodes
from pages import Book
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import diffusion_lib

LEFT_OUT = ("__main__", "commands", "measurements")  # the command line, and its own


class Api(SphinxDirective):
    """`{api}`: every public function and class, module by module."""

    def run(self) -> list[nodes.Node]:
        """Return a section for each module that has something public."""
        source = f"{Book(Path(self.env.srcdir)).repository}/blob/main/"
        return [section(m, source) for m in modules() if list(public(m))]


def modules() -> Iterator[ModuleType]:
    """The library's modules, in alphabetical order."""
    for found in walk_packages(diffusion_lib.__path__, "diffusion_lib."):
        if not set(found.name.split(".")) & set(LEFT_OUT):
            yield import_module(found.name)


def public(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Names and objects that a module defines for others, in reading order."""
    for name, value in vars(module).items():
        kind = inspect.isclass(value) or inspect.isfunction(value)
        own = getattr(value, "__module__", "") == module.__name__
        if kind and own and not name.startswith("_"):
            yield name, value


def section(module: ModuleType, source: str) -> nodes.section:
    """What a module is for, and its functions and classes."""
    path = "/".join(module.__name__.split("."))
    ending = "/__init__.py" if hasattr(module, "__path__") else ".py"
    title = module.__name__.removeprefix("diffusion_lib.")
    found = nodes.section("", nodes.title("", breakable(title)), ids=[f"api-{title}"])
    found += paragraphs(module.__doc__ or "")
    link = nodes.reference("", "source", refuri=source + path + ending)
    found += nodes.paragraph("", "", link)
    items = nodes.definition_list()
    for name, value in public(module):
        items += item(name, value, title)
    found += items
    return found


def item(name: str, value: object, module: str) -> nodes.definition_list_item:
    """One function or class: its signature, and what it says of itself."""
    top = getattr(diffusion_lib, name, None) is value
    shown = f"dl.{name}" if top else name
    term = nodes.term("", "", nodes.literal("", shown + signature(value)))
    term["ids"] = [f"api-{module}-{name}"]
    told = nodes.definition("", *paragraphs(inspect.getdoc(value) or ""))
    if inspect.isclass(value):
        methods = nodes.definition_list()
        for method, function in vars(value).items():
            if inspect.isfunction(function) and not method.startswith("_"):
                text = nodes.literal("", f".{method}{signature(function)}")
                about = paragraphs(inspect.getdoc(function) or "")
                both = nodes.term("", "", text), nodes.definition("", *about)
                methods += nodes.definition_list_item("", *both)
        told += [methods] if methods.children else []
    return nodes.definition_list_item("", term, told)


def signature(value: object) -> str:
    """Parameters and defaults, without types: shapes and units are told below."""
    signed = inspect.signature(value)
    plain = [
        p.replace(annotation=inspect.Parameter.empty)
        for p in signed.parameters.values()
        if p.name != "self"
    ]
    text = str(signed.replace(parameters=plain, return_annotation=signed.empty))
    return re.sub(r"<\w+ (\w+)[^>]*>", r"\1", text)  # a function as a default


def paragraphs(text: str) -> list[nodes.Node]:
    """Paragraphs of a docstring; what is indented is set as it stands."""
    blocks = [block for block in text.split("\n\n") if block.strip()]
    return [
        nodes.literal_block(block, block)
        if all(line.startswith("    ") for line in block.splitlines())
        else nodes.paragraph("", "", *inline(" ".join(block.split())))
        for block in blocks
    ]


def breakable(name: str) -> str:
    """A dotted name that a phone may break after a dot or an underscore."""
    return re.sub(r"([._])", "\\1\u200b", name)


def inline(text: str) -> Iterator[nodes.Node]:
    """Text with what stands between backticks as code."""
    for k, part in enumerate(re.split(r"`+(?::\w+:`)?([^`]+)`+", text)):
        yield nodes.literal("", part) if k % 2 else nodes.Text(part)


def register(app: Sphinx) -> None:
    """Make `{api}` known."""
    app.add_directive("api", Api)
