"""log.jsonl: one JSON object per line, `kind` first: "step", "probe", "start", "stop".

`step` counts the optimiser steps that are done, so a checkpoint of step 40 goes with the lines up to step 40.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

from training.run_folder import explain_disk
from usdata.files import replacing


def read(path: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of a log, oldest first, or only those of one kind. A torn last line is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            record = json.loads(line)
            if kind is None or record.get("kind") == kind:
                records.append(record)
    return records


class RunLog:
    """Appends to a log; with `keep_to`, first drops what came after that step, and a torn last line.

    A process that is killed between two checkpoints leaves lines of steps that will be done again: they go,
    so that no step stands in the log twice.
    """

    def __init__(self, path: Path, keep_to: int | None = None) -> None:
        if keep_to is None or not path.exists():
            kept = []
        else:
            kept = [record for record in read(path) if record["step"] <= keep_to]
        self._path = path
        with explain_disk(path, step="log"):
            with replacing(path) as file:
                file.write("".join(map(_line, kept)).encode())
            self._file = path.open("a", encoding="utf-8")

    def write(self, kind: str, **values: Any) -> dict[str, Any]:
        """Append one record and return it. Numbers that JSON cannot hold (NaN, infinity) become null."""
        record = {"kind": kind, **{k: _plain(v) for k, v in values.items()}}
        self._file.write(_line(record))
        return record

    def flush(self) -> None:
        """Bring the lines to the disk; the checkpoint that follows relies on them."""
        with explain_disk(self._path, step="log"):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        self._file.close()


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
