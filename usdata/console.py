"""What the verbs print: tables for people, one JSON object per line for machines."""

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a label could move the cursor; line ends and tabs may stay


def print_rows(rows: Iterable[Mapping[str, Any]], as_json: bool, title: str | None = None) -> None:
    """Rows of equal keys to stdout: a table, or with `as_json` one object per line (NaN becomes null)."""
    rows = list(rows)
    if as_json:
        for row in rows:
            sys.stdout.write(json.dumps(_plain(row), default=str, allow_nan=False) + "\n")
        return
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in rows[0] if rows else []:
        numeric = all(isinstance(row[name], int | float) or row[name] is None for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*[_shown(value) for value in row.values()])
    out = Console(width=None if sys.stdout.isatty() else 200, emoji=False)
    out.print(table if rows else "(no rows)", markup=False)


def say(*lines: str) -> None:
    """Lines for a person to stderr, so that stdout stays a clean result."""
    console = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
    for line in lines:
        console.print(line, markup=False)


def _plain(value: Any) -> Any:
    """`value` without the numbers that JSON does not know, at any depth."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
