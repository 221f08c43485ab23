"""Pseudonyms, UIDs, date offsets and hashes of a private source: all HMAC-SHA256 under sub-keys of one secret.

The same input and key give the same output in any process, order and machine, so no table of who is who is kept.
Without the key nobody can test a guess (a bare hash of a hospital number is undone in seconds).
Source: anonymization.md I3, I4, I5, N3.
"""

import hashlib
import hmac
import re
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import NoReturn

from ingest.deid.key import Key
from ingest.deid.reasons import Reason, Refusal
from ingest.deid.values import normalise

_HEX = 32  # hex digits that are kept: 128 bits
_DAYS = 3652  # ten years: dates move by -1 to -3652 days, never by 0
_UID_PADDING = " \0\t\r\n"
_PSEUDONYM = re.compile(r"[0-9a-f]{32}")
_PURPOSES = ("source", "content", "sample", "patient", "study", "clip", "uid", "date")


class Identity:
    """The keyed identities of one site. Holds sub-keys; like `Key` it can be neither pickled nor copied.

    Two data sets that share key and issuer share their patients: nothing here depends on a data set's name, but for
    the part before the hyphen of a sample's id.

    Args:
        key: the secret.
        issuer: who gives out the patient ids where a file does not say: the hospital. Two hospitals may both have a
            patient 1234, so the issuer is part of a pseudonym.
    """

    __slots__ = ("_issuer", "_macs", "fingerprint")

    fingerprint: str  # the key's

    def __init__(self, key: Key, issuer: str) -> None:
        self._issuer = normalise(issuer)
        self._macs = {purpose: hmac.new(key.derive(purpose), digestmod="sha256") for purpose in _PURPOSES}
        self.fingerprint = key.fingerprint

    def source(self, rel_path: str) -> str:
        """The opaque id of a file, 32 hex digits, from its path relative to the source folder, with / between parts."""
        return self._hash("source", rel_path)[:_HEX]

    def content(self, file: Path) -> "ContentHash":
        """The keyed hash of a file's bytes, read in pieces.

        Raises:
            Refusal: missing or unreadable.
        """
        mac = self._macs["content"].copy()
        reason = Reason.UNREADABLE
        try:
            with file.open("rb") as stream:
                return ContentHash(self, hashlib.file_digest(stream, lambda: mac).hexdigest()[:_HEX])
        except FileNotFoundError:
            reason = Reason.MISSING
        except OSError:
            pass
        raise Refusal(reason, step="read")

    def sample_id(self, content: str, dataset: str, frame: int, copy: int = 0) -> str:
        """`<dataset>-<16 hex>` of a frame, from the hash of its file's bytes (`ContentHash.hex`, 32 hex digits).

        Args:
            frame: 0-based index in the file.
            copy: 0; 1, 2, ... for further files with the same bytes in a data set.
        """
        return f"{dataset}-{self._hash('sample', _pseudonym(content), str(frame), str(copy))[:16]}"

    def patient(self, patient_id: str, issuer: str | None = None) -> str:
        """A patient's pseudonym, 32 hex digits, from the issuer and the normalised id.

        Args:
            issuer: the file's own IssuerOfPatientID; if it has none, the site's.

        Raises:
            Refusal: the id is empty: patients without one must not become one patient.
        """
        name = normalise(patient_id)
        if not name:
            raise Refusal(Reason.NO_IDENTITY, step="header")
        return self._hash("patient", normalise(issuer or "") or self._issuer, name)[:_HEX]

    def study(self, uid: str) -> str:
        """A study's pseudonym, 32 hex digits. Raises Refusal for an empty UID."""
        return self._hash("study", _clean_uid(uid))[:_HEX]

    def clip(self, uid: str) -> str:
        """A clip's pseudonym, 32 hex digits, from the UID of its object. Raises Refusal for an empty UID."""
        return self._hash("clip", _clean_uid(uid))[:_HEX]

    def uid(self, uid: str) -> str:
        """The UID that stands for another, `2.25.<decimal>`, at most 44 characters; registered ones stay as they are.

        Registered are the UIDs that the standard lists (SOP classes, transfer syntaxes). What merely begins with
        1.2.840.10008 without being listed is replaced too: digits of one's own can follow (ours). The number is a UUID
        of version 4 in its bits (PS3.5 B.2), though 122 bits of it are keyed instead of random.

        Raises:
            Refusal: empty.
        """
        clean = _clean_uid(uid)
        if clean in _registered():
            return clean
        value = int(self._hash("uid", clean)[:_HEX], 16)
        value = value & ~(0xF << 76) | (4 << 76)  # version
        value = value & ~(0x3 << 62) | (2 << 62)  # variant
        return f"2.25.{value}"

    def shift(self, patient: str, day: date) -> date:
        """`day`, moved back by the patient's own number of days, 1 to 3652: intervals of a patient survive.

        Args:
            patient: a pseudonym from `patient` or `study`.

        Raises:
            ValueError: `patient` is no pseudonym.
            OverflowError: before the year 1.
        """
        offset = int(self._hash("date", _pseudonym(patient)), 16) % _DAYS + 1  # 256 bits: no day is favoured by 1e-73
        return day - timedelta(days=offset)

    def _hash(self, purpose: str, *parts: str) -> str:
        """64 hex digits of the parts, each led by its length, so that no two lists of parts look alike."""
        mac = self._macs[purpose].copy()
        for part in parts:
            data = part.encode("utf-8", "surrogatepass")  # names on disk need not be UTF-8
            mac.update(len(data).to_bytes(8, "big") + data)
        return mac.hexdigest()

    def __repr__(self) -> str:
        return f"Identity(key {self.fingerprint})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("an identity can't be pickled or copied: it holds keys")

    def __copy__(self) -> NoReturn:
        self.__reduce_ex__(2)

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__reduce_ex__(2)


class ContentHash:
    """The keyed hash of a file's bytes: `hex`, 32 digits, and the ids of the samples made from it."""

    __slots__ = ("_identity", "hex")

    def __init__(self, identity: Identity, hex: str) -> None:
        self._identity, self.hex = identity, _pseudonym(hex)

    def sample_id(self, dataset: str, frame: int, copy: int = 0) -> str:
        """See `Identity.sample_id`."""
        return self._identity.sample_id(self.hex, dataset, frame, copy)

    def __repr__(self) -> str:
        return f"ContentHash({self.hex})"


def _pseudonym(text: str) -> str:
    if not _PSEUDONYM.fullmatch(text):
        raise ValueError("not a pseudonym of 32 hex digits")
    return text


def _clean_uid(uid: str) -> str:
    clean = uid.strip(_UID_PADDING)
    if not clean:
        raise Refusal(Reason.NO_IDENTITY, step="header")
    return clean


@cache
def _registered() -> frozenset[str]:
    """The UIDs of PS3.6 annex A; pydicom carries the table."""
    from pydicom.uid import UID_dictionary

    return frozenset(uid for uid in UID_dictionary if uid.startswith("1.2.840.10008."))
