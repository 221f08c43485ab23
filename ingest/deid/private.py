"""Private data on the way into a lake: its card, its rules, its files under keyed names.

The way of one run: `rules_of` (key, area) -> `list_private` (every file, no name kept) -> `ingest.scan` and
`ingest.build`, which hand each file to an isolated child (`ingest.deid.ask`).
"""

import resource
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from secrets import token_hex

import numpy as np

from ingest.card import Card
from ingest.deid.ask import Cleaners
from ingest.deid.decision import Decision
from ingest.deid.device import Device
from ingest.deid.identity import Identity
from ingest.deid.key import key_path, load_key
from ingest.deid.place import private_folder
from ingest.deid.reasons import Reason, Refusal, State
from ingest.deid.rules import Rules
from ingest.deid.templates import load_templates
from ingest.deid.temporary import temporary_folder
from ingest.layout import CLUTTER, Item, Listing, Problem, list_items, walk
from ingest.unpack import open_source
from usdata.errors import CardError, DataError

AREA = "private"
ISSUER = "the key's own site"  # a key is one hospital's: its data sets share their patients. Ours


def private_card(name: str, organ: str | None = None, relax: tuple[str, ...] = ()) -> Card:
    """The card of `usdata ingest private`: every file of a folder, told by its content.

    Args:
        name: of the data set; it stands in every sample id, so it must not say more than the site may.
        organ: of all files; None: what their tags say, else unknown.
        relax: rules that are not applied; the catalog's `deid_profile` names them.

    Raises:
        CardError: the name or a word is not allowed.
    """
    from pydantic import ValidationError

    from ingest.card import explain

    try:
        return Card.model_validate(
            {
                **{"name": name, "title": "Private ultrasound", "citation": "none", "licence": "private"},
                **{"commercial_use": "no", "redistribution": "no", "deid_profile": "private"},
                **{"defaults": {"organ": organ} if organ else {}, "relax": relax},
            }
        )
    except ValidationError as error:
        raise CardError(
            f"Not usable: {explain(error)}.",
            step="list",
            hint="usdata ingest private --from DIR --name site_a --key-file KEY [--organ thyroid]",
        ) from None


def rules_of(
    card: Card,
    key_file: Path | None,
    *,
    source: Path | None = None,
    issuer: str | None = None,
    templates: Path | None = None,
    area: Path | None = None,
) -> Rules:
    """The rules of a run, after checking that the key can be used and that the private area is one.

    Args:
        key_file: None: the path in USDATA_DEID_KEY_FILE.
        source: the patients' own files, which the area must not lie among.
        issuer: of patient ids where a file names none; None: the same for all that is ingested with this key.
        templates: the site's folder of reviewed device templates.
        area: the private area; None: the user's own state folder.

    Raises:
        ConfigError: no usable key file, or an area that others can read.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold names; the worker processes inherit this
    if source is not None:
        check_source(source)
    key = load_key(key_file)
    place = private_folder((area or default_area()) / card.name, source)
    folder = templates.resolve() if templates else None
    load_templates(folder)  # a bad one must fail now, not in every process
    return Rules(key_path(key_file).resolve(), key.fingerprint, issuer or ISSUER, folder, place, token_hex(16))


def check_source(source: Path) -> None:
    """See that the source can be looked at, before any other message could show its path.

    Raises:
        DataError: it can't, or is neither a folder nor a file.
    """
    try:
        kind = source.resolve(strict=True).stat().st_mode
    except (OSError, RuntimeError):  # no such path, no right to see it, too long a name, links in a circle
        raise _not_opened("missing") from None
    if not (stat.S_ISDIR(kind) or stat.S_ISREG(kind)):
        raise _not_opened("unsupported")


def default_area() -> Path:
    """The private area if none is given: below the user's state folder, on this machine."""
    from platformdirs import user_state_path

    return user_state_path("usdata") / AREA


@contextmanager
def open_private(source: Path, rules: Rules) -> Iterator[Path]:
    """`ingest.unpack.open_source`, with an archive unpacked inside the private area, and no name in a message.

    Raises:
        DataError: as there.
    """
    assert rules.area is not None
    with ExitStack() as stack:
        temp = stack.enter_context(temporary_folder(rules.area))
        try:
            folder = stack.enter_context(open_source(source, temp))
        except DataError as error:
            raise _not_opened(error.reason) from None
        yield folder


