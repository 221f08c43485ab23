"""The private files that Prefect and DVC speak of without naming them: a folder by environment, a list by keyed hash.

`inputs/<name>.json` says which files there are (keyed ids), what is in them (keyed hashes) and which device templates
are in force (a digest). A stage of dvc.yaml depends on it, so that DVC neither sees a name nor stores or pushes a file.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ingest.card import Card, load_card
from ingest.deid.identity import Identity
from ingest.deid.private import list_private, private_card
from ingest.deid.reasons import Refusal
from ingest.deid.rules import Rules
from ingest.deid.templates import load_templates
from usdata.errors import CardError, ConfigError
from usdata.files import read_json

FOLDER_VARIABLE = "USDATA_PRIVATE_DIR"
FORMAT = 1


def the_card(name: str | None, card: Path | None, relax: tuple[str, ...] = ()) -> Card:
    """The card of a private data set: read from a file, or the one of `usdata ingest private --name`.

    Raises:
        ConfigError: both or neither are given.
        CardError: the card can't be used, or is of public files.
    """
    if (name is None) == (card is None):
        raise ConfigError("Which data set?", step="private", hint="Give either --name SITE or --card FILE.")
    if card is None:
        return private_card(str(name), relax=relax)
    found = load_card(card)
    if found.deid_profile != "private":
        raise CardError("This card is of public files.", dataset=found.name, hint="It needs  deid_profile: private")
    if relax:
        raise ConfigError("A card says itself which rules it relaxes.", dataset=found.name)
    return found


def find_source(source: Path | None, name: str) -> Path:
    """The folder of a private data set: the given one, else the folder of its name in $USDATA_PRIVATE_DIR.

    Args:
        name: of the data set, as a card allows it: it can't leave the folder.

    Raises:
        ConfigError: neither is there. The message holds no path.
    """
    if source is not None:
        return source
    above = os.environ.get(FOLDER_VARIABLE)
    if not above:
        raise ConfigError(
            f"Where are the private files? {FOLDER_VARIABLE} is not set.",
            dataset=name,
            step="private",
            hint=f"On the machine that holds them:  export {FOLDER_VARIABLE}=DIR      with a folder DIR/{name} in it.",
        )
    place = Path(above) / name
    if not place.is_dir():
        raise ConfigError(
            f"{FOLDER_VARIABLE} holds no folder of that name.",
            dataset=name,
            step="private",
            hint=f"Put the files, or a link to their folder, into DIR/{name} with DIR as {FOLDER_VARIABLE} says.",
        )
    return place


def inputs_of(card: Card, root: Path, rules: Rules) -> dict[str, Any]:
    """The list for `inputs/<name>.json`: keyed id -> keyed hash of the content, or null for what can't be read.

    The same files, key and templates give the same list; every file below `root` is in it, whatever becomes of it.

    Raises:
        ConfigError, CardError, DataError: as `ingest.deid.private.list_private`.
    """
    listing, identity = list_private(card, root, rules), rules.identity()
    with ThreadPoolExecutor(4) as pool:  # reading and hashing leave Python's lock
        hashes = pool.map(lambda item: _hash(identity, root / item.place), listing.items)
        found: dict[str, str | None] = dict(zip((item.path for item in listing.items), hashes, strict=True))
    found |= {problem.path: None for problem in listing.problems}
    return {"format": FORMAT, "dataset": card.name, "templates": load_templates(rules.templates).digest, "files": found}


def _hash(identity: Identity, path: Path) -> str | None:
    try:
        return identity.content(path).hex
    except (OSError, Refusal):
        return None


def check_inputs(path: Path, card: Card, root: Path, rules: Rules) -> None:
    """See that the list in `path` is of the files, the key and the templates of today.

    Raises:
        ConfigError: it is missing, or of others; the message says how many files differ.
    """
    more = f" --templates {rules.templates}" if rules.templates else ""
    hint = f"usdata deid-inputs --name {card.name} -o {path}{more}      then  dvc repro  again."
    if not path.is_file():
        raise ConfigError(f"There is no {path}.", dataset=card.name, step="inputs", hint=hint)
    told, found = read_json(path), inputs_of(card, root, rules)
    if told == found:
        return
    before = told.get("files", {}) if isinstance(told, dict) else {}
    now = found["files"]
    differ = sum(before.get(key) != now.get(key) for key in before.keys() | now.keys())
    what = f"{differ:,} files are new, gone or changed" if differ else "the device templates changed"
    raise ConfigError(f"{path} is not of the files of today: {what}.", dataset=card.name, step="inputs", hint=hint)
