"""`usdata fetch`: a data set's files, from its card's sources into a folder that `usdata ingest` reads.

Read `fetch` first. What a source can't give over HTTP is told as steps for a person; what the person then puts into the
folder is checked and unpacked in the same way. `ingest.fetch_record` says how the folder looks.
"""

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ingest.card import Card
from ingest.card_parts import Source
from ingest.fetch_answer import Patience, Progress, Say, measure, no_progress, no_words
from ingest.fetch_http import Download
from ingest.fetch_place import link, merge, only_fetch
from ingest.fetch_record import (
    ARCHIVES,
    DEFAULT,
    FILES,
    RECORD,
    Loaded,
    Record,
    count_files,
    fetch_command,
    read_record,
    write_record,
)
from ingest.fetch_terms import accept_terms as check_terms
from ingest.fetch_wanted import name_of, wanted_files
from ingest.fetch_words import clone_of, instructions
from ingest.unpack import unpack
from ingest.unpack_kinds import by_hand, is_archive_name, kind_of, read_head
from usdata.errors import CardError, DataError
from usdata.files import explain_os_errors, make_folder

BY_HAND = "by hand"
_OURS = {RECORD, FILES, ARCHIVES}


@dataclass(frozen=True, slots=True)
class FetchReport:
    """The outcome of a fetch, for people and for machines."""

    dataset: str
    folder: Path
    complete: bool  # all is there: an ingest can read it
    files: int = 0
    bytes: int = 0
    loaded: list[str] = field(default_factory=list)  # names that came over the network in this run
    taken: list[str] = field(default_factory=list)  # names, and parts, that a person had put there
    instructions: str | None = None  # what a person must do, if it is not complete


def fetch(
    card: Card,
    dest: Path = DEFAULT,
    *,
    accept_terms: Sequence[str] = (),
    accept_bytes: Sequence[str] = (),
    keep_archive: bool = False,
    again: bool = False,
    patience: Patience | None = None,
    progress: Progress = no_progress,
    say: Say = no_words,
) -> FetchReport:
    """Bring a data set's files to `dest/<name>/files`, or say how to get them; what is there is not loaded again.

    It can be stopped at any time, also by `kill -9` or a power cut: the next call goes on from there.

    Args:
        dest: folder above the data set's own.
        accept_terms: names of data sets whose terms the user accepts; see `ingest.fetch_terms`.
        accept_bytes: sha256s of files that may replace those which an earlier fetch met.
        keep_archive: do not remove downloaded archives once they are unpacked.
        again: load everything anew.
        progress: called with (file, bytes done, bytes in all).
        say: called with each failure and each thing that a user should know.

    Raises:
        CardError: generated or private data; terms that were not accepted; two sources of one name.
        DataError: steps fetch and unpack; reasons not_loaded, changed_bytes, bad_checksum, no_space, busy,
            incomplete (files are gone that were there), clash, and those of `ingest.unpack.unpack`.
        LakeError: the folder can't be written.
    """
    _refuse_what_is_not_fetched(card)
    folder = dest / card.name
    with (
        explain_os_errors(folder, dataset=card.name, step="fetch", elsewhere="with --to DIR"),
        only_fetch(card, folder),
    ):
        record = read_record(folder) or Record(dataset=card.name)
        command = f"{fetch_command(card.name, folder)} --accept-terms {card.name}"
        accepted = check_terms(card, accept_terms, command=command, before=record.terms)
        if accepted and accepted.by != "earlier":
            record = record.model_copy(update={"terms": accepted.digest, "terms_by": accepted.by})
            write_record(folder, record)
            say(f"{card.name}: its terms are accepted ({accepted.by}); written into {folder / RECORD}")
        run = _Fetch(card, folder, record, frozenset(accept_bytes), keep_archive, patience or Patience(), progress, say)
        return run.run(again)


def default_source(card: Card, dest: Path = DEFAULT) -> Path | None:
    """The folder `dest/<name>`, if `usdata fetch` was there: what an ingest without --from reads.

    Returns:
        None for data that is generated or private.

    Raises:
        CardError: nothing was fetched; the message says how to.
        DataError: the folder has a damaged record.
    """
    if card.generator or card.layout is None or card.deid_profile == "private":
        return None
    folder = dest / card.name
    if read_record(folder):
        return folder
    raise CardError(
        f"Where are the files of {card.name!r}? None were fetched into {folder}.",
        dataset=card.name,
        step="list",
        hint=f"Get them:  usdata fetch {card.name}        Already there?  usdata ingest {card.name} --from PATH",
    )


