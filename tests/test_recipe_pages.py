"""The pages of the recipes: no equation without its code, no check or mistake of a paper without its test."""

import importlib
import re
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

PROJECT = Path(__file__).resolve().parents[1]
NUMBERS = {"d2mae": (15, 14), "usfm": (14, 10), "tusa": (17, 8), "arl": (18, 9)}  # checks and mistakes
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)]+)\)")


@pytest.fixture(scope="module")
def source() -> Any:
    """docs/recipes_source and its modules, found as docs/make_pages.py finds them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROJECT / "docs"))
        for name in ("code", "config"):
            importlib.import_module(f"recipes_source.{name}")
        yield importlib.import_module("recipes_source")


@pytest.mark.parametrize("name", NUMBERS)
def test_every_check_of_a_paper_is_a_test_of_its_number(source, name):
    page = source.PAGES[name]
    assert list(page.checks) == list(range(1, NUMBERS[name][0] + 1))
    assert sorted(source.code.numbered("check", page.files)) == list(page.checks)


@pytest.mark.parametrize("name", NUMBERS)
def test_every_mistake_has_a_test_that_would_catch_it(source, name):
    page = source.PAGES[name]
    assert list(page.mistakes) == list(range(1, NUMBERS[name][1] + 1))
    held = source.code.numbered("mistake", page.files)
    assert held.keys() <= page.mistakes.keys()
    for number, fact in page.mistakes.items():
        named = [source.code.named(test) for test in fact.also]  # raises if one is gone
        assert held.get(number) or named or fact.missing, f"{name}: nothing holds mistake {number}, {fact.words}"


@pytest.mark.parametrize("name", NUMBERS)
def test_each_equation_stands_beside_code_that_is_there(source, name):
    for section in source.PAGES[name].sections:
        assert section.code, section.title
        for reference in section.code:
            found = source.code.code(reference)
            lines = (PROJECT / found.file).read_text("utf-8").splitlines()[found.first - 1 : found.last]
            assert lines and found.text.splitlines()[0].strip() == lines[0].strip(), reference
            assert set(found.text.replace('"""', "").split()) <= set("\n".join(lines).replace('"""', "").split())
            compile(found.text, reference, "exec")  # shortening the docstring left whole code


@pytest.mark.parametrize("name", NUMBERS)
def test_formulas_are_latex_that_markdown_leaves_alone(source, name):
    from matplotlib.mathtext import MathTextParser

    formulas = [formula for section in source.PAGES[name].sections for formula in section.formulas]
    assert len(formulas) >= 8
    for formula in formulas:
        assert not re.search(r"\\[^A-Za-z]", formula), f"Markdown would eat a backslash of {formula}"
        MathTextParser("path").parse(f"${formula}$")  # raises where it is no LaTeX


@pytest.mark.parametrize("page", ["recipes.md", *(f"recipes/{name}.md" for name in NUMBERS)])
def test_links_lead_to_files_and_lines_that_exist(page):
    path = PROJECT / "docs" / page
    text = path.read_text("utf-8")
    links = re.findall(r"\]\(([^)#\s]+)(?:#L(\d+)(?:-L(\d+))?)?\)", text)
    assert len(links) > 3
    for file, first, last in links:
        lines = (path.parent / file).read_bytes().splitlines()  # raises if it is not there
        assert int(last or first or 0) <= len(lines), f"{file}#L{last or first}"
    for picture in PICTURE.findall(text):
        assert (path.parent / picture).read_bytes().startswith(b"\x89PNG"), picture


def test_a_definition_is_found_in_its_class_and_its_docstring_is_cut_to_a_paragraph(source):
    found = source.code.code("training/models/positions.py:LevelEmbedding.forward")
    assert found.text.startswith("def forward(self, levels: Tensor) -> Tensor:\n")
    long = source.code.code("training/losses_frequency.py:focal_frequency").text
    assert '"""Squared error of the spectrum, each frequency weighted by how wrong it is."""' in long
    assert "Args:" not in long
    with pytest.raises(LookupError, match="there is no 'backward'"):
        source.code.code("training/models/positions.py:LevelEmbedding.backward")
    with pytest.raises(LookupError, match=r"positons\.py does not exist"):
        source.code.code("training/models/positons.py:LevelEmbedding")


class Inner(BaseModel):
    """A part whose every number is ours."""

    area: tuple[float, float] = (0.5, 1.0)  # share of the image


class Outer(BaseModel):
    """A config as the recipes write it."""

    steps: int = 3  # the paper's
    kind: Literal["a", "b", "c"] = "b"  # ours: b is faster

    # a block; ours (MAE's)
    width: int = Field(default=512, gt=0, multiple_of=4)
    named: bool = False  # the paper's word
    # ours: a comment above, because it is long
    share: float | None = Field(default=None, ge=0, lt=1)

    inner: Inner = Inner()


def test_open_choices_are_the_fields_whose_comment_says_ours(source):
    found = {choice.key: choice[1:] for choice in source.config.open_choices(Outer)}
    assert found == {
        "kind": ("`b`", "`a`, `c`", "ours: b is faster"),
        "width": ("`512`", "> 0 and a multiple of 4", "a block; ours (MAE's)"),
        "share": ("`null`", "≥ 0 and < 1", "ours: a comment above, because it is long"),
        "inner.area": ("`0.5, 1`", "2 numbers", "share of the image"),
    }


@pytest.mark.parametrize("name", NUMBERS)
def test_every_key_marked_ours_is_on_the_page(name):
    module = "arl_config" if name == "arl" else f"recipes/{name}"
    text = (PROJECT / "training" / f"{module}.py").read_text("utf-8")
    keys = re.findall(r"^    (\w+): .*#.*\bours\b", text, re.M)
    page = (PROJECT / "docs" / "recipes" / f"{name}.md").read_text("utf-8")
    assert len(keys) > 5
    assert not [key for key in keys if f"| `{key}` |" not in page]
