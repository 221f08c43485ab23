"""What a recipe's config says of itself: which choices are ours, why, and what else they could be."""

import ast
import inspect
import re
import textwrap
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel

Limits = {"gt": "> {}", "ge": "≥ {}", "lt": "< {}", "le": "≤ {}", "multiple_of": "a multiple of {}"}


class Choice(NamedTuple):
    """A key that a paper leaves open: its default, what else it takes, and the comment that stands beside it."""

    key: str
    default: str
    others: str
    why: str


def open_choices(model: type[BaseModel], prefix: str = "", everything: bool = False) -> list[Choice]:
    """Fields marked `ours`, by their own comment, by the comment above their block, or by the model's docstring.

    Args:
        model: a recipe's config; models inside are read too.
        everything: all fields, whatever the comments say.
    """
    found: list[Choice] = []
    comments = _comments(model)
    for name, field in model.model_fields.items():
        own, block = comments.get(name, ("", ""))
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            inner = type(default)
            found += open_choices(inner, f"{prefix}{name}.", bool(re.search(r"\bours\b", inner.__doc__ or "")))
            continue
        if everything or _ours(own or block):
            others = alternatives(field.annotation, default, field.metadata)
            found.append(Choice(prefix + name, value(default), others, own or block or "ours"))
    return found


def _ours(comment: str) -> bool:
    return re.search(r"\bours\b", comment) is not None


def _comments(model: type[BaseModel]) -> dict[str, tuple[str, str]]:
    """Field -> (the comment behind or right above it, the comment that heads its block).

    A block is what empty lines divide; a comment that heads it counts for each field without one of its own.
    """
    source = textwrap.dedent(inspect.getsource(model))
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    lines, found = source.splitlines(), {}
    for node in body.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        behind = lines[(node.end_lineno or node.lineno) - 1][node.end_col_offset or 0 :].partition("#")[2].strip()
        start = node.lineno - 1
        while lines[start - 1].strip():
            start -= 1
        head = start
        while lines[head].strip().startswith("#"):
            head += 1
        above = node.lineno - 1
        while above > head and lines[above - 1].strip().startswith("#"):
            above -= 1
        own, block = (
            " ".join(x.strip("# ") for x in part) for part in (lines[above : node.lineno - 1], lines[start:head])
        )
        found[node.target.id] = (behind or own, block)
    return found


def alternatives(annotation: Any, default: Any, metadata: list[Any]) -> str:
    """What else a field takes, in words: the other words of a Literal, on or off, the range of a number."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    words: list[str] = []
    for part in parts:
        if get_origin(part) is Literal:
            words += [f"`{other}`" for other in get_args(part) if other != default]
        elif part is bool:
            words.append(f"`{str(not default).lower()}`")
        elif part is NoneType:
            words += [] if default is None else ["`null`"]
        elif part in (int, float):
            limits = [Limits[name].format(f"{limit:g}") for name, limit in _limits(metadata)]
            words.append(" and ".join(limits) or "any number")
        elif get_origin(part) is tuple:
            words.append(f"{len(get_args(part))} numbers" if Ellipsis not in get_args(part) else "a list")
        elif part is str:
            words.append("another name")
    return ", ".join(words)


def _limits(metadata: list[Any]) -> list[tuple[str, Any]]:
    return [(name, limit) for m in metadata for name in Limits if (limit := getattr(m, name, None)) is not None]


def value(content: Any) -> str:
    """A value as `--set` takes it, short: `0.5`, `true`, `null`, `(0.1 … 1.1)`."""
    if isinstance(content, bool | NoneType):
        return {True: "`true`", False: "`false`", None: "`null`"}[content]
    if isinstance(content, float):
        return f"`{content:.6g}`"
    if isinstance(content, list | tuple):
        shown = [f"{x:.4g}" if isinstance(x, float) else str(x) for x in content]
        return f"`{shown[0]} … {shown[-1]}` ({len(shown)})" if len(shown) > 5 else f"`{', '.join(shown)}`"
    return f"`{content}`"