def _not_opened(reason: str) -> DataError:
    """What is wrong with a source as a whole, in words that name nothing."""
    known = {
        "missing": ("There is no such folder or archive, or it can't be read.", "Check the path after --from."),
        "unsupported": (
            "This is neither a folder nor an archive.",
            "Give the folder that the file lies in:  --from DIR",
        ),
        "no_space": ("There is no room to unpack the archive.", "Unpack it yourself and give the folder:  --from DIR"),
    }
    otherwise = ("The archive is damaged, or not safe to unpack.", "Unpack it yourself, where only you can read it.")
    text, hint = known.get(reason, otherwise)
    return DataError(reason, text, step="unpack", hint=hint)


def list_private(card: Card, root: Path, rules: Rules) -> Listing:
    """Every file below `root` under its keyed id, in the order of those ids, which is not that of names.

    Without a layout each file is an item; with one, those that fit it, with the fields that their paths and tables
    give: ids become pseudonyms, all else are words that the card lists.

    Raises:
        CardError, DataError: the folder is missing or empty, or does not fit the card; no message names a file.
    """
    identity = rules.identity()
    try:
        listing = list_items(card, root, identity) if card.layout else _everything(card, root)
    except DataError as error:
        hint = "Check the path after --from; a folder, or a .zip or .tar archive."
        text = {"empty_folder": "The folder holds no file.", "missing": "There is no such folder or archive."}
        message = text.get(error.reason, "The folder can't be read.")
        raise DataError(error.reason, message, dataset=card.name, step="list", hint=hint) from None
    except CardError:
        raise CardError(
            "The card's layout does not fit the files, or one of its tables can't be read. (Which, is not shown: names "
            "of private files stay out of messages.)",
            dataset=card.name,
            step="list",
            hint="Try the card on a small folder of made-up files with `deid_profile: public`.",
        ) from None
    return _without_names(listing, identity)


def _everything(card: Card, root: Path) -> Listing:
    constants = card.constants() | {"organ": card.defaults.organ or "unknown"}
    fields = {name: value for name, value in constants.items() if value is not None}
    items, problems, ignored, files = [], [], 0, 0
    for path, problem in walk(root):
        files += 1
        if CLUTTER.fullmatch(path):
            ignored += 1
        elif problem:
            problems.append(Problem(path, "list", problem.partition(":")[0], None))
        else:
            items.append(Item(path, "image", fields["organ"], dict(fields)))
    if not files:
        raise DataError("empty_folder", "The folder holds no file.")
    return Listing(items=items, problems=problems, ignored=ignored, files=files)


def _without_names(listing: Listing, identity: Identity) -> Listing:
    """The same listing under keyed ids; texts that could quote a name are dropped."""
    items = [replace(item, path=identity.source(item.path), file=item.path) for item in listing.items]
    problems = [
        Problem(identity.source(p.path), p.stage, Reason.of(p.reason, Reason.NOT_ON_CARD), None)
        for p in listing.problems
    ]
    return replace(
        listing,
        items=tuple(sorted(items, key=lambda item: item.path)),
        problems=tuple(sorted(problems, key=lambda problem: (problem.path, problem.reason))),
        tables=(),
        notes=(),
    )


def decide(path: Path, relative: str, cleaners: Cleaners, identity: Identity) -> Decision:
    """What would become of a file, with pictures, for a person's eyes on the private side."""
    key = identity.source(relative)
    try:
        facts, pictures = cleaners.decide(path, relative)
    except Refusal as refusal:  # the child did not survive it
        return _undecided(key, Reason(refusal.reason))
    reason = Reason.of(facts["reason"]) if facts["reason"] else None
    mask = pictures.get("mask")
    return Decision(
        key=key,
        state=reason.state if reason else State.ACCEPTED,
        reason=reason,
        device=Device(*facts["device"]),
        shape=tuple(facts["shape"]) if facts["shape"] else None,
        before=pictures.get("before"),
        mask=None if mask is None else mask > np.uint8(127),
        mask_source=facts["source"],
        mask_score=facts["score"],
        text_box=tuple(facts["box"]) if facts["box"] else None,
        after=pictures.get("after"),
        row=facts["row"],
    )


def _undecided(key: str, reason: Reason) -> Decision:
    return Decision(key, reason.state, reason, Device(), None, None, None, None, None, None, None, {})
