"""The one secret that all pseudonyms, UIDs and date offsets come from: made, read and held here and nowhere else.

A key file is one line, `usdata-deid-key-1 <64 hex digits>`, that only its owner can read. Who holds it can link the
lake back to the hospital's records, so it never stands in an argument, a message, a log, a pickle or the lake.
Source: anonymization.md I1, I2.
"""

import hashlib
import hmac
import os
import re
import stat
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from usdata.errors import ConfigError

KEY_VARIABLE = "USDATA_DEID_KEY_FILE"
_WORD = "usdata-deid-key-1"
_LINE = re.compile(rf"{_WORD} ([0-9a-fA-F]{{64}})\r?\n?")
_LABEL = b"usdata-deid-1:"
_BYTES = 32
_LONGEST = 256  # bytes of a key file that are looked at; a good one has 83
_MAKE = "Make one, outside of any lake or repository:  usdata deid-key new FILE"


class Key:
    """A secret of 32 bytes that shows only its fingerprint.

    The bytes themselves are not kept: only the state of an HMAC that was started with them, which Python code cannot
    read out. It can be neither pickled nor copied, so it can't travel into a task's parameters, a cache or a log.

    Args:
        secret: 32 random bytes.

    Raises:
        ConfigError: not 32 bytes, or bytes that nobody drew at random. The message never quotes them.
    """

    __slots__ = ("_mac", "fingerprint")

    fingerprint: str  # 16 hex digits: tells whether two runs share a key, and nothing about it

    def __init__(self, secret: bytes) -> None:
        problem = _weakness(secret)
        mac = None if problem else hmac.new(secret, digestmod="sha256")
        del secret  # a traceback that shows local variables has nothing to show
        if mac is None:
            raise ConfigError(f"The key is not usable: {problem}.", step="key", hint=_MAKE)
        self._mac = mac
        self.fingerprint = hmac.new(self.derive("fingerprint"), b"fingerprint", "sha256").hexdigest()[:16]

    @classmethod
    def published(cls, name: str) -> "Key":
        """A key that anybody can compute from `name`: for files that their owner published, which need no secret."""
        return cls(hashlib.sha256(b"usdata published files, no secret: " + name.encode()).digest())

    def derive(self, purpose: str) -> bytes:
        """The sub-key of a purpose, 32 bytes: HMAC-SHA256(secret, "usdata-deid-1:" + purpose).

        Knowing one sub-key, or what was made with it, says nothing about another (I1).
        """
        mac = self._mac.copy()
        mac.update(_LABEL + purpose.encode())
        return mac.digest()

    def __repr__(self) -> str:
        return f"Key({getattr(self, 'fingerprint', 'unusable')})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a key can't be pickled or copied: give its file to whoever needs it")

    def __copy__(self) -> NoReturn:
        self.__reduce_ex__(2)

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__reduce_ex__(2)


def new_key(path: Path) -> None:
    """Make a key file of 32 bytes from the system's source of randomness, mode 0600, and put it on disk for good.

    Raises:
        ConfigError: the file exists, its folder does not or can't be written, or it lies in a lake or in a git or DVC
            work tree, from where it would be shared (ours: also if git ignores it, since that is one line away from
            not being so).
    """
    _refuse_key_as_path(path)
    folder = Path(os.path.realpath(path.parent))
    if not folder.is_dir():
        raise ConfigError(f"There is no folder {path.parent}.", step="key", hint=f"mkdir -m 700 -p {path.parent}")
    if shared := _shared_folder(folder, ("lake.json", ".git", ".dvc")):
        raise ConfigError(
            f"{path} would lie in {shared}: whoever gets a copy of that gets the key.",
            step="key",
            hint="Put it into a folder of your own, outside:  usdata deid-key new ~/usdata-deid.key",
        )
    try:
        _write_new(path)
        _sync_folder(folder)
    except FileExistsError:
        raise ConfigError(
            f"{path} is there already. A key is never overwritten: every pseudonym made with it would be lost.",
            step="key",
            hint=f"See which it is:  usdata deid-key check {path}        or give another name.",
        ) from None
    except OSError as error:
        raise ConfigError(f"Can't write the key file {path}: {error.strerror}.", step="key") from None


