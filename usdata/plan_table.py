"""Draw plans on paper: what an epoch shows, group by group, for people who choose gamma."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from usdata.sampling import SamplingPlan, effective_number

Row = dict[str, Any]


def print_plans(plans: Sequence[SamplingPlan], by: str) -> None:
    """Plans of the same groups to stdout: one with all its figures, several side by side; at most 80 characters wide.

    Args:
        by: what the groups are.
    """
    width = None if sys.stdout.isatty() else 120
    out = Console(width=width, emoji=False, highlight=False)
    for table in [_one(plans[0], by)] if len(plans) == 1 else _several(plans, by):
        out.print(table, markup=False)


def legend(plans: Sequence[SamplingPlan], by: str) -> list[str]:
    """What the figures mean, in a few lines."""
    first = plans[0]
    number = int((first.counts > 0).sum())
    lines = [
        f"One epoch: {first.draws:,} draws from {int(first.counts.sum()):,} images, P({by}) ~ images^gamma.",
        "draws per image: how often one image comes in an epoch, on average.",
    ]
    if len(plans) > 1:
        return [*lines, f"effective number, of {number}: how many groups of equal share would be as diverse."]
    return [
        lines[0],
        "drawn: by the loader of this seed in its first epoch; all else is expected.",
        lines[1],
        "images seen: the share of the group's images that come at least once.",
        f"Effective number of groups: {first.effective_groups:.2f} of {number}; without balance (gamma 1) "
        f"{effective_number(first.counts / first.counts.sum()):.2f}.",
        "That is how many groups of equal share would be as diverse.",
    ]


def _one(plan: SamplingPlan, by: str) -> Table:
    table = _table(f"gamma {plan.gamma:g}", by)
    columns: dict[str, Callable[[Row], str]] = {
        "% of\nimages": lambda row: _percent(row["share"]),
        "% of\ndraws": lambda row: _percent(row["expected"]),
        "%\ndrawn": lambda row: _percent(row["drawn"]),
        "draws per\nimage": lambda row: _times(row["repeats"]),
        "% images\nseen": lambda row: f"{100 * row['seen']:.1f}",
    }
    for name in columns:
        table.add_column(name, justify="right")
    for row in plan.rows():
        table.add_row(row["group"], f"{row['images']:,}", *(show(row) for show in columns.values()))
    return table


def _several(plans: Sequence[SamplingPlan], by: str) -> list[Table]:
    """A table of the shares, and one of the repeats."""
    shares, repeats = _table("% of draws", by), _table("draws per image", by)
    shares.add_column("% of\nimages", justify="right")
    for plan in plans:
        shares.add_column(f"gamma\n{plan.gamma:g}", justify="right")
        repeats.add_column(f"gamma\n{plan.gamma:g}", justify="right")
    for rows in zip(*(plan.rows() for plan in plans), strict=True):
        head = rows[0]["group"], f"{rows[0]['images']:,}"
        shares.add_row(*head, _percent(rows[0]["share"]), *(_percent(row["expected"]) for row in rows))
        repeats.add_row(*head, *(_times(row["repeats"]) for row in rows))
    shares.add_section()
    counts = plans[0].counts
    numbers = [effective_number(counts / counts.sum()), *(plan.effective_groups for plan in plans)]
    shares.add_row("effective number", "", *(f"{number:.2f}" for number in numbers))
    return [shares, repeats]


def _table(title: str, by: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(by, overflow="fold")
    table.add_column("images", justify="right")
    return table


def _percent(share: float) -> str:
    return "<0.001" if 0 < share < 5e-6 else f"{100 * share:.3f}"


def _times(number: float) -> str:
    return f"{number:,.2f}" if number >= 0.0995 or number == 0 else f"{number:.2g}"
