"""The verb `deid-key`: make and check the secret key that private data is ingested with."""

import stat
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()
key_app = typer.Typer(help="Make or check the secret key for private data.", no_args_is_help=True)
app.add_typer(key_app, name="deid-key")


@key_app.command("new")
def deid_key_new(file: Annotated[Path, typer.Argument(help="The file to make; nothing is overwritten.")]) -> None:
    """Make a key file that only you can read. Keep a copy as safe as the patients' records."""
    from ingest.deid.key import KEY_VARIABLE, load_key, new_key
    from usdata.console import say

    new_key(file)
    say(
        f"{file}: a new key, fingerprint {load_key(file).fingerprint}, readable by you alone.",
        "Who has it can tell whose images are in the lake; without it, later files of a patient get another pseudonym.",
        "So keep one copy, apart from lake and repository, as safe as the patients' records.",
        f"Use it:  usdata ingest private --key-file {file} ...        or  export {KEY_VARIABLE}={file}",
    )


@key_app.command("check")
def deid_key_check(
    file: Annotated[
        Path | None, typer.Argument(help="The key file; $USDATA_DEID_KEY_FILE if not given.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object, for machines.")] = False,
) -> None:
    """Say whether a key file is right and safe, and its fingerprint; the key itself is never shown."""
    from ingest.deid.key import key_path, load_key
    from usdata.console import print_rows

    key, mode = load_key(file), stat.S_IMODE(key_path(file).stat().st_mode)
    print_rows([{"fingerprint": key.fingerprint, "mode": f"{mode:04o}", "ok": True}], json)