def _write_new(path: Path) -> None:
    """Create, fill and sync the file; nothing is left of it when that fails. O_EXCL follows no link."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.fchmod(file, 0o600)  # whatever the umask took away
        line = f"{_WORD} {os.urandom(_BYTES).hex()}\n".encode()
        if os.write(file, line) != len(line):
            raise OSError(28, os.strerror(28))
        os.fsync(file)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(file)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load_key(path: Path | None) -> Key:
    """The key in a file, after checking that nobody else can read or exchange it.

    A link is followed (secret stores mount files as links); what is checked is the file that was opened. The owner
    must be the user that runs this, root being no exception (ours: another owner could put another key there).

    Args:
        path: None takes the path in the environment variable USDATA_DEID_KEY_FILE.

    Raises:
        ConfigError: no path, no such file, not a regular file, another owner, readable or writable by group or others,
            in a lake, not of the format, or not random. No message quotes the file's content.
    """
    path = key_path(path)
    problem, hint, key = _read(path)
    if key is None:
        raise ConfigError(f"The key file {path} {problem}", step="key", hint=hint)
    return key


def key_path(path: Path | None) -> Path:
    """`path`, or the one in the environment variable USDATA_DEID_KEY_FILE. Raises ConfigError if there is none."""
    if path is None:
        value = os.environ.get(KEY_VARIABLE, "")
        if not value:
            raise ConfigError(
                f"Private data needs a key file: give --key-file, or its path in {KEY_VARIABLE}.",
                step="key",
                hint=_MAKE,
            )
        path = Path(value)
    _refuse_key_as_path(path)
    return path


def _refuse_key_as_path(path: Path) -> None:
    """Someone may give the key where its file is asked for; then the path is not shown."""
    if re.search(r"[0-9a-fA-F]{64}", str(path)):
        del path
        raise ConfigError(
            "This looks like a key, not like the path of a key file. If it is one, it is spent: arguments and "
            "variables can be read by others.",
            step="key",
            hint=_MAKE,
        ) from None


def _read(path: Path) -> tuple[str, str | None, Key | None]:
    """(what is wrong, hint, None), or ("", None, the key). Nothing of the content outlives a failure."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not make us wait
    except FileNotFoundError:
        return "does not exist.", _MAKE, None
    except OSError as error:
        return f"can't be read: {error.strerror}.", None, None
    try:
        if found := _unsafe(os.fstat(file), path):
            return *found, None
        line = os.read(file, _LONGEST)
    except OSError as error:
        return f"can't be read: {error.strerror}.", None, None
    finally:
        os.close(file)
    if shared := _shared_folder(Path(os.path.realpath(path)).parent, ("lake.json",)):
        return f"lies in the lake {shared}, where every reader gets it.", f"mv {path} ~/", None
    match = _LINE.fullmatch(line.decode("latin-1"))
    if match is None:
        return f"is no key file: it must hold one line, `{_WORD} <64 hex digits>`.", _MAKE, None
    secret = bytes.fromhex(match[1])
    if weak := _weakness(secret):
        return f"holds no usable key: {weak}.", _MAKE, None
    return "", None, Key(secret)


def _unsafe(found: os.stat_result, path: Path) -> tuple[str, str | None] | None:
    if not stat.S_ISREG(found.st_mode):
        return "is not a regular file.", _MAKE
    if found.st_uid != os.geteuid():
        return "belongs to another user, who could exchange it.", f"Copy it as yourself:  install -m 600 {path} FILE"
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        return f"can be reached by group or others (mode {mode:04o}).", f"chmod 600 {path}"
    return None


def _shared_folder(folder: Path, marks: tuple[str, ...]) -> Path | None:
    """`folder` or the nearest one above it that holds one of `marks`."""
    return next((at for at in _upwards(folder) if any(os.path.lexists(at / mark) for mark in marks)), None)


def _upwards(folder: Path) -> Iterator[Path]:
    yield folder
    yield from folder.parents


def _weakness(secret: bytes) -> str | None:
    """Why these bytes were not drawn at random; None if they may have been.

    Random ones fail with a chance below 1e-13: they have 30 distinct values on average, and one in 10^13 is all
    printable (ours: a typed sentence in hex would be).
    """
    if len(secret) != _BYTES:
        return f"a key has {_BYTES} bytes"
    steps = {(b - a) % 256 for a, b in pairwise(secret)}
    if len(set(secret)) < 16 or len(steps) < 8:
        return "its bytes repeat themselves, they were not drawn at random"
    if all(0x20 <= byte < 0x7F for byte in secret):
        return "it is text, not drawn at random"
    return None
