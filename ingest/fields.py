"""Words of a path and of table rows -> the catalog columns of one item."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from ingest.card import Card
from ingest.card_parts import PLACEHOLDER, Value
from usdata.errors import CardError
from usdata.schema import check_word, organ_group_of

if TYPE_CHECKING:
    from ingest.deid.identity import Identity

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SPLITS |= {"testing": "test", "dev": "val"}
WORDS = ("organ", "mode", "species", "probe")
RAW = ("organ", "probe")  # columns that keep the source's own word in organ_raw, probe_raw
GROUPS = ("patient", "study", "clip")  # ids: prefixed with the data set, so that equal numbers never join
Found = tuple[str, Value, str]  # column, how it is read, the source's word ("" when unknown)
NUMBERS = ("pixel_mm", "pixel_mm_x", "pixel_mm_y", "depth_mm")  # all larger than zero


class Refused(Exception):
    """An item can't get in; `reason` is the word that the quarantine stores, `stage` is list or join (tables)."""

    def __init__(self, reason: str, detail: str, stage: str = "list") -> None:
        super().__init__(detail)
        self.reason, self.detail, self.stage = reason, detail, stage


def fill_template(source: str, words: Mapping[str, str]) -> str:
    """`source` as a name in `words`, or with every `{name}` replaced. Unknown (empty) when any part is.

    Raises:
        KeyError: a name that `words` does not have.
    """
    names = PLACEHOLDER.findall(source)
    if not names:
        return words[source]
    if not all(words[name] for name in names):
        return ""
    return PLACEHOLDER.sub(lambda match: words[match[1]], source)


def path_words(path: str, groups: Mapping[str, str]) -> dict[str, str]:
    """What a template may name for an item: path, name, stem, parent (of its path), and the groups over them."""
    parent, _, name = path.rpartition("/")
    stem = name.rpartition(".")[0] or name
    return {"path": path, "name": name, "stem": stem, "parent": parent.rpartition("/")[2], **groups}


def mapped(value: Value, word: str) -> str | None:
    """The catalog's word for the source's `word`; None when a map exists and does not list it."""
    word = word.lower() if value.lower else word
    return word if value.map is None else value.map.get(word)


class Filler:
    """Fills the columns of a card's items; built once per listing, because the card is read once."""

    def __init__(self, card: Card, identity: "Identity | None" = None) -> None:
        """`identity` makes the ids of private data; their own words are not kept."""
        self.card, self.identity = card, identity
        self.constants = card.constants()
        self.prefix = card.patients_of or card.name
        self.from_path = [(column, value) for column, value, table in card.filled() if table is None]
        self.required = {column for column, _ in self.from_path if column == "label"}

    def fields(self, kind: str, words: Mapping[str, str], from_tables: Iterable[Found]) -> dict[str, Any]:
        """The row of an item as far as it is known before pixels are read.

        Args:
            kind: image or video.
            words: what its path says, from `path_words`.
            from_tables: what the tables say.

        Raises:
            Refused: label_missing, unknown_label, unknown_organ, unknown_probe, unknown_split, bad_number, ...
        """
        found: list[Found] = []
        for column, value in self.from_path:
            known = all(name in words for name in value.names())  # a group of another pattern is not known here
            if known or column != "label":  # a pattern without the label's group is of pictures that have none
                found.append((column, value, fill_template(value.source, words) if known else ""))
        found += from_tables
        row = dict(self.constants)
        named: dict[str, dict[str, Any]] = {"labels": {}, "targets": {}}
        for column, value, word in found:
            if word:
                self._put(row, named, column, value, word)
            elif column in self.required:
                raise Refused("label_missing", "The path gives no label.")
        if kind == "video" and not row.get("clip") and self.identity is None:
            row["clip"] = f"{self.card.name}-{PurePosixPath(words['path']).with_suffix('')}"
        return self._finish(row, named)

    def _put(self, row: dict[str, Any], named: dict[str, dict[str, Any]], column: str, value: Value, raw: str) -> None:
        family, _, name = column.partition(".")
        word = mapped(value, raw)
        if column == "label" or family == "labels":
            listed = self.card.labels[name or "label"]
            if word not in listed:
                raise Refused("unknown_label", f"{column}: {raw!r} is not on the card ({', '.join(listed)}).")
            (named["labels"] if name else row)[name or column] = word
        elif family == "targets":
            named["targets"][name] = _number(column, word, raw)
        elif column in NUMBERS:
            number = _number(column, word, raw)
            if number <= 0:
                raise Refused("bad_number", f"{column}: {raw!r} is not above zero.")
            row |= {"pixel_mm_x": number, "pixel_mm_y": number} if column == "pixel_mm" else {column: number}
        elif column in WORDS:
            row[column] = _word(column, word, raw)
            if column in RAW and self.identity is None:
                row[f"{column}_raw"] = raw
        elif column == "official_split":
            split = SPLITS.get((word or "").lower())
            if split is None:
                raise Refused("unknown_split", f"{raw!r} is none of train, val, test.")
            row[column] = split
        elif word is None:
            raise Refused(f"unknown_{column}", f"{column}: {raw!r} is not in the card's map.")
        else:
            row |= self._id(column, word) if column in GROUPS else {column: word}

    def _id(self, column: str, word: str) -> dict[str, Any]:
        """A patient's, study's or clip's id: prefixed in public data, a pseudonym in private data."""
        if self.identity is None:
            return {column: f"{self.prefix if column == 'patient' else self.card.name}-{word}"}
        from ingest.deid.vocabulary import names_no_patient

        if column == "patient":
            known = not names_no_patient(word)  # "unknown", "0": many people's files, not one patient's
            return {"patient": self.identity.patient(word, None), "patient_known": True} if known else {}
        if not word.strip():
            return {}
        return {column: self.identity.study(word) if column == "study" else self.identity.clip(word)}

    def _finish(self, row: dict[str, Any], named: dict[str, dict[str, Any]]) -> dict[str, Any]:
        for family, values in named.items():
            row[family] = json.dumps(values, sort_keys=True, separators=(",", ":")) if values else None
        if self.card.target:
            row["target"] = named["targets"].get(self.card.target)
        if not row.get("organ") and self.identity is not None:
            row["organ"] = "unknown"  # a DICOM header may still say it
        if not row.get("organ"):
            raise Refused("unknown_organ", "Neither the path nor a table gives the organ.")
        row["organ_group"] = organ_group_of(row["organ"])
        return {column: value for column, value in row.items() if value is not None}


def _number(column: str, word: str | None, raw: str) -> float:
    try:
        number = float(word) if word is not None and "_" not in word else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise Refused("bad_number", f"{column}: {raw!r} is not a number.")
    return number


def _word(column: str, word: str | None, raw: str) -> str:
    if word is None:
        raise Refused(f"unknown_{column}", f"{raw!r} is not in the card's map.")
    try:
        return check_word(column, word)
    except CardError as error:
        raise Refused(f"unknown_{column}", error.message) from error
