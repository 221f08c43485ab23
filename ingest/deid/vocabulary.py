"""The closed tables that a header's words must be in: only what stands in `vocab/*.yaml` and the taxonomy comes out.

A value is looked up whole: what is in no table is `other` or None, never itself. Descriptions, which people type, are
read for whole words of anatomy only, and the answer is a word of the catalog or None. Nothing here keeps, logs or
raises what it was given. Source: anonymization.md T1 to T3.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from ingest.deid.values import normalise
from usdata.schema import SAMPLES, organ_group_of, taxonomy, vocabulary

OTHER = "other"
_LEGAL = frozenset(
    "inc incorporated ltd limited co company corp corporation gmbh ag kg llc spa sa sas bv nv ab as aps kk plc".split()  # noqa: SIM905
)
_SNOMED = frozenset({"SCT", "SNOMED-CT", "2.16.840.1.113883.6.96"})
_SRT = frozenset({"SRT", "SNM3", "99SDM", "SNOMED-RT"})
_WORD = re.compile(r"[^\W_]+")
_UNBROKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")  # kana, ideographs, Hangul
_LETTERS = str.maketrans({"ł": "l", "ø": "o", "đ": "d", "œ": "oe", "æ": "ae", "ı": "i"})
_LONGEST = 1024  # signs of a description that are read (ours)


@dataclass(frozen=True, slots=True)
class Phrases:
    """Whole-word phrases, each with the word of the catalog that it means; "" means nothing, on purpose."""

    by_words: Mapping[tuple[str, ...], str]
    unbroken: tuple[tuple[str, str], ...]  # of scripts without blanks, the longest first
    longest: int  # words of the longest phrase

    @classmethod
    def of(cls, table: Mapping[str, Iterable[str]], nothing: Iterable[str] = ()) -> "Phrases":
        """From `{word of the catalog: its phrases}`."""
        pairs = [(phrase, "") for phrase in nothing]
        pairs += [(phrase, word) for word, phrases in table.items() for phrase in phrases]
        by_words = {tuple(words_of(phrase)): word for phrase, word in pairs if not _UNBROKEN.search(phrase)}
        unbroken = {plain(phrase): word for phrase, word in pairs if _UNBROKEN.search(phrase)}
        longest_first = sorted(unbroken.items(), key=lambda pair: (-len(pair[0]), pair[0]))
        return cls(by_words, tuple(longest_first), max(map(len, by_words), default=0))

    def find(self, text: str) -> set[str]:
        """The catalog's words in a text: at each place the longest phrase that begins there."""
        text = plain(text[:_LONGEST])
        found = set()
        for phrase, word in self.unbroken:
            if phrase in text:
                found.add(word)
                text = text.replace(phrase, " ")
        words, place = _WORD.findall(text), 0
        while place < len(words):
            for length in range(min(self.longest, len(words) - place), 0, -1):
                if (means := self.by_words.get(tuple(words[place : place + length]))) is not None:
                    found.add(means)
                    place += length - 1
                    break
            place += 1
        return found - {""}


def plain(text: str) -> str:
    """Text as tables are compared: normalised, without accents."""
    text = normalise(text)
    if text.isascii():
        return text
    apart = unicodedata.normalize("NFD", text.translate(_LETTERS))
    return unicodedata.normalize("NFC", "".join(char for char in apart if unicodedata.category(char) != "Mn"))


def words_of(text: str) -> list[str]:
    """The words of a text, without case, accents and signs."""
    return _WORD.findall(plain(text))


def key_of(text: str) -> str:
    """A name as it is looked up: letters and digits only ("S5_1" and "S5-1" are one)."""
    return "".join(words_of(text))


# --- devices ----------------------------------------------------------------------------------------------------------


def manufacturer_of(text: str) -> str:
    """The catalog's word for a maker, or `other`: "Philips Medical Systems" -> "Philips"."""
    words = words_of(text)
    found = _tables().makers.get("".join(words))
    while found is None and words and words[-1] in _LEGAL:
        words.pop()
        found = _tables().makers.get("".join(words))
    return found or OTHER


def model_of(text: str, maker: str | None) -> tuple[str | None, str]:
    """A model's maker and its catalog's word, or `other`.

    Args:
        maker: a word from `manufacturer_of`; None if the file names none: then any maker's model that no other maker
            also has.
    """
    key = key_of(text)
    if maker is not None:
        return maker, _tables().models.get(maker, {}).get(key, OTHER)
    owners = [(name, models[key]) for name, models in _tables().models.items() if key in models]
    return owners[0] if len(owners) == 1 else (None, OTHER)


def probe_of_name(text: str) -> str | None:
    """The class of a probe by its maker's name ("C5-1"); a serial number after a comma is not looked at (T3)."""
    probes = _tables().probes
    return probes.get(key_of(text)) or probes.get(key_of(re.split(r"[,;:|]", text, maxsplit=1)[0]))


