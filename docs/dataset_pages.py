"""The pages of the data sets, from their cards: the table docs/datasets.md, and one page for each in docs/datasets/."""

from collections import Counter

from ingest.card import Card, get_card, registered
from ingest.card_parts import Source

HOW = {
    "direct": "download by hand from its page",
    "git": "a Git repository",
    "kaggle": "Kaggle, with an account",
    "drive": "a shared drive, in a browser",
    "registration": "after registration",
    "request": "on request",
    "private": "not published",
    "generate": "made on your machine",
    "unknown": "where, is not known",
}

COLUMNS = ("data set", "title", "organ", "images or clips", "tasks", "licence", "commercial")
COLUMNS += ("redistribution", "get", "verified")


def index() -> str:
    """The table of all data sets."""
    cards = [get_card(name) for name in registered()]
    verified = Counter("drawn" if card.generator else card.verified for card in cards)
    rows = [
        "# Data sets\n",
        f"{len(cards)} cards: {verified['drawn']} is drawn by this program, {verified['real']} were run on real files "
        f"(`real`; of each a sample), {verified['layout']} on fakes of a layout that their owners or public "
        f"readers document (`layout`), {verified['unverified']} state what is known and what you must supply "
        "(`unverified`). A licence that nobody stated is `unstated`, not free. "
        "⚿: off until its terms are accepted (`--accept-terms`).\n",
        "How to get the files: [fetch](fetch.md). How to add a set: [CONTRIBUTING](../CONTRIBUTING.md).\n",
        f"| {' | '.join(COLUMNS)} |",
        "| --- " * len(COLUMNS) + "|",
    ]
    for card in cards:
        link = f"[`{card.name}`](datasets/{card.name}.md){' ⚿' if card.terms else ''}"
        rights = (card.licence, card.commercial_use, card.redistribution)
        cells = (link, card.title, organs(card), count(card), ", ".join(card.tasks), *rights, how(card), card.verified)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def organs(card: Card) -> str:
    """The organs that a card gives, by default or by a file's own word."""
    if card.generator:
        return "several"
    words = {word for column, value, _ in card.filled() if column == "organ" for word in (value.map or {}).values()}
    words |= {card.defaults.organ} if card.defaults.organ else set()
    return ", ".join(sorted(words)) if 0 < len(words) <= 3 else "several" if words else "by file"


def count(card: Card) -> str:
    """How many images or clips were published."""
    parts = [f"{card.expect.images:,} images"] if card.expect.images else []
    parts += [f"{card.expect.videos:,} clips"] if card.expect.videos else []
    return " and ".join(parts) or ("any number" if card.generator else "")


def how(card: Card) -> str:
    """The easiest way to its files."""
    if card.generator:
        return "drawn by `usdata ingest`"
    if any(source.url for source in card.sources):
        return "`usdata fetch`"
    return HOW[card.sources[0].how] if card.sources else HOW["unknown"]


def page(card: Card) -> str:
    """One data set: rights, what it holds, how to get it, what is wrong with it."""
    rows = [f"# {card.name}\n", f"{card.title}.\n", f"{card.citation}.\n"]
    facts = {
        "licence": f"{card.licence}; commercial use: {card.commercial_use}; redistribution: {card.redistribution}",
        "terms": card.terms,
        "verified": {
            "real": "on real files",
            "layout": "on fakes of its documented layout, not on the real files",
            "unverified": f"on nothing real. It needs: {card.needs}",
        }[card.verified],
        "organ": organs(card),
        "published": count(card),
        "tasks": ", ".join(card.tasks),
        "labels": "; ".join(f"{name}: {', '.join(words)}" for name, words in card.labels.items()),
        "targets": ", ".join(c.removeprefix("targets.") for c, _, _ in card.filled() if c.startswith("targets.")),
        "mask classes": ", ".join(card.masks.classes) if card.masks else "",
        "patients": card.patients + (f" The same people as in `{card.patients_of}`." if card.patients_of else ""),
    }
    rows += ["| | |", "| --- | --- |"]
    rows += [f"| {name} | {str(value).replace('|', '∣')} |" for name, value in facts.items() if value]
    if card.sources:
        rows += ["\n## Getting it\n", *(f"- {line}" for line in map(_source, card.sources))]
    lake = f"usdata ingest {card.name}" + ("" if card.generator else " --from DIR")
    lake += " --key-file KEY" if card.deid_profile == "private" else ""
    lake += f" --accept-terms {card.name}" if card.terms else ""
    rows += ["\n```\n" + lake + "\n```"]
    if card.layout:
        examples = [f"{role}: `{path}`" for role, paths in card.layout.example.items() for path in paths]
        rows += ["\n## Files it reads\n", *(f"- {example}" for example in examples)]
    if card.defects:
        rows += ["\n## Known defects\n", *(f"- {defect}" for defect in card.defects)]
    return "\n".join(rows) + "\n"


def _source(source: Source) -> str:
    words = [source.page or "", HOW[source.how], source.archive or "", source.steps or "", source.note or ""]
    return " · ".join(" ".join(word.split()) for word in words if word)
