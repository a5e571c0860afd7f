"""The library's reference: nothing public is missing, and all of it says something."""

import inspect

import api_page

import diffusion_lib as dl

FOUND = {name: v for m in api_page.modules() for name, v in api_page.public(m)}


def test_every_name_of_the_library_is_on_the_page():
    values = {name: getattr(dl, name) for name in dl.__all__}
    called = {
        name: v
        for name, v in values.items()
        if inspect.isfunction(v) or inspect.isclass(v)
    }
    assert len(called) > 100
    assert {name for name, v in called.items() if FOUND.get(name) is not v} == set()


def test_what_is_public_says_what_it_is():
    assert [name for name, value in FOUND.items() if not inspect.getdoc(value)] == []


def test_a_signature_has_parameters_and_defaults_but_no_types():
    def draw(self, n: int, step=dl.ddim_step, *, scale: float = 1.0) -> float:
        """Draw."""

    assert api_page.signature(draw) == "(n, step=ddim_step, *, scale=1.0)"


def test_code_and_formulas_of_a_docstring_are_set_as_such():
    first, second = api_page.paragraphs("See `train`\nand on.\n\n    x = a + b")
    assert first.astext() == "See train and on."
    assert [node.astext() for node in first.findall(api_page.nodes.literal)] == [
        "train"
    ]
    assert isinstance(second, api_page.nodes.literal_block)
    assert api_page.breakable("a.b_c") == "a.\u200bb_\u200bc"
