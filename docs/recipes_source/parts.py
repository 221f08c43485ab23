"""The form of a recipe's page: words and formulas are written by hand, code and tests are named and looked up."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Section:
    """An equation of the paper and the code that computes it.

    Attributes:
        title: heading, with the paper's number of the equation where it has one.
        formulas: LaTeX without `$$`. No backslash before punctuation: Markdown would eat it.
        text: Markdown between formula and code.
        code: "path/of/file.py:qualified.name" each, in reading order.
    """

    title: str
    formulas: tuple[str, ...]
    text: str
    code: tuple[str, ...]


class Setting(NamedTuple):
    """A hyper-parameter: what the paper says, and the key (or a property) of the run's config that holds ours."""

    what: str
    paper: str
    key: str


class Fact(NamedTuple):
    """A numbered check or mistake of a paper, and the tests that hold it beside those named after it."""

    words: str
    also: tuple[str, ...] = ()
    missing: str = ""  # why there is nothing to test, in place of a test


@dataclass(frozen=True)
class Page:
    """One recipe's page.

    Attributes:
        name, title, paper: as registered; for people; citation.
        summary: five lines.
        sections: in reading order; the first is the whole step.
        misprints: (where, printed, read as).
        settings: rows of the table of hyper-parameters.
        numbers: Markdown, published results a user may compare with.
        cost: (part, parameters, GFLOP per image).
        cost_note: how the cost is counted.
        files: test files of this recipe alone, below tests/training.
        checks, mistakes: by number.
    """

    name: str
    title: str
    paper: str
    summary: tuple[str, ...]
    sections: tuple[Section, ...]
    misprints: tuple[tuple[str, str, str], ...]
    settings: tuple[Setting, ...]
    numbers: str
    cost: tuple[tuple[str, str, str], ...]
    cost_note: str
    files: tuple[str, ...]
    checks: Mapping[int, Fact]
    mistakes: Mapping[int, Fact]
