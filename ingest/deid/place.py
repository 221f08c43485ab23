"""Where patients' data may be written on the private side: a folder of the owner's alone, in nothing that is shared.

`private_folder` makes one, or refuses the place; `write_private` puts a file there. Neither follows a link out of it.
"""

import os
import secrets
import stat
from pathlib import Path

from usdata.errors import ConfigError


def private_folder(folder: Path, source: Path | None = None) -> Path:
    """Make `folder` with mode 0700, or see that it has it; its path, links resolved.

    Args:
        folder: where files with patients' data are to lie.
        source: the patients' own files: nothing is written among them, or it would be taken for one of them.

    Raises:
        ConfigError: the place is in a lake, in a git work tree, in a folder that DVC tracks or in the source; is no
            folder; is not the caller's own; or others can look into it.
    """
    place = folder.resolve()
    if source is not None and place.is_relative_to(source.resolve()):
        raise _refuse("lies among the source files")
    for part in (place, *place.parents):
        if (part / "lake.json").exists():
            raise _refuse("lies in a lake, which is copied and shared")
        if (part / ".git").exists():
            raise _refuse("lies in a git work tree, which is pushed")
        if (part / ".dvc").exists() or (part.parent / f"{part.name}.dvc").is_file():
            raise _refuse("lies in a folder that DVC tracks and pushes")
    if place.exists():
        _check_own(place)
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir(mode=0o700, exist_ok=True)
        place.chmod(0o700)  # whatever the umask is
    except OSError as error:
        raise ConfigError(f"Can't make the private folder ({error.strerror}).", step="private", hint=_HINT) from None
    return place


_HINT = "Choose a folder of your own, outside of lakes and repositories, with --out DIR or --area DIR."


def _refuse(why: str) -> ConfigError:
    return ConfigError(f"The folder for patients' data {why}; nothing was written.", step="private", hint=_HINT)


def _check_own(place: Path) -> None:
    found = place.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise _refuse("is no folder")
    if found.st_uid != os.geteuid():
        raise _refuse("belongs to somebody else")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(
            "Others can look into the folder for patients' data; nothing was written.",
            step="private",
            hint="Close it:  chmod 700 DIR      or choose another one with --out DIR.",
        )


def write_private(path: Path, content: bytes) -> None:
    """Put a file of mode 0600 in the place of `path`, whole or not at all; `path.parent` is a `private_folder`.

    Raises:
        ConfigError: it can't be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"Can't write the private file ({error.strerror}).", step="private", hint=_HINT) from None
