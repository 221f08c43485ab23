"""docs/recipes.md and docs/recipes/<name>.md: each equation of a paper next to the code that computes it.

Words and formulas are in recipes_source/, one file per recipe; code, settings and tests are looked up where they are.
"""

import os
from collections.abc import Iterable, Mapping, Sequence

from recipes_source import PAGES
from recipes_source.code import ROOT, Test, code, named, numbered
from recipes_source.config import open_choices, value
from recipes_source.parts import Fact, Page, Section

from training.config import resolve, variants
from training.recipes import registry

_INTRO = """# Recipes

`usdata pretrain RECIPE --cohort EXPR --preset micro|small|paper --out DIR`. Every key of a recipe, with its default,
its meaning and the mark `ours` where the paper leaves it open, is in [settings](settings.md); the step with the loss
is in `training/recipes/<recipe>.py`. Weights: `encoder.safetensors` (timm's or MONAI's names), `README.md` the model
card, `usdata embed --encoder DIR --cohort EXPR -o FILE.parquet` the features by sample id.

Each page shows the paper's equations next to the code that computes them, the misprints and how they are read, what
the paper leaves open and what was chosen, and which test holds each check and each known mistake.
"""
_COMMON = """
**None of the published numbers has been reproduced here**: that needs the papers' data and weeks of GPUs. What is
tested is that the code computes what the papers say.

## Collapse

Every `probe_every` steps the log has the effective rank of the features and a kNN score. A rank near 1, or a message
that features collapse, means that all images get the same code: lower the learning rate, look at the terms in
`log.jsonl` (TUSA's contrast then stands still at log(4 B - 1)), and at the pictures of the run.

## Accumulation and ranks

D²MAE's and USFM's losses are means over images, so a batch may be cut as you like. TUSA's contrast and channel usage
and ARL's adaptive λ look across the batch: they see all of it, over ranks and micro-batches (`survey`, one more forward
pass under `accumulate`). So all four give the gradient of the whole batch however it is cut.
"""


def pages() -> dict[str, str]:
    """File name below docs/ -> text: the index and a page per recipe."""
    return {"recipes.md": index(), **{f"recipes/{name}.md": page(PAGES[name]) for name in PAGES}}


def index() -> str:
    """The text of docs/recipes.md."""
    head = ("recipe", "paper", "in a sentence", "parameters", "GFLOP per image and step")
    rows = []
    for one in PAGES.values():
        *_, (_, parameters, cost) = one.cost
        rows.append((f"[{one.title}](recipes/{one.name}.md)", one.paper, one.summary[0], parameters, cost))
    return "\n".join([_INTRO, *_table(head, rows), _COMMON])


def page(one: Page) -> str:
    """The text of docs/recipes/<name>.md."""
    out = [f"# {one.title}\n", f"{one.paper}\n", "\n".join(f"- {line}" for line in one.summary)]
    picture = f"images/recipe-{one.name}.png"
    if (ROOT / "docs" / picture).exists():
        out.append(f"\n![{one.title}: a step in pictures](../{picture})")
    others = ", ".join(f"`{name}`" for name in list(variants(one.name))[1:])
    ablations = f" Its ablations and baselines: `--variant NAME`, one of {others}." if others else ""
    out.append(f"\nStart one: `usdata pretrain {one.name} --cohort EXPR --preset small --out DIR`.{ablations}")
    for section in one.sections:
        out += _section(section)
    if one.misprints:
        out += ["\n## Misprints, and how they are read\n"]
        out += _table(("where", "printed", "read as"), one.misprints)
    out += _choices(one) + _settings(one)
    out += ["\n## Checks: what the paper's arithmetic demands, and the test that holds it\n"]
    out += _facts("check", one, one.checks)
    out += ["\n## Mistakes seen in official code, or likely, and the test that would catch each\n"]
    out += _facts("mistake", one, one.mistakes)
    out += ["\n## Published numbers, to compare with\n", "None of them has been reproduced here.\n", one.numbers]
    out += [
        "\n## Cost\n",
        *_table(("part", "parameters", "GFLOP per image"), one.cost),
        f"\n{one.cost_note} FLOP are computed, not measured.\n",
    ]
    return "\n".join(out)


def _section(section: Section) -> list[str]:
    out = [f"\n## {section.title}\n"]
    for formula in section.formulas:
        out.append(f"$$\n{formula}\n$$\n")
    out += [f"{section.text}\n"] if section.text else []
    for reference in section.code:
        found = code(reference)
        name = reference.partition(":")[2]
        where = f"{found.file}#L{found.first}-L{found.last}"
        cut = ", docstring shortened" if found.shortened else ""
        out.append(f"`{name}` in [{found.file}, lines {found.first} to {found.last}](../../{where}){cut}:\n")
        out.append(f"```python\n{found.text}\n```\n")
    return out


def _choices(one: Page) -> list[str]:
    """The keys marked `ours`, from the comments of the config."""
    config = registry.get(one.name)[1]
    rows = [(f"`{c.key}`", c.default, c.others, _cell(c.why)) for c in open_choices(config)]
    return [
        "\n## What the paper leaves open, and what we chose\n",
        "Each is a key: `--set key=value`. In brackets where a choice comes from, if it is somebody's.\n",
        *_table(("key", "default", "or", "why, units"), rows),
    ]


def _settings(one: Page) -> list[str]:
    """What the paper says of each hyper-parameter beside what `--preset paper` does."""
    run = resolve(one.name, "paper")
    rows = []
    for what, paper, key in one.settings:
        content = run.recipe_config.get(key.partition(".")[0]) if not hasattr(run, key) else getattr(run, key)
        for part in key.split(".")[1:]:
            assert isinstance(content, dict)
            content = content[part]
        rows.append((what, paper, value(content), f"`{key}`"))
    return [
        "\n## Hyper-parameters: the paper, and `--preset paper`\n",
        *_table(("what", "paper", "preset `paper`", "key"), rows),
    ]


def _facts(kind: str, one: Page, facts: Mapping[int, Fact]) -> list[str]:
    found = numbered(kind, one.files)
    rows = []
    for number, fact in facts.items():
        held = [*found.get(number, []), *(named(name) for name in fact.also)]
        tests = "<br>".join(_link(test) for test in held)
        rows.append((str(number), fact.words, tests if held else f"_{fact.missing}_"))
    return _table((kind, "what must hold" if kind == "check" else "what goes wrong", "tests"), rows)


def _link(test: Test) -> str:
    return f"[{_cell(test.words)}](../../{test.file})"  # no line: any edit of a test would make the page stale


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(text: str) -> str:
    return text.replace("|", "∣").replace(os.linesep, " ")
