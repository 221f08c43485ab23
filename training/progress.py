"""A progress bar on stderr while a run goes on."""

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from training.config import RunConfig


class Progress:
    """Context manager; `update` takes the records that `pretrain` logs. Silent when `quiet` or not on a terminal."""

    def __init__(self, cfg: RunConfig, quiet: bool) -> None:
        self._bar = Bar(
            TextColumn(" ".join(filter(None, (cfg.recipe, cfg.variant, cfg.preset)))),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
            console=Console(stderr=True),
            disable=quiet,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("steps", total=cfg.steps, facts="")
        self._probe = ""

    def update(self, record: dict[str, Any]) -> None:
        """Show the newest loss, speed and probe."""
        if record["kind"] == "probe" and "knn_accuracy" in record:
            self._probe = f"  kNN {record['knn_accuracy']:.3f} (majority {record['majority']:.3f})"
        if record["kind"] == "step":
            loss = record["loss"]
            shown = f"loss {loss:.4g}  {record['images_per_s']:,.0f} images/s" if loss is not None else ""
            self._bar.update(self._task, completed=record["step"], facts=shown + self._probe)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
