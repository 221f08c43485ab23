"""A card and a folder -> items: which files are images, with which masks, labels, patients and splits.

Read `list_items` first. Nothing is opened but tables, annotations and containers: pixels come later, one item at a
time, in any process. (A file whose name an error would show is looked into first: the name of a DICOM file may be a
patient's.)
Every file below the root ends in exactly one place: an item, a mask of an item, a table, the ignored, or a problem.
"""

import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ingest.card import Card
from ingest.fields import Filler, Refused, path_words
from ingest.readers import sniff
from ingest.readers.shapes import Shape, Shapes
from ingest.readers.table import Tables
from ingest.special import Entry, entries
from usdata.errors import CardError, DataError

if TYPE_CHECKING:
    from ingest.deid.identity import Identity

Role = Literal["ignore", "table", "mask", "video", "volume", "container", "image"]
Kind = Literal["video", "volume", "container", "image"]
ROLES: tuple[Role, ...] = ("ignore", "table", "mask", "video", "volume", "container", "image")  # the first that fits

# Left behind by operating systems, archivers and version control; never part of a data set.
CLUTTER = re.compile(r"(?:.*/)?(?:\.DS_Store|Thumbs\.db|desktop\.ini|\._[^/]*|(?:__MACOSX|\.git)/.*)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
SHOWN = 5  # files that a message lists


@dataclass(frozen=True, slots=True)
class Item:
    """One source file, or one entry of a container, that becomes one sample or several."""

    path: str  # POSIX, relative to the root; of a container's entry with "#" and its key at the end
    kind: Kind
    organ: str
    fields: dict[str, Any]  # the row's columns known before any pixel is read, rights and defaults included
    masks: tuple[str, ...] = ()  # POSIX paths, sorted
    shapes: tuple[Shape, ...] = ()  # from annotation files
    # Of private data `path` is the keyed source id, and this the real path: never stored, shown or hashed without key.
    # Of a container's entry it is the container.
    file: str | None = field(default=None, repr=False)
    entry: Entry | None = None  # of a container

    @property
    def place(self) -> str:
        """Where the file lies below the root."""
        return self.path if self.file is None else self.file

    def shapes_of(self, frame: int | None) -> list[Shape]:
        """The shapes of a frame; of a still (None) all."""
        return [shape for shape in self.shapes if frame is None or shape.frame in (None, frame)]


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that did not get in. `path` is printable: bytes that are not UTF-8 appear as \\xNN."""

    path: str
    stage: str
    reason: str
    detail: str | None  # None for private data


@dataclass(frozen=True, slots=True)
class Listing:
    """What a folder holds, as its card sees it. Deterministic: the order of files on disk does not matter.

    files = items + their masks + tables + ignored + problems.
    """

    items: Sequence[Item]  # sorted by path
    problems: Sequence[Problem]  # sorted by path
    ignored: int
    files: int
    tables: Sequence[str] = ()  # the tables that were read
    notes: Sequence[str] = ()  # for people: an optional table that is absent, rows without a file


@dataclass(slots=True)
class _Found:
    """The files of a folder by role, each with the groups of the pattern that it fitted."""

    image: dict[str, dict[str, str]] = field(default_factory=dict)  # whatever holds pictures
    kinds: dict[str, Kind] = field(default_factory=dict)
    patterns: dict[str, str] = field(default_factory=dict)  # path of an image or mask -> its pattern
    mask: dict[str, dict[str, str]] = field(default_factory=dict)
    # Path -> number among the card's tables, then annotations, of each that reads it, and the groups of its path there.
    table: dict[str, list[tuple[int, dict[str, str]]]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    containers: int = 0  # that were opened
    entries: int = 0  # in them
    ignored: int = 0
    files: int = 0


def list_items(card: Card, root: Path, identity: "Identity | None" = None) -> Listing:
    """The items below `root`, with all fields that paths and tables give, and every file that is none.

    Args:
        card: what to look for.
        root: a folder, for instance from `ingest.unpack.open_source`.
        identity: of private data only, for `ingest.deid.private`, which takes the names out of what comes back.

    Raises:
        DataError: `root` does not exist, is no folder, or has no file (reasons missing, not_a_folder, empty_folder).
        CardError: the card has no layout yet, no file fits it, a table it requires is missing or unusable, or what an
            error would name is DICOM.
    """
    if identity is None and card.deid_profile == "private":
        raise CardError("Private data is listed with a key only.", dataset=card.name, step="list")
    if card.layout is None:
        raise CardError(
            f"The layout of {card.name} is not known yet.",
            dataset=card.name,
            step="list",
            hint=f"It needs: {card.needs} Put it in a copy of the card and use  usdata ingest --card FILE --from DIR",
        )
    if identity is not None and (card.layout.volume or card.layout.container):
        raise CardError("Volumes and containers of private data are not read.", dataset=card.name, step="list")
    found = _sort_into_roles(card, root)
    tables = Tables.read(card, root, found.table)
    masks = _pair(card, found)
    shapes = Shapes.read(card, root, found.table)
    read = tables.paths | shapes.paths
    unreadable = tables.unreadable | shapes.unreadable
    odd = [f"{path}: can't be read as a table or annotation: {unreadable.pop(path)}" for path in read & set(unreadable)]
    found.problems += [Problem(path, "list", "table_unreadable", f"{text}.") for path, text in unreadable.items()]
    items = list(_build(card, root, found, tables, shapes, masks, Filler(card, identity)))
    tables.check_positions(card.name)
    done = found.ignored + len(read) + len(items) + sum(len(i.masks) for i in items) + len(found.problems)
    done += found.containers - found.entries  # each entry is an item or a problem
    if done != found.files:
        raise AssertionError(f"{found.files} files were found but {done} accounted for")
    return Listing(
        items=tuple(items),
        problems=tuple(sorted(found.problems, key=lambda problem: (problem.path, problem.reason))),
        tables=tuple(sorted(read)),
        ignored=found.ignored,
        files=found.files,
        notes=(*tables.notes(), *shapes.notes(), *sorted(odd)),
    )


def walk(root: Path) -> Iterator[tuple[str, str | None]]:
    """Each entry below `root` that is not a folder, as (POSIX path relative to it, problem or None), in any order.

    Links to files are followed as long as they end inside the root; links to folders are not.

    Raises:
        DataError: see `list_items`.
    """
    if not root.exists():
        raise DataError("missing", f"There is no {root}.", step="list", hint="Check the path after --from.")
    if not root.is_dir():
        raise DataError("not_a_folder", f"{root} is neither a folder nor an archive.", step="list")
    inside = os.path.realpath(root) + os.sep
    pending = [""]
    while pending:
        prefix = pending.pop()
        try:
            entries = list(os.scandir(root / prefix if prefix else root))
        except OSError as error:
            if not prefix:
                raise DataError("unreadable_folder", f"Can't read {root}: {error.strerror}.", step="list") from error
            yield prefix.rstrip("/"), f"unreadable_folder: {error.strerror}"
            continue
        for entry in entries:
            path = prefix + entry.name
            if entry.is_symlink():
                yield path, _link_problem(entry.path, inside)
            elif entry.is_dir(follow_symlinks=False):
                pending.append(path + "/")
            elif entry.is_file(follow_symlinks=False):
                yield path, None
            else:
                yield path, "not_a_file: A device, pipe or socket."


def _link_problem(path: str, inside: str) -> str | None:
    target = os.path.realpath(path)
    if not target.startswith(inside):
        return "link_outside: A link that leads out of the folder."
    try:
        mode = Path(target).stat().st_mode
    except OSError:
        return "broken_link: A link to nothing."
    if stat.S_ISDIR(mode):
        return "link_to_folder: Links to folders are not followed; put the folder itself there."
    return None if stat.S_ISREG(mode) else "not_a_file: A device, pipe or socket."


def _sort_into_roles(card: Card, root: Path) -> _Found:
    assert card.layout is not None
    found = _Found()
    flags = re.IGNORECASE if card.layout.ignore_case else 0
    patterns = [
        (role, number, pattern, re.compile(pattern, flags).fullmatch)
        for role in ROLES
        for number, pattern in enumerate(
            [*(one.file for one in card.tables), *(one.file for one in card.annotations)]
            if role == "table"
            else getattr(card.layout, role)
        )
    ]
    unmatched = []
    for path, problem in sorted(walk(root)):
        found.files += 1
        if CLUTTER.fullmatch(path):
            found.ignored += 1
        elif problem or (card.deid_profile == "public" and (problem := _bad_path(path))):
            reason, _, detail = problem.partition(": ")
            found.problems.append(Problem(_printable(path), "list", reason, detail))
        elif not _take(found, path, patterns):
            unmatched.append(path)
            found.problems.append(
                Problem(path, "list", "unmatched_file", "No pattern of the card fits this path; see layout.ignore.")
            )
    if not found.files:
        raise DataError(
            "empty_folder",
            f"There is no file in {root}.",
            dataset=card.name,
            step="list",
            hint=f"Get the files:  usdata fetch {card.name}        or give their folder:  --from DIR",
        )
    shown = found.table if found.image else [path for path, _ in walk(root)]
    if card.deid_profile == "public" and card.dicom == "refuse" and any(sniff.is_dicom(root / path) for path in shown):
        raise sniff.refuse_dicom(card.name)
    if not found.image:
        raise _no_match(card, root, unmatched or [problem.path for problem in found.problems] or sorted(found.mask))
    return found


def _take(found: _Found, path: str, patterns: Iterable[tuple[Role, int, str, Any]]) -> bool:
    for role, number, pattern, fits in patterns:
        if path in found.table and role != "table":
            return True  # all of its tables and annotations were seen
        match = fits(path)
        if match is None:
            continue
        groups = {name: value.strip() if value else "" for name, value in match.groupdict().items()}
        if role == "ignore":
            found.ignored += 1
        elif role == "table":
            found.table.setdefault(path, []).append((number, groups))
            continue  # one file may be several tables, of a spreadsheet's sheets say, and hold annotations too
        elif role == "mask":
            found.mask[path] = groups
            found.patterns[path] = pattern
        else:
            found.image[path] = groups
            found.kinds[path] = role
            found.patterns[path] = pattern
        return True
    return path in found.table


def _bad_path(path: str) -> str | None:
    if not path.isascii():
        try:
            path.encode()
        except UnicodeEncodeError:
            return "bad_path: The name is not valid UTF-8."
    return "bad_path: The name holds control characters." if _CONTROL.search(path) else None


def _printable(path: str) -> str:
    raw = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", raw)


def _no_match(card: Card, root: Path, seen: list[str]) -> CardError:
    assert card.layout is not None
    examples = card.layout.example
    example = next((p for role, paths in examples.items() if role in ROLES[3:] for p in paths), None)
    expected = f"for example {example!r}" if example else f"matching {card.layout.pictures[0]}"
    files = ", ".join(repr(path) for path in seen[:SHOWN]) + (", ..." if len(seen) > SHOWN else "")
    files = files or "only files that the card ignores or reads as tables"
    return CardError(
        f"No image or video in {root} fits the card: expected paths {expected}, found {files}.",
        dataset=card.name,
        step="list",
        hint="Give the folder that the original archive unpacks to, or change the patterns of your card.",
    )


def _pair(card: Card, found: _Found) -> dict[str, list[str]]:
    """Masks of each image. Masks without an image, or with several, go to the problems."""
    assert card.layout is not None
    if not found.mask:
        return {}
    pairing = {
        (mask, image): card.layout.pairing(mask, image) for mask in card.layout.mask for image in card.layout.pictures
    }
    by_key: dict[tuple[str, ...], dict[tuple[str, ...], list[str]]] = {}  # groups -> their values -> images
    for names in set(pairing.values()):
        index = by_key[names] = defaultdict(list)
        wanted = {image for (_, image), groups in pairing.items() if groups == names}
        for path, groups in found.image.items():
            if found.patterns[path] in wanted:
                index[tuple(groups[name] for name in names)].append(path)
    masks: dict[str, list[str]] = defaultdict(list)
    for path, groups in found.mask.items():
        names_tried = sorted({names for (mask, _), names in pairing.items() if mask == found.patterns[path]})
        images = sorted({i for names in names_tried for i in by_key[names].get(tuple(groups[n] for n in names), ())})
        if len(images) == 1:
            masks[images[0]].append(path)
        elif not images:
            found.problems.append(Problem(path, "list", "mask_without_image", "No image has the same key."))
        else:
            shown = ", ".join(repr(image) for image in images[:SHOWN])
            found.problems.append(Problem(path, "list", "mask_of_several_images", f"It fits {shown}."))
            for image in images:
                masks[image].append("")  # marks the image as one whose mask is in doubt
    return masks


def _build(
    card: Card,
    root: Path,
    found: _Found,
    tables: Tables,
    shapes: Shapes,
    masks: Mapping[str, list[str]],
    filler: Filler,
) -> Iterator[Item]:
    inside = bool(card.reader or (card.arrays and card.arrays.mask_dataset))  # masks that no path tells
    needs_mask = card.masks is not None and card.masks.required and not inside
    position = _positions(found.image)
    for path, groups in found.image.items():
        shapes.see({"position": position[path], **path_words(path, groups)})
    for path, entry in _pictures(card, root, found, masks):
        own = sorted(masks.get(path, ())) if entry is None else []
        name = path if entry is None else f"{path}#{entry.key}"
        try:
            words = {"position": position[path], **path_words(path, found.image[path])}
            words |= {"entry": entry.key, **entry.words} if entry else {}
            tables.see(words)
            if "" in own:
                own = [mask for mask in own if mask]  # the doubtful ones are among the problems already
                raise Refused("mask_of_several_images", "Its mask fits other images too.")
            drawn = shapes.of(words)
            if needs_mask and not own and not any(shape.becomes == "mask" for shape in drawn):
                raise Refused("image_without_mask", "The card requires a mask for every image.")
            fields = filler.fields(found.kinds[path], words, tables.words_of(words))
        except Refused as refused:
            found.problems.append(Problem(name, refused.stage, refused.reason, refused.detail))
            found.problems += [Problem(m, "list", "mask_of_refused", f"Its image {path!r} was refused.") for m in own]
            continue
        file = path if entry else None
        yield Item(name, found.kinds[path], fields["organ"], fields, tuple(own), drawn, file, entry)


def _pictures(
    card: Card, root: Path, found: _Found, masks: Mapping[str, list[str]]
) -> Iterator[tuple[str, Entry | None]]:
    """Every file that holds pictures, sorted by path; of a container each of its entries."""
    for path in sorted(found.image):
        if found.kinds[path] != "container":
            yield path, None
            continue
        for mask in filter(None, masks.get(path, ())):
            text = f"The pictures of {path!r} are told apart by a reader, and masks beside it by nothing."
            found.problems.append(Problem(mask, "list", "mask_of_container", text))
        try:
            inside = entries(card.reader, root / path)
        except DataError as error:
            found.problems.append(Problem(path, "list", error.reason, error.message))
            continue
        found.containers += 1
        found.entries += len(inside)
        yield from ((path, entry) for entry in inside)


def _positions(paths: Iterable[str]) -> dict[str, str]:
    """The rank of each picture among those of its folder, from 0; numbers in names count as numbers (ours)."""
    ranks: dict[str, str] = {}
    seen: dict[str, int] = defaultdict(int)
    for path in sorted(paths, key=natural):
        folder = path.rpartition("/")[0]
        ranks[path] = str(seen[folder])
        seen[folder] += 1
    return ranks


def natural(path: str) -> list[str | int]:
    """Texts and numbers in turn: "a10" comes after "a9"."""
    return [int(part) if number % 2 else part for number, part in enumerate(re.split("([0-9]+)", path))]
