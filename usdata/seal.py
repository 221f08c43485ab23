"""A small JSON file that carries the hash of its own content, so that any flipped bit in it is found.

The seal is one more key, `seal`: xxh3_128 of the file as it would be without that key. A file without a seal, written
by an earlier version, is checked for its form only.
"""

import json
from pathlib import Path
from typing import Any

import xxhash

from usdata.errors import LakeError

KEY = "seal"


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """`value` with its seal; an old seal in it is replaced."""
    bare = {key: one for key, one in value.items() if key != KEY}
    return bare | {KEY: xxhash.xxh3_128_hexdigest(_text(bare))}


def read_sealed(path: Path) -> dict[str, Any]:
    """The object in a JSON file that `write_json` wrote, after its form and its seal, if it has one, were checked.

    Raises:
        LakeError: not such a file: one of its bytes is not as it was written.
        OSError: it can't be read.
    """
    text = path.read_bytes()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LakeError("not JSON") from error
    if not isinstance(value, dict):
        raise LakeError("not a JSON object")
    try:
        as_written = _text(value)
    except UnicodeEncodeError as error:
        raise LakeError("half a character in it") from error
    if as_written != text:
        raise LakeError("not in the form in which usdata writes it")
    if KEY in value and seal(value) != value:
        raise LakeError("the content does not match its seal")
    return value


def _text(value: dict[str, Any]) -> bytes:
    """As `files.write_json` writes it."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
