"""The log's numbers in TensorBoard, where it is installed; never needed: log.jsonl has all of them."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from training.config import RunConfig
from usdata.errors import ConfigError


class Board:
    """Writes each number of a log record as a curve: "step/loss", "probe/effective_rank"."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # what a killed process wrote after its last checkpoint is hidden: those steps are done again
        self._writer: Any = SummaryWriter(str(folder), purge_step=first_step)

    def write(self, record: dict[str, Any]) -> None:
        """Add the numbers of a record at its step."""
        if record["kind"] not in ("step", "probe"):
            return
        for name, value in record.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def close(self) -> None:
        """Bring everything to the disk."""
        self._writer.close()


def open_board(cfg: RunConfig, out: Path, first_step: int) -> Board | None:
    """A board in OUT/tensorboard, or None where the config does not want one.

    Raises:
        ConfigError: `tensorboard` is true, and the package is not installed.
    """
    there = find_spec("tensorboard") is not None
    if cfg.tensorboard is True and not there:
        raise ConfigError(
            "TensorBoard is not installed.",
            hint="pip install tensorboard   or leave it out: --set tensorboard=auto; log.jsonl has the same numbers.",
        )
    return Board(out / "tensorboard", first_step) if cfg.tensorboard is not False and there else None