def probe_of_type(text: str) -> str | None:
    """The class of a TransducerType (0018,6031)."""
    return _tables().probe_types.get(key_of(text))


def probe_of_preset(text: str) -> str | None:
    """The class that value 3 of ImageType implies."""
    return _tables().probe_presets.get(key_of(text))


def probe_of_model(model: str | None) -> str | None:
    """The class of the only probe that a model of the catalog has."""
    return _tables().model_probes.get(model or "")


def probe_of_codes(geometry: str | None, application: str | None) -> str | None:
    """The class of DICOM's codes (scheme DCM) for a transducer's geometry and application."""
    tables = _tables()
    return tables.application_codes.get(application or "") or tables.geometry_codes.get(geometry or "")


# --- anatomy ----------------------------------------------------------------------------------------------------------


def organ_of_body_part(text: str) -> str | None:
    """The organ of a BodyPartExamined (0018,0015)."""
    return _tables().body_parts.get(key_of(text))


def organ_of_preset(text: str) -> str | None:
    """The organ that value 3 of ImageType stands for."""
    return _tables().organ_presets.get(key_of(text))


def organ_of_code(code: str, scheme: str) -> str | None:
    """The organ of a SNOMED code, as SNOMED CT or in the older SRT form; the meaning beside it is never read."""
    return _of_code(_tables().organ_codes, code, scheme)


def organ_of_text(text: str) -> str | None:
    """The organ that a description speaks of; None if of none, or of several that have no common word.

    Words of a fetus turn the others into the fetus' own ("fetal kidney"). A region gives way to an organ in it
    ("abdomen, liver"). Several organs of the abdomen, of the neck or of a fetus are that region.
    """
    tables = _tables()
    found = tables.organs.find(text)
    if any(organ_group_of(organ) == "fetal" and organ not in ("maternal_cervix", "placenta") for organ in found):
        found = {tables.in_a_fetus.get(organ, organ) for organ in found} | tables.fetal_organs.find(text)
    return _one_organ(found)


def _one_organ(found: set[str]) -> str | None:
    broad = _tables().broad
    narrow = {
        organ
        for organ in found
        if not any(o != organ and organ_group_of(o) in broad.get(organ, ()) and o not in broad for o in found)
    }
    if len(narrow) == 1:
        return next(iter(narrow))
    groups = {organ_group_of(organ) for organ in narrow}
    regions = [region for region in broad if {organ_group_of(region)} == groups]
    return regions[0] if regions else None


def narrower_organ(broad: str, other: str | None) -> bool:
    """Whether `other` says more precisely what the region `broad` says."""
    return other is not None and other != broad and organ_group_of(other) in _tables().broad.get(broad, ())


def laterality_of_text(text: str) -> str | None:
    """`left`, `right` or `both`, if a description says one of them; left and right together are both."""
    found = _tables().sides.find(text)
    return next(iter(found)) if len(found) == 1 else ("both" if found else None)


def laterality_of_letter(text: str) -> str | None:
    """The side of Laterality (0020,0060), ImageLaterality or FrameLaterality: L, R, B."""
    return {"l": "left", "r": "right", "b": "both", "left": "left", "right": "right", "both": "both"}.get(key_of(text))


def laterality_of_code(code: str, scheme: str) -> str | None:
    """The side of a code of CID 244."""
    return _of_code(_tables().side_codes, code, scheme)


def is_paired(organ: str | None) -> bool:
    """Whether people have two of an organ, so that left and right tell which one."""
    return organ in _tables().paired


def view_of_text(text: str) -> str | None:
    """The view that a description names; None for none, or for several of which none is the narrowest."""
    found = _tables().views.find(text)
    narrow = {view for view in found if not any(view in _tables().narrower.get(other, ()) for other in found)}
    return next(iter(narrow)) if len(narrow) == 1 else None


def view_of_code(code: str, scheme: str) -> str | None:
    """The view of a code of CID 12226."""
    return _of_code(_tables().view_codes, code, scheme)


def mode_of_text(text: str) -> str | None:
    """`elastography` or `CEUS`, which neither region tags nor colours show."""
    found = _tables().modes.find(text)
    return next(iter(found)) if len(found) == 1 else None


def names_no_patient(text: str) -> bool:
    """Whether a PatientID is a filler: empty, signs only, one sign over and over, or a word such as "unknown"."""
    key = key_of(text)
    return len(set(key)) <= 1 or key in _tables().no_patient


def _of_code(codes: Mapping[str, str], code: str, scheme: str) -> str | None:
    code, scheme = code.strip().upper(), scheme.strip().upper()
    if (code.isdecimal() and scheme in _SNOMED) or (not code.isdecimal() and scheme in _SRT):
        return codes.get(code)
    return None


