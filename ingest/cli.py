"""The verbs `ingest` and `datasets`."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ingest.deid.cli import app as deid_app
from ingest.deid.review_cli import app as review_app
from ingest.fetch_cli import app as fetch_app
from usdata.errors import CardError, UsdataError

if TYPE_CHECKING:
    from ingest.card import Card

app = typer.Typer()
app.add_typer(deid_app)
app.add_typer(review_app)
app.add_typer(fetch_app)
DEFAULT_LAKE = "lake"


@app.command()
def ingest(
    dataset: Annotated[
        str | None,
        typer.Argument(help="A registered data set (see `usdata datasets`), or `private`: your patients'."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Folder or archive with the files; default: what `usdata fetch` brought.", metavar="PATH"
        ),
    ] = None,
    card: Annotated[Path | None, typer.Option("--card", help="Your own data set's card.", metavar="FILE")] = None,
    lake: Annotated[str, typer.Option("--lake", help="The lake's folder.", metavar="DIR")] = DEFAULT_LAKE,
    workers: Annotated[int | None, typer.Option(help="Processes; all cores if not given.", min=1)] = None,
    images: Annotated[int | None, typer.Option(help="How many images a generated data set draws.", min=1)] = None,
    interpolation: Annotated[
        str | None, typer.Option(help="Of a new lake: bilinear-aa (default) or bilinear-fast.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of `private`: what to call the data set.", metavar="SITE")] = None,
    organ: Annotated[str | None, typer.Option(help="Of `private`: the organ in all files.")] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(help="Of private data: the secret key's file; default: $USDATA_DEID_KEY_FILE.", metavar="FILE"),
    ] = None,
    issuer: Annotated[
        str | None,
        typer.Option(help="Of private data: who gave out the patient ids, if the key serves several hospitals."),
    ] = None,
    templates: Annotated[
        Path | None, typer.Option(help="Of private data: your reviewed device templates.", metavar="DIR")
    ] = None,
    area: Annotated[
        Path | None, typer.Option(help="Of private data: folder for the audit; only you can read it.", metavar="DIR")
    ] = None,
    relax: Annotated[
        list[str] | None, typer.Option(help="Of `private`: a rule to leave out (text); the catalog shows it.")
    ] = None,
    accept_terms: Annotated[
        list[str] | None,
        typer.Option("--accept-terms", help="The data set, if you accept its terms of use.", metavar="ID"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be read.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object, for machines.")] = False,
) -> None:
    """Bring a data set into the lake, or bring it up to date."""
    from ingest.card import get_card, load_card
    from ingest.deid.account import check_place
    from ingest.deid.inputs import find_source
    from ingest.deid.private import open_private, private_card, rules_of
    from ingest.fetch import default_source
    from ingest.fetch_terms import check_names, open_terms, write_accepted
    from ingest.fetch_words import ingest_command
    from ingest.progress import show, tell
    from ingest.run import as_record, dry_run_record
    from ingest.run import ingest as run
    from ingest.unpack import open_source
    from usdata.console import print_rows, say
    from usdata.lake import Lake

    if (dataset is None) == (card is None):
        raise typer.BadParameter("give either a registered data set or --card FILE")
    if (dataset == "private") != (name is not None):
        raise typer.BadParameter("`usdata ingest private` and --name SITE belong together")
    if dataset == "private":
        chosen = private_card(str(name), organ, tuple(relax or ()))
    elif organ or relax:
        raise typer.BadParameter("--organ and --relax are for `private`; a card says them itself")
    else:
        chosen = load_card(card) if card else get_card(str(dataset))
    private = chosen.deid_profile == "private"
    if not private and (key_file or issuer or templates or area):
        raise typer.BadParameter("--key-file, --issuer, --templates and --area are for private data")
    if images and not chosen.generator:
        raise CardError(f"--images is for generated data sets; {chosen.name} is read from files.", dataset=chosen.name)
    if source and chosen.generator:
        raise CardError(f"{chosen.name} is generated, not read: leave --from out.", dataset=chosen.name)
    check_names(accept_terms or (), [chosen.name])
    command = ingest_command(chosen, card, source, lake)
    accepted = open_terms(chosen, lake, accept_terms or (), command=f"{command} --accept-terms {chosen.name}")
    source = source or default_source(chosen)
    rules = None
    if private:
        source = find_source(source, chosen.name)
        check_place(chosen, source, Path(lake))  # before anything is written
        rules = rules_of(chosen, key_file, source=source, issuer=issuer, templates=templates, area=area)
    opening = open_private(source, rules) if source and rules else open_source(source) if source else nullcontext()
    with opening as folder:
        if dry_run:
            print_rows([dry_run_record(chosen, folder, images, rules)], json)
            return
        opened = Lake.create(lake, interpolation)
        write_accepted(opened, chosen, accepted, say)
        with show(chosen.name, quiet=json) as progress:
            report = run(
                chosen, folder, opened, workers=workers or cores(), count=images, rules=rules, progress=progress
            )
    print_rows([as_record(report)], as_json=True) if json else tell(report, opened)
    if not report.counts.samples:
        raise UsdataError(
            "Not one image got in.",
            dataset=chosen.name,
            step="build",
            hint=f"Why:  usdata sql \"select * from quarantine where dataset = '{chosen.name}'\" --lake {lake}",
        )


@app.command()
def datasets(
    dataset: Annotated[str | None, typer.Argument(help="Show all of one card.")] = None,
    vocabulary: Annotated[
        str | None, typer.Option(help="List the words of organ, organ_group, probe, mode or species.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per line, for machines.")] = False,
) -> None:
    """The registered data sets: what they hold, under which licence, and where to get them."""
    from ingest.card import get_card, registered
    from usdata.console import print_rows
    from usdata.schema import vocabulary as words

    if vocabulary:
        if vocabulary not in ("organ", "organ_group", "probe", "mode", "species"):
            raise typer.BadParameter(f"no vocabulary {vocabulary!r}: organ, organ_group, probe, mode or species")
        print_rows([{vocabulary: word} for word in sorted(words(vocabulary))], json)
        return
    if dataset:
        card = get_card(dataset)
        told = card.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        print_rows([told] if json else [{"key": key, "value": value} for key, value in told.items()], json)
        return
    print_rows([_summary(get_card(name)) for name in registered()], json)


def _summary(card: "Card") -> dict[str, object]:
    return {
        "dataset": card.name,
        "title": card.title,
        "organ": "several" if card.generator else card.defaults.organ,
        "images": card.expect.images,
        "videos": card.expect.videos,
        "tasks": ", ".join(card.tasks) or None,
        "licence": card.licence,
        "commercial_use": card.commercial_use,
        "redistribution": card.redistribution,
        "verified": card.verified,
    }


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))
