"""What decides the outcome of de-identification, without any secret in it: it travels to other processes."""

from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import xxhash

from ingest.card import Card, card_digest
from ingest.deid.identity import Identity
from ingest.deid.key import Key, load_key
from ingest.deid.templates import load_templates
from usdata.errors import ConfigError

DEID_VERSION = 1  # of the rules, as the catalog stores it; raise it when the same file would come out otherwise
TABLES_VERSION = 1  # of vocab/*.yaml, for people who read the audit; what is built anew `tables_digest` decides
PUBLISHED = "published"  # in place of a key's fingerprint: files that their owner published, no secret protects them


@dataclass(frozen=True, slots=True)
class Rules:
    """How private items are handled in one run.

    Attributes:
        key_file: where every process reads the key itself; None for published files, which have none.
        key_fingerprint: 16 hex digits, so that all processes are sure of the same key.
        issuer: stands in for a patient id's issuer where a file names none.
        templates: the site's own folder of reviewed device templates.
        area: the private area on disk, for audit and temporary files.
        run: 32 hex digits, new in every run; never in the lake.
    """

    key_file: Path | None
    key_fingerprint: str
    issuer: str
    templates: Path | None
    area: Path | None
    run: str

    @classmethod
    def published(cls, card: Card) -> Self:
        """For published DICOM: the same steps with a key that anyone can compute."""
        return cls(None, PUBLISHED, card.name, None, None, "0" * 32)

    @property
    def private(self) -> bool:
        """Whether a secret key protects the items."""
        return self.key_fingerprint != PUBLISHED

    def identity(self) -> Identity:
        """The keyed identity, from the key file as it is now.

        Raises:
            ConfigError: no usable key file, or another key than at the start of the run.
        """
        if not self.private:
            return Identity(Key.published(self.issuer), self.issuer)
        key = load_key(self.key_file)
        if key.fingerprint != self.key_fingerprint:
            raise ConfigError(
                "The key file holds another key than at the start of the run.",
                step="key",
                hint="Put the first key back and run the same command again.",
            )
        return Identity(key, self.issuer)

    def as_json(self) -> dict[str, Any]:
        """As plain words, for the isolated process."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """`as_json` reversed."""
        paths = {k: Path(content[k]) for k in ("key_file", "templates", "area") if content[k] is not None}
        return cls(**content | paths)

    def _issuer_hash(self) -> str:
        """The issuer under the key: a hospital's name could be guessed from a plain hash."""
        return self.identity().source(f"issuer {self.issuer}") if self.private else self.issuer

    def digest(self, card: Card) -> str:
        """xxh3_128 of everything but the source that decides an item's outcome; keyed by nothing, quotes nothing."""
        templates = load_templates(self.templates).digest
        parts = [DEID_VERSION, tables_digest(), self.key_fingerprint, self._issuer_hash(), templates, card_digest(card)]
        parts += decoders()
        return xxhash.xxh3_128_hexdigest("|".join(map(str, parts)).encode())


@cache
def tables_digest() -> str:
    """Hash of the vocabularies: with another word in them, the same file may give another row."""
    tables = sorted(files("ingest").joinpath("deid", "vocab").iterdir(), key=lambda table: table.name)
    return xxhash.xxh3_128_hexdigest(b"".join(t.read_bytes() for t in tables if t.name.endswith(".yaml")))


def decoders() -> list[str]:
    """Which optional decoders are installed: with another set, files that were refused may be read."""
    from importlib.util import find_spec

    return [name for name in ("gdcm", "jpeg_ls", "openjpeg", "rle") if find_spec(name) is not None]
