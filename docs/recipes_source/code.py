"""Code and tests as they stand in the files: nothing on the pages is copied by hand."""

import ast
import re
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "training"
Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


@dataclass(frozen=True)
class Code:
    """A definition: its file (from the project's root), first and last line there, and its text, docstring short."""

    file: str
    first: int
    last: int
    text: str

    @property
    def shortened(self) -> bool:
        """Whether lines of the docstring are left out."""
        return len(self.text.splitlines()) < self.last - self.first + 1


@dataclass(frozen=True)
class Test:
    """A test function: its file (from the project's root) and its name."""

    file: str
    name: str

    @property
    def words(self) -> str:
        """The fact in the name, without number."""
        return re.sub(r"^test_((and_)?(checks?|mistakes?)_\d+(_and_\d+)?_)*", "", self.name).replace("_", " ")


def code(reference: str) -> Code:
    """The definition that "path/of/file.py:Class.method" names.

    Raises:
        LookupError: no such file or definition.
    """
    file, _, name = reference.partition(":")
    text = _text(ROOT / file)
    found: ast.AST = ast.parse(text)
    for part in name.split("."):
        found = _child(found, part, reference)
    assert isinstance(found, Definition)
    decorators = getattr(found, "decorator_list", [])
    first, last = min([found.lineno, *(d.lineno for d in decorators)]), found.end_lineno or found.lineno
    lines = text.splitlines()
    kept = _shortened(found, lines) if isinstance(found, ast.FunctionDef | ast.ClassDef) else lines[first - 1 : last]
    return Code(file, first, last, textwrap.dedent("\n".join(kept)).rstrip())


def _child(parent: ast.AST, name: str, reference: str) -> Definition:
    for node in getattr(parent, "body", []):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Assign | ast.AnnAssign) and any(getattr(t, "id", None) == name for t in targets):
            return node
    raise LookupError(f"{reference}: there is no {name!r}")


def _shortened(node: ast.FunctionDef | ast.ClassDef, lines: list[str]) -> list[str]:
    """The definition's lines, of its docstring the first paragraph only."""
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    whole = lines[first - 1 : node.end_lineno]
    head = node.body[0]
    if not (isinstance(head, ast.Expr) and isinstance(head.value, ast.Constant) and isinstance(head.value.value, str)):
        return whole
    start, stop = head.lineno - first, (head.end_lineno or head.lineno) - first + 1
    document = whole[start:stop]
    blank = next((i for i, line in enumerate(document) if not line.strip()), None)
    if blank is None:
        return whole
    paragraph = document[:blank]
    paragraph[-1] += '"""'
    return [*whole[:start], *paragraph, *whole[stop:]]


@cache
def _text(path: Path) -> str:
    if not path.exists():
        raise LookupError(f"{path} does not exist")
    return path.read_text("utf-8")


@cache
def tests() -> dict[str, list[Test]]:
    """Every test of tests/training and the loader's tests: file name -> its tests in order."""
    found: dict[str, list[Test]] = {}
    for path in sorted([*TESTS.glob("test_*.py"), *(ROOT / "tests" / "usdata").glob("test_*.py")]):
        nodes = [node for node in ast.parse(_text(path)).body if isinstance(node, ast.FunctionDef)]
        where = str(path.relative_to(ROOT))
        found[path.name] = [Test(where, n.name) for n in nodes if n.name.startswith("test_")]
    return found


def numbered(kind: str, files: tuple[str, ...]) -> dict[int, list[Test]]:
    """Tests of `files` whose names begin with "test_check_<n>" or "test_mistake_<n>", by number.

    Args:
        kind: "check" or "mistake". "test_mistakes_4_and_8_..." counts for both.
    """
    found: dict[int, list[Test]] = {}
    for file in files:
        for test in tests()[file]:
            head = re.match(r"test_((?:(?:and_)?(?:checks?|mistakes?)_\d+(?:_and_\d+)?_)+)", test.name)
            for match in re.findall(rf"{kind}s?_(\d+)(?:_and_(\d+))?_", head[1] if head else ""):
                for number in match:
                    if number:
                        found.setdefault(int(number), []).append(test)
    return found


def named(reference: str) -> Test:
    """The test that "file.py:name" names.

    Raises:
        LookupError: there is none.
    """
    file, _, name = reference.partition(":")
    for test in tests().get(file, []):
        if test.name == name:
            return test
    raise LookupError(f"no test {reference}")