# --- the tables -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tables:
    makers: dict[str, str]
    models: dict[str, dict[str, str]]  # maker -> key -> model
    model_probes: dict[str, str]
    probes: dict[str, str]
    probe_types: dict[str, str]
    probe_presets: dict[str, str]
    geometry_codes: dict[str, str]
    application_codes: dict[str, str]
    body_parts: dict[str, str]
    organ_presets: dict[str, str]
    organ_codes: dict[str, str]
    organs: Phrases
    fetal_organs: Phrases
    in_a_fetus: dict[str, str]
    broad: dict[str, Collection[str]]
    sides: Phrases
    side_codes: dict[str, str]
    paired: frozenset[str]
    views: Phrases
    view_codes: dict[str, str]
    narrower: dict[str, Collection[str]]
    modes: Phrases
    no_patient: frozenset[str]


def load(name: str) -> Mapping[str, Any]:
    """One of the tables, as its YAML file has it: devices, probes, anatomy or views."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(files("ingest.deid").joinpath("vocab", f"{name}.yaml").read_text("utf-8"), loader)


@cache
def _tables() -> _Tables:
    devices, probes, anatomy, views = (load(name) for name in ("devices", "probes", "anatomy", "views"))
    names = {kind: [name for row in rows for name in row] for kind, rows in probes["names"].items()}
    return _Tables(
        makers=_keys({maker: [maker, *spellings] for maker, spellings in devices["makers"].items()}),
        models={maker: _models(maker, devices) for maker in devices["models"]},
        model_probes={model: kind for kind, models in devices["model_probes"].items() for model in models},
        probes=_keys(names),
        probe_types=_keys(probes["types"]),
        probe_presets={key_of(preset): kind for preset, kind in probes["presets"].items()},
        geometry_codes=probes["geometry_codes"],
        application_codes=probes["application_codes"],
        body_parts=_keys(anatomy["body_parts"]),
        organ_presets={key_of(preset): organ for preset, organ in anatomy["presets"].items()},
        organ_codes=_codes(anatomy["codes"]),
        organs=Phrases.of(anatomy["words"], anatomy["not_organs"]),
        fetal_organs=Phrases.of(anatomy["fetal_words"]),
        in_a_fetus=anatomy["in_a_fetus"],
        broad=anatomy["broad"],
        sides=Phrases.of(anatomy["laterality"]),
        side_codes=_codes({side: [codes] for side, codes in anatomy["laterality_codes"].items()}),
        paired=frozenset(anatomy["paired"]),
        views=Phrases.of(views["names"], anatomy["not_organs"]),
        view_codes=_codes(views["codes"]),
        narrower=views["narrower"],
        modes=Phrases.of(views["modes"]),
        no_patient=frozenset(map(key_of, anatomy["no_patient"])),
    )


def _keys(table: Mapping[str, Iterable[str]]) -> dict[str, str]:
    return {key_of(spelling): word for word, spellings in table.items() for spelling in spellings}


def _codes(table: Mapping[str, Iterable[str]]) -> dict[str, str]:
    return {code: word for word, rows in table.items() for row in rows for code in row.split()}


def _models(maker: str, devices: Mapping[str, Any]) -> dict[str, str]:
    """Every spelling of a maker's models, plain and with each of the maker's own spellings before it."""
    spellings = devices["model_spellings"].get(maker, {})
    plain_keys = _keys({model: [model, *spellings.get(model, ())] for model in devices["models"][maker]})
    before = {key_of(name) for name in (maker, *devices["makers"][maker])}
    return {name + key: model for key, model in plain_keys.items() for name in before} | plain_keys


def stored_words() -> frozenset[str]:
    """Every word of the tables that a row can hold, as the catalog spells it."""
    devices, anatomy, views = load("devices"), load("anatomy"), load("views")
    models = {model for models in devices["models"].values() for model in models}
    kinds = ("organ", "organ_group", "probe", "mode", "species")
    return frozenset(
        {OTHER, "male", "female", *models, *devices["makers"], *anatomy["laterality"], *views["names"], *views["modes"]}
    ).union(*map(vocabulary, kinds))


def allowed_words() -> frozenset[str]:
    """What the self-check may find in any output: the stored words, their parts, and the catalog's own columns.

    Lower-case words of at least two signs and the whole phrases; a patient's name that is one of them can't be told
    from it.
    """
    phrases = {normalise(word) for word in (*stored_words(), *SAMPLES.names, *taxonomy()["aliases"].get("mode", {}))}
    return frozenset(phrases | set(_parts_of(phrases)))


def _parts_of(phrases: Iterable[str]) -> Iterator[str]:
    for phrase in phrases:
        yield from (part for part in _WORD.findall(phrase) if len(part) > 1)
