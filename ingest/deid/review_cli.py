"""The verbs `deid-review` and `deid-inputs`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()

SourceOption = Annotated[
    Path | None,
    typer.Option("--from", help="The private files' folder; default: $USDATA_PRIVATE_DIR/SITE.", metavar="DIR"),
]
NameOption = Annotated[str | None, typer.Option("--name", help="The data set's name.", metavar="SITE")]
CardOption = Annotated[Path | None, typer.Option("--card", help="Its card, instead of --name.", metavar="FILE")]
KeyOption = Annotated[
    Path | None, typer.Option("--key-file", help="The secret key; default: $USDATA_DEID_KEY_FILE.", metavar="FILE")
]
IssuerOption = Annotated[str | None, typer.Option(help="Who gave out the patient ids; as for `ingest`.")]
TemplatesOption = Annotated[Path | None, typer.Option(help="Your reviewed device templates.", metavar="DIR")]
AreaOption = Annotated[Path | None, typer.Option(help="The private area; only you can read it.", metavar="DIR")]
RelaxOption = Annotated[list[str] | None, typer.Option(help="A rule to leave out, as for `ingest`.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object, for machines.")]


@app.command("deid-review")
def deid_review(
    source: SourceOption = None,
    name: NameOption = None,
    key_file: KeyOption = None,
    card: CardOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the page; default: in the private area.", metavar="DIR")
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Show pictures of this reason only.", metavar="WORD")] = None,
    per_device: Annotated[int, typer.Option(help="Pictures per device and verdict.", min=1)] = 20,
    items: Annotated[
        list[str] | None,
        typer.Option(help="Only these items: keys, or their first digits; may repeat.", metavar="KEY"),
    ] = None,
    first: Annotated[int | None, typer.Option(help="Only so many items, as if drawn by lot.", min=1)] = None,
    show_paths: Annotated[bool, typer.Option("--show-paths", help="Put each item's file name on the page.")] = False,
    issuer: IssuerOption = None,
    templates: TemplatesOption = None,
    area: AreaOption = None,
    relax: RelaxOption = None,
    workers: Annotated[int | None, typer.Option(help="Processes; all cores if not given.", min=1)] = None,
    json: JsonOption = False,
) -> None:
    """One page for a person's eyes: what de-identification kept and removed, device by device. Nothing is ingested.

    The page holds patients' data. It goes into the private area, never into a lake or a repository.
    """
    from ingest.cli import cores
    from ingest.deid.inputs import find_source, the_card
    from ingest.deid.private import open_private, rules_of
    from ingest.deid.review import write_page
    from ingest.deid.review_run import known_reason, review_files
    from usdata.console import print_rows, say

    wanted = known_reason(reason)
    chosen = the_card(name, card, tuple(relax or ()))
    place = find_source(source, chosen.name)
    rules = rules_of(chosen, key_file, source=place, issuer=issuer, templates=templates, area=area)
    folder = out or Path(str(rules.area)) / "review"
    with open_private(place, rules) as root:
        found = review_files(
            chosen,
            root,
            rules,
            per_device=per_device,
            reason=wanted,
            keys=tuple(items or ()),
            first=first,
            show_paths=show_paths,
            workers=workers or cores(),
            quiet=json,
        )
    page = write_page(found.review, folder, place, ignored=found.ignored, seen=found.seen)
    counts = found.review.counts()
    if json:
        print_rows([counts | {"page": str(page)}], as_json=True)
        return
    parts = ", ".join(f"{count:,} {word}" for word, count in counts.items() if word != "items")
    say(f"{counts['items']:,} items: {parts}", f"{page} written: open it in a browser. It holds patients' data.")


@app.command("deid-inputs")
def deid_inputs(
    out: Annotated[Path, typer.Option("-o", "--out", help="The JSON file to write.", metavar="FILE")],
    name: Annotated[str, typer.Option("--name", help="The data set's name.", metavar="SITE")],
    source: SourceOption = None,
    key_file: KeyOption = None,
    templates: TemplatesOption = None,
    area: AreaOption = None,
) -> None:
    """List private files under keyed ids and hashes, for DVC to depend on in place of the files; no name is in it."""
    from ingest.deid.inputs import find_source, inputs_of
    from ingest.deid.private import private_card, rules_of
    from usdata.console import say
    from usdata.files import explain_os_errors, write_json

    card = private_card(name)
    place = find_source(source, card.name)
    rules = rules_of(card, key_file, source=place, templates=templates, area=area)
    found = inputs_of(card, place, rules)
    with explain_os_errors(out, dataset=card.name, step="inputs", elsewhere="with -o FILE"):
        write_json(out, found)
    say(f"{out}: {len(found['files']):,} files under their keyed ids. It holds no name; it may be committed.")
