"""The parent's side of de-identification: hands files to isolated children and takes what may be stored."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ingest.card import Card
from ingest.deid.isolate import PATIENCE, Child, Message
from ingest.deid.reasons import PASSING, Reason, Refusal
from ingest.deid.rows import CLEANED, Rows
from ingest.deid.rules import Rules
from ingest.deid.temporary import temporary_folder
from usdata.schema import IMAGE_SIZE

T = TypeVar("T")
_BYTES_PER_SECOND = 50e6  # of a slow disk: a large file may be silent for longer. Ours


@dataclass(frozen=True, slots=True)
class Examined:
    """What a file's header gives: catalog columns, and the number of frames."""

    row: dict[str, Any]
    frames: int
    fps: float | None
    clip: bool  # several frames


@dataclass(frozen=True, slots=True)
class Kept:
    """One image that may be stored: its row but for the hashes of its pixels, and the pixels (256, 256)."""

    row: dict[str, Any]
    image: NDArray[np.uint8]


class Cleaners:
    """`number` children for as many threads. Use it in a `with`: nothing outlives it."""

    def __init__(self, card: Card, rules: Rules, interpolation: str, number: int = 1) -> None:
        setup = {
            "card": card.model_dump(mode="json", by_alias=True),
            "rules": rules.as_json(),
            "interpolation": interpolation,
        }
        self._exit = ExitStack()
        temp = None if rules.area is None else self._exit.enter_context(temporary_folder(rules.area))
        self._children = [Child(setup, temp) for _ in range(number)]
        self._rows = Rows(card)
        self._free: SimpleQueue[Child] = SimpleQueue()
        for child in self._children:
            self._free.put(child)

    def examine(self, path: Path, relative: str) -> Examined:
        """The header of a file.

        Raises:
            Refusal: with its closed reason.
        """
        return self._twice(lambda: self._examine(path, relative))

    def _examine(self, path: Path, relative: str) -> Examined:
        with self._child() as child:
            *_, last = child.ask("examine", _patience(path), path=str(path.absolute()), relative=relative)
        try:
            found = Examined(**{name: last.content[name] for name in Examined.__slots__})
            self._rows.check(found.row)
        except (KeyError, TypeError, ValueError):
            raise Refusal(Reason.DECODER_DIED, "isolate") from None
        return found

    def clean(
        self, path: Path, relative: str, frames: Sequence[int], rows: Mapping[int, Mapping[str, Any]]
    ) -> tuple[list[Kept], dict[str, int]]:
        """The images of the wanted frames, all of them or none, and the counts of the header's fields.

        Args:
            rows: by frame, the columns known so far; they are part of what is searched for the source's identifiers.

        Raises:
            Refusal: with its closed reason.
        """
        question = {"path": str(path.absolute()), "relative": relative, "frames": list(frames), "rows": rows}
        return self._twice(lambda: self._clean(path, question, rows))

    def _clean(
        self, path: Path, question: dict[str, Any], rows: Mapping[int, Mapping[str, Any]]
    ) -> tuple[list[Kept], dict[str, int]]:
        kept: list[Kept] = []
        with self._child() as child:
            messages = list(child.ask("clean", _patience(path), **question))
        try:
            for message, frame in zip(messages[:-1], question["frames"], strict=True):
                found = {name: message.content["row"][name] for name in CLEANED if name in message.content["row"]}
                self._rows.check(found)
                kept.append(Kept({**rows[frame], **found}, _image(message)))
            counts = {str(name): int(number) for name, number in messages[-1].content["counts"].items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise Refusal(Reason.DECODER_DIED, "isolate") from None
        return kept, counts

    def _twice(self, work: Callable[[], T]) -> T:
        """The result of a task; where the machine's state may be to blame for its failure, that of a second try."""
        try:
            return work()
        except Refusal as refusal:
            if Reason(refusal.reason) not in PASSING:
                raise
        return work()

    def decide(self, path: Path, relative: str) -> tuple[dict[str, Any], dict[str, NDArray[np.uint8]]]:
        """A file's verdict and pictures for review: see `ingest.deid.item.answer_decide`."""
        pictures: dict[str, NDArray[np.uint8]] = {}
        with self._child() as child:
            for message in child.ask("decide", _patience(path), path=str(path.absolute()), relative=relative):
                if message.kind == "sample":
                    shape = message.content["shape"]
                    pictures[message.content["picture"]] = np.frombuffer(message.blob, np.uint8).reshape(shape)
        return message.content, pictures

    @contextmanager
    def _child(self) -> Iterator[Child]:
        child = self._free.get()
        try:
            yield child
        finally:
            self._free.put(child)

    def __enter__(self) -> "Cleaners":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            child.__exit__(kind, error, trace)
        self._exit.close()


def _image(message: Message) -> NDArray[np.uint8]:
    return np.frombuffer(message.blob, np.uint8).reshape(IMAGE_SIZE, IMAGE_SIZE)


def _patience(path: Path) -> float:
    """Seconds without a sign of life that are granted for a file.

    Raises:
        Refusal: the file is gone.
    """
    try:
        return PATIENCE + path.stat().st_size / _BYTES_PER_SECOND
    except OSError:
        raise Refusal(Reason.MISSING, "read") from None