def _refuse_what_is_not_fetched(card: Card) -> None:
    if card.generator:
        raise CardError(
            f"{card.name} is drawn by a program: there is nothing to fetch.",
            dataset=card.name,
            step="fetch",
            hint=f"usdata ingest {card.name}",
        )
    if card.deid_profile == "private":
        raise CardError("Patients' own files are not fetched.", dataset=card.name, hint="See docs/private.md.")


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A file that is here and checked, and not in its place yet."""

    source: Source
    path: Path
    size: int
    sha256: str
    url: str | None = None  # None: it did not come over the network in this run
    ours: bool = False  # a person's own archive is not ours to remove


@dataclass(slots=True)
class _Fetch:
    """One fetch under way: the record grows with every file that is in its place."""

    card: Card
    folder: Path
    record: Record
    accept_bytes: frozenset[str]
    keep_archive: bool
    patience: Patience
    progress: Progress
    say: Say
    loaded: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)  # unpacking that only a person can do

    def run(self, again: bool) -> FetchReport:
        if self.record.complete and not again and self._all_known():
            self._refuse_gaps()
            return self._report()
        if again:
            self._refuse_loss()
        arrived = self._load_all(again)
        self._save(complete=False)
        if again:
            self._clear()
        shutil.rmtree(self._temporary, ignore_errors=True)  # of a run that was killed
        for arrival in arrived:
            self._place(arrival)
        missing = [part for part in self._parts_by_hand() if not self._take_part(part)]
        if missing or self.steps:
            return self._report(self._instructions(missing))
        os.sync()  # ours: once for all files, instead of once for each of perhaps millions
        files, size = count_files(self.files)
        self._save(complete=True, files=files, bytes=size)
        if not self.keep_archive:
            shutil.rmtree(self.archives, ignore_errors=True)
        return self._report()

    @property
    def files(self) -> Path:
        return self.folder / FILES

    @property
    def archives(self) -> Path:
        return self.folder / ARCHIVES

    @property
    def _command(self) -> str:
        return fetch_command(self.card.name, self.folder)

    @property
    def _temporary(self) -> Path:
        return self.folder / ".unpacking"

    def _save(self, **changes: object) -> None:
        self.record = self.record.model_copy(update=changes)
        write_record(self.folder, self.record)

    def _report(self, steps: str | None = None) -> FetchReport:
        done = self.record
        return FetchReport(
            self.card.name, self.folder, done.complete, done.files, done.bytes, self.loaded, self.taken, steps
        )

    def _all_known(self) -> bool:
        """Whether the record is of this card's sources: a new version of a card can name others."""
        known = {one.source for one in self.record.sources.values() if one.in_place}
        return {source.url for source in self.card.sources if source.url} <= known

    def _refuse_gaps(self) -> None:
        files, size = count_files(self.files) if self.files.is_dir() else (0, 0)
        if files < self.record.files or size < self.record.bytes:
            raise DataError(
                "incomplete",
                f"{self.files} has lost something: {files} files with {size} bytes are left of {self.record.files} "
                f"with {self.record.bytes}.",
                dataset=self.card.name,
                step="fetch",
                hint=f"{self._command} --again",
            )

    def _refuse_loss(self) -> None:
        if self.record.by_hand and self.files.is_dir():
            raise DataError(
                "clash",
                f"{self.files} holds files that you put there; fetching again would remove them.",
                dataset=self.card.name,
                step="fetch",
                hint=f"Move them away first:  mv {self.files} {self.folder}-before",
            )

    def _clear(self) -> None:
        """Before everything is put in place anew."""
        sources = {name: one.model_copy(update={"in_place": False}) for name, one in self.record.sources.items()}
        self._save(sources=sources)
        shutil.rmtree(self.files, ignore_errors=True)

    # --- over the network -------------------------------------------------------------------------------------------

    def _load_all(self, again: bool) -> list[_Arrival]:
        """Every file of the sources with an address that is not in place yet."""
        arrived: list[_Arrival] = []
        for source in self.card.sources:
            if not source.url:
                continue
            name = name_of(source, self.card.name)
            if name and self._is_in_place(source, name) and not again:
                continue
            if name and (self.folder / name).is_file():  # a person put it there
                arrived.append(_Arrival(source, self.folder / name, *self._checked(source, self.folder / name)))
                self.taken.append(name)
                continue
            arrived += self._load(source, again)
        for name, count in Counter(one.path.name for one in arrived).items():
            if count > 1:
                raise CardError(
                    f"Two sources bring a file {name!r}.",
                    dataset=self.card.name,
                    step="fetch",
                    hint="Give each an `archive` of its own in the card.",
                )
        return arrived

    def _is_in_place(self, source: Source, name: str) -> bool:
        before = self.record.sources.get(name)
        return before is not None and before.in_place and before.source == source.url

    def _load(self, source: Source, again: bool) -> list[_Arrival]:
        """The files of one source over the network, or why not and what to type."""
        download, arrived = None, []
        try:
            for wanted in wanted_files(source, self.record, self.accept_bytes, self.patience):
                if self._is_in_place(source, wanted.name) and not again:
                    continue
                make_folder(self.archives)
                download = Download(wanted, self.archives, self.patience, self.progress, self.say)
                came = download.run(anew=again)
                self.loaded += [wanted.name] if came.url else []
                arrived.append(_Arrival(source, came.path, came.size, came.sha256, came.url, ours=True))
        except DataError as error:
            hint = error.hint
            if error.reason == "changed_bytes" and download:
                hint = f"When you have found out that the new file is right:  {self._command} "
                hint += f"{'--again ' if again else ''}--accept-bytes {download.newest}"
            elif error.reason == "not_loaded":
                name = download.wanted.name if download else name_of(source, self.card.name)
                hint = f"Later:  {self._command}        goes on from what has come so far"
                hint += f"\n  Or by hand: load {name or 'its files'} from {source.page or source.url}"
                hint += f", put it into {self.folder}/, and then:  {self._command}" if name else ""
            raise DataError(error.reason, error.message, dataset=self.card.name, step="fetch", hint=hint) from error
        return arrived

    # --- by a person ------------------------------------------------------------------------------------------------

    def _parts_by_hand(self) -> list[str]:
        """The parts of the card that no address gives, in its order."""
        parts = dict.fromkeys(source.part for source in self.card.sources) or {"files": None}
        return [part for part in parts if not any(s.url for s in self.card.sources if s.part == part)]

    def _take_part(self, part: str) -> bool:
        """Take in what a person put there for a part; False if there is nothing."""
        ways = [source for source in self.card.sources if source.part == part] or [Source()]
        named = [source for source in ways if source.archive and (self.folder / source.archive).is_file()]
        for source in named:
            self._take_archive(source, str(source.archive))
        if named and not self._has_whole_way(ways):
            return False
        anonymous = [source for source in ways if not source.archive and source.how != "git"]
        strangers = self._strangers() if anonymous and not named else []
        for name in strangers:
            self._take_archive(anonymous[0], name)
        if named or strangers:
            return True
        if part in self.record.by_hand or self._has_more_than_ours(ways):
            self._save(by_hand=tuple(dict.fromkeys((*self.record.by_hand, part))))
            self.taken.append(part)
            return True
        return False

    def _has_whole_way(self, ways: Sequence[Source]) -> bool:
        """Whether all archives that one page gives are there; other pages are other ways to the same files."""
        pages: dict[str | None, list[str]] = {}
        for source in ways:
            if source.archive:
                pages.setdefault(source.page, []).append(source.archive)
        return any(all((self.folder / name).is_file() for name in names) for names in pages.values())

    def _strangers(self) -> list[str]:
        """Archives that lie in the folder under names that the card does not give."""
        named = {name_of(s, self.card.name) if s.url else s.archive for s in self.card.sources}
        return sorted(
            path.name
            for path in self.folder.iterdir()
            if path.is_file() and path.name not in named | _OURS and not path.name.startswith(".")
            if is_archive_name(path.name)
        )

    def _has_more_than_ours(self, ways: Sequence[Source]) -> bool:
        """Whether a person put files into `files`: more are there than the archives brought."""
        if not self.files.is_dir():
            return False
        clones = [(source.part, clone_of(source, self.files / source.into)) for source in self.card.sources]
        there = [(part, clone) for part, clone in clones if clone and clone.is_dir()]
        if any(part == ways[0].part for part, _ in there):
            return True
        ours = sum(one.files for one in self.record.sources.values() if one.in_place)
        ours += sum(count_files(clone)[0] for _, clone in there)
        own = any((self.files / source.into).is_dir() for source in ways)
        return own and count_files(self.files)[0] > ours

    def _take_archive(self, source: Source, name: str) -> None:
        arrival = _Arrival(source, self.folder / name, *self._checked(source, self.folder / name))
        before = self.record.sources.get(name)
        if before and before.in_place and before.sha256 == arrival.sha256:
            return
        self._place(arrival)
        self.taken.append(name)

    def _checked(self, source: Source, path: Path) -> tuple[int, str]:
        """Size and sha256 of a file that a person put there, if it is the one that the card means."""
        size, sha256, md5 = measure(path, source.md5 is not None)
        expected = (("size", size, source.size), ("sha256", sha256, source.sha256), ("md5", md5, source.md5))
        for what, found, right in expected:
            if right is not None and found != right:
                raise DataError(
                    "bad_checksum",
                    f"{path} is not the file that the card means: its {what} is {found}, not {right}.",
                    dataset=self.card.name,
                    step="fetch",
                    hint=f"Download it again; or, if there is a new version, correct the card's {what}.",
                )
        before = self.record.sources.get(path.name)
        known = source.sha256 or source.md5
        if before and before.sha256 != sha256 and not known and sha256 not in self.accept_bytes:
            raise DataError(
                "changed_bytes",
                f"{path} has other bytes than when it was first taken: sha256 {sha256} instead of {before.sha256}.",
                dataset=self.card.name,
                step="fetch",
                hint=f"If the new one is right:  {self._command} --accept-bytes {sha256}",
            )
        return size, sha256

    def _instructions(self, missing: Sequence[str]) -> str:
        told = [instructions(self.card, missing, self.folder, self._strangers())] if missing else []
        return "\n".join([*self.steps, *told])

    # --- into place -------------------------------------------------------------------------------------------------

    def _place(self, arrival: _Arrival) -> None:
        """Unpack one file, or put it as it is, below `files`; then write it down, then remove it if it is ours."""
        source, path = arrival.source, arrival.path
        target = self.files if source.into == "." else self.files / source.into
        self._temporary.mkdir()
        try:
            count = self._unpacked(source, path, target)
            if count is None:
                return
            make_folder(target)
            merge(self._temporary, target, self.card.name, path.name)
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)
        loaded = Loaded(
            source=source.url or BY_HAND, url=arrival.url, size=arrival.size, sha256=arrival.sha256, files=count
        )
        self._save(sources=self.record.sources | {path.name: loaded})
        if arrival.ours and not self.keep_archive:
            path.unlink()

    def _unpacked(self, source: Source, path: Path, target: Path) -> int | None:
        """Unpack, or link, into the temporary folder: how many files; None if only a person can unpack it."""
        archive = is_archive_name(path.name) if source.unpack is None else source.unpack
        if not archive:
            link(path, self._temporary / path.name)
            return 1
        try:
            return unpack(path, self._temporary, names=source.names, nested=source.nested)
        except DataError as error:
            if error.reason == "unsupported":
                return self._unpacked_by_hand(path, target, error)
            command = f"rm {path}  and then  {self._command}"
            hint = f"If it was damaged on its way:  {command}"
            if error.reason == "missing":
                hint = error.hint or hint
            elif error.reason == "no_space":
                hint = "Free some space and run the same command again; or choose another place with --to DIR."
            raise DataError(error.reason, error.message, dataset=self.card.name, step=error.step, hint=hint) from error

    def _unpacked_by_hand(self, path: Path, target: Path, error: DataError) -> int | None:
        """How many files a person has unpacked from a foreign archive; None if none, and the command is told."""
        ours = sum(one.files for one in self.record.sources.values() if one.in_place)
        if target.is_dir() and any(target.iterdir()) and count_files(self.files)[0] > ours:
            self._save(by_hand=tuple(dict.fromkeys((*self.record.by_hand, path.name))))
            self.taken.append(path.name)
            return count_files(self.files)[0] - ours
        kind = kind_of(read_head(path))
        command = by_hand(path, target, "method" if kind in (None, "cut zip") else kind)
        lines = [f"{self.card.name}: {error.message}", "Unpack it with its own program, and then take it in:"]
        self.steps += [
            *lines,
            f"  {command or f'unpack {path} into {target}/'}",
            f"  {self._command}",
        ]
        return None
