"""The failures a user is expected to meet, each telling what happened, where, and what to type next."""

import copyreg
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class UsdataError(Exception):
    """An expected failure: the command line prints it without a traceback and exits with 1.

    Args:
        message: what happened, one sentence.
        dataset: name of the data set it happened in, if there is one.
        item: the file or sample, as the source names it (for private data only an opaque key).
        step: the stage of the work: list, read, mask, preprocess, write, commit, query, ...
        hint: what to do next, usually a command.
    """

    def __init__(
        self,
        message: str,
        *,
        dataset: str | None = None,
        item: str | None = None,
        step: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.dataset, self.item, self.step, self.hint = message, dataset, item, step, hint

    def __reduce__(self) -> tuple[Any, ...]:
        """Worker processes hand errors over by pickle: keep every attribute, whatever a constructor takes."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]

    def __str__(self) -> str:
        place = [("dataset", self.dataset), ("item", self.item), ("step", self.step)]
        known = ", ".join(f"{name}={value}" for name, value in place if value)
        text = f"{self.message} [{known}]" if known else self.message
        return f"{text}\n  {self.hint}" if self.hint else text


class LakeError(UsdataError):
    """The lake on disk is missing, damaged, locked, of a newer format, or can't be written."""


class CardError(UsdataError):
    """A data set's card is wrong, or does not fit the files it was given."""


class DataError(UsdataError):
    """A source file can't be used; `reason` is the word that the quarantine table stores."""

    def __init__(self, reason: str, message: str, **place: str | None) -> None:
        super().__init__(message, **place)
        self.reason = reason


class QueryError(UsdataError):
    """A SQL query or cohort expression was refused or failed."""


class ConfigError(UsdataError):
    """A setting has an unknown name or a value that makes no sense."""


def nearest(word: str, words: Iterable[str]) -> str:
    """` Did you mean 'busi'?` (with the leading blank), or an empty string when nothing is near.

    >>> nearest("bussi", ["busi", "hc18"])
    " Did you mean 'busi'?"
    """
    close = get_close_matches(word.lower(), sorted(words), n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(w) for w in close)}?" if close else ""


def describe(error: BaseException) -> str:
    """One line on an error: its words, or its class where it has none."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
