"""The one training loop, for every recipe: read `_Trainer.train_step` first.

It knows of a recipe only what `training.recipes.registry.Recipe` lists. A step never waits for the device: what it
measures is collected there and fetched every `log_every` steps, and a number that is not finite blocks every later
update on the device itself, so the weights are still good when the guard looks.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training import checkpoint, model_card
from training.accumulate import Piece, placed, surveyed
from training.board import open_board
from training.config import RunConfig, cures
from training.data import Feed, conditions, generator, merged, rows
from training.distributed import World, explain_lost_ranks, world
from training.measure import Measured, Meter, Reading
from training.memory import explain_no_memory
from training.optimisers import Optimisers
from training.precision import uses_bf16
from training.runlog import RunLog
from training.signals import LATE, REASONS, Signals, stop_signals
from training.start import check_sizes, facts, prepare
from training.watch import Watch
from training.wrapping import compiles, kept_buffers, wrapped
from usdata.batch import to_device
from usdata.errors import UsdataError


@dataclass(frozen=True)
class RunResult:
    """How a call of `pretrain` ended.

    `stopped` is "" when all steps are done, else "SIGTERM", "SIGINT" or "max-hours"; `last` is the last step's log
    record, `probe` the last probe's; `seconds` is the time this call took.
    """

    out: Path
    step: int
    steps: int
    stopped: str
    seconds: float
    last: dict[str, Any] = field(default_factory=dict)
    probe: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """True when every step is done."""
        return self.step >= self.steps

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return {**asdict(self), "out": str(self.out), "finished": self.finished}


def pretrain(
    cohort: Any,
    cfg: RunConfig,
    out: Path | str,
    *,
    resume: bool = False,
    max_hours: float | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> RunResult:
    """Train a recipe on a cohort and leave weights, log and exact state in `out`.

    Under torchrun every rank makes this call; the first writes. SIGTERM, SIGINT and `max_hours` end it after the
    step under way, with a checkpoint; repeat the call with `resume=True` to go on as if nothing had happened.

    Args:
        cohort: a `usdata.Cohort`.
        cfg: the resolved config.
        out: a new or empty directory, or with `resume` that of the same run.
        max_hours: stop after so many hours of this call.
        progress: called on the first rank with each log record, as it is written.

    Raises:
        ConfigError: too few images, sizes that do not divide, a directory in use, or `resume` of another run.
        UsdataError: a loss or gradient that is not finite (a checkpoint of the step before is left), damaged files, or
            another rank that died or stopped answering.
        LakeError: `out` can't be written.
    """
    started, out = time.monotonic(), Path(out)
    with world(cfg.device, cfg.rank_timeout) as peers, stop_signals() as signals, explain_lost_ranks(peers, out):
        check_sizes(cohort, cfg, peers)
        state = prepare(out, cfg, cohort, peers, resume)
        trainer = _Trainer(cohort, cfg, out, peers, state, progress)
        try:
            stopped = trainer.run(signals, None if max_hours is None else started + 3600 * max_hours)
        finally:
            trainer.close()
    return RunResult(
        out, trainer.step, cfg.steps, stopped, time.monotonic() - started, trainer.last, trainer.watch.last_probe
    )


class _Trainer:
    def __init__(
        self,
        cohort: Any,
        cfg: RunConfig,
        out: Path,
        peers: World,
        state: dict[str, Any] | None,
        progress: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.cfg, self.out, self.peers, self.progress = cfg, out, peers, progress
        self.step, self.last = 0, dict[str, Any]()
        self.recipe = checkpoint.build(cfg).to(peers.device).train()
        self.facts = {**facts(cohort), **checkpoint.own_facts(self.recipe)}
        self.optimisers = Optimisers(self.recipe, cfg, peers)
        self.moving = _Moving(self.recipe, self.optimisers)
        columns = tuple(getattr(self.recipe, "columns", ()))
        self.feed = _feed(cohort, cfg, peers, columns)
        if state is not None:
            self._restore(state)
        self.module: Any = wrapped(self.recipe, cfg, peers, len(self.optimisers.by_name))
        self.bf16 = uses_bf16(cfg, peers.device)
        self.several_backward = compiles(cfg, peers.device) and len(self.optimisers.by_name) > 1
        self.watch = peers.first_does(lambda: Watch(cohort, cfg, out, peers, columns)) or Watch(cohort, cfg, out, peers)
        self.log = RunLog(out / "log.jsonl", keep_to=None if state is None else self.step) if peers.first else None
        self.board = open_board(cfg, out, self.step + 1) if peers.first else None
        self.meter = Meter(peers, cfg.batch_size, self.feed)

    # --- the loop ---------------------------------------------------------------------------------------------------

    def run(self, signals: Signals, deadline: float | None) -> str:
        """Train until the last step or a reason to stop, which it returns."""
        cfg, stopped = self.cfg, 0
        self._write("start", device=str(self.peers.device), ranks=self.peers.size, torch=torch.__version__)
        if self.step == 0:
            self._look(first=True)
        saved = self.step if self.step else -1
        while self.step < cfg.steps and not stopped:
            self.train_step()
            last = self.step == cfg.steps
            if last or self.step % cfg.log_every == 0:
                self.flush()
            if self.peers.size == 1 or self.step % cfg.log_every == 0:  # ranks must agree on the step to stop at
                late = deadline is not None and time.monotonic() > deadline
                stopped = 0 if last else self.peers.highest(signals.caught or (LATE if late else 0))
            self._look(final=last)
            if last or stopped or self.step % cfg.checkpoint_every == 0:
                self.save()
                saved = self.step
        if saved != self.step:
            self.save()
        self._write("stop", reason=REASONS[stopped] or "finished")
        if self.log is not None:
            self.log.flush()
            model_card.refresh(self.out)
        return REASONS[stopped]

    def train_step(self) -> None:
        """One optimiser step: the mean gradient over the global batch, whatever it is cut into."""
        cfg, peers = self.cfg, self.peers
        data = self.feed.state_dict()
        images, columns = self.feed.next()  # (batch / ranks, 1, 256, 256)
        known = conditions(self.recipe, columns, len(images))
        draws = self.recipe.draw(cfg.batch_size, generator("draw", cfg.seed, self.step))
        first = peers.rank * len(images)  # this rank's images are these rows of the global batch
        draws = merged(rows(draws, first, first + len(images)), known)
        rates = self.optimisers.set_rates(self.step)
        self.moving.keep()
        whole = self._survey(images, draws)
        total: dict[str, Tensor] = {}
        for cut in self._cuts(images):
            given = {**rows(draws, cut.start, cut.stop), **placed(whole, first + cut.start, cut.stop - cut.start)}
            terms = self._forward_backward(images[cut], given, last=cut.stop == len(images))
            total = {name: total[name] + value if total else value for name, value in terms.items()}
        values = self.optimisers.update(torch.stack(list(total.values())))
        self.step += 1
        if hasattr(self.recipe, "after_step"):
            self.recipe.after_step(self.step / cfg.steps)
            self.moving.give_back(self.optimisers.blocked)
        names = [*self.optimisers.norms, *total]
        self.meter.pending.append(Measured(self.step, self.feed.epoch, rates, names, values, data))

    def _cuts(self, images: Tensor) -> list[slice]:
        micro = len(images) // self.cfg.accumulate
        return [slice(start, start + micro) for start in range(0, len(images), micro)]

    def _survey(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """What losses across the batch must know of all its pieces; {} where there is one, or no such loss."""
        if self.cfg.accumulate == 1:
            return {}
        cuts = self._cuts(images)
        with explain_no_memory(cuts[0].stop, self.cfg, self.step + 1), self._autocast():
            pieces = (self._on_device(images[cut], rows(draws, cut.start, cut.stop)) for cut in cuts)
            return surveyed(self.recipe, pieces)

    def _forward_backward(self, images: Tensor, draws: dict[str, Tensor], *, last: bool) -> dict[str, Tensor]:
        share = 1 / self.cfg.accumulate
        wait = nullcontext() if last or self.peers.size == 1 else self.module.no_sync()
        with explain_no_memory(len(images), self.cfg, self.step + 1), wait, kept_buffers(self.several_backward):
            with self._autocast():
                terms = self.module(*self._on_device(images, draws))
            self.optimisers.backward(terms, share)
        return {name: value.detach().float() * share for name, value in terms.items()}

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.peers.device.type, torch.bfloat16, enabled=self.bf16)

    def _on_device(self, images: Tensor, draws: dict[str, Tensor]) -> Piece:
        device = self.peers.device
        moved = {name: value.to(device, non_blocking=True) for name, value in draws.items()}
        return to_device(images, device), moved

    # --- what is measured -------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Fetch what the steps since the last flush measured, log it, and stop the run if a number is not finite."""
        for reading in self.meter.fetch():
            if reading.wrong:
                self._refuse(reading)
            self.last = self._write("step", **reading.record())

    def _refuse(self, reading: Reading) -> None:
        """Leave a checkpoint of the step before, and say what went wrong."""
        step, wrong = reading.measured.step, reading.wrong
        self._write("stop", step=step - 1, reason="not finite", terms={name: str(wrong[name]) for name in wrong})
        self.step = step - 1
        self.save(data=reading.measured.data, stopped=checkpoint.NOT_FINITE)
        raise UsdataError(
            f"Step {step}: {', '.join(f'{name} is {value}' for name, value in wrong.items())}.",
            step=f"train step {step}",
            hint=f"The weights of step {self.step} are in {self.out}. Go on from there with a lower rate, or with more "
            f"clipping:  {cures(self.cfg, wrong)}",
        )

    def _look(self, first: bool = False, final: bool = False) -> None:
        """Probe and pictures, when they are due; they change nothing."""
        if self.watch.due(self.step, first, final):
            self.flush()
            found = self.peers.first_does(lambda: self.watch.look(self.recipe, self.step, first, final))
            if found:
                self._write("probe", **found)
            self.meter.restart()

    def _write(self, kind: str, **values: Any) -> dict[str, Any]:
        values.setdefault("step", self.step)
        if self.log is None:
            return values
        record = self.log.write(kind, **values)
        if self.board is not None:
            self.board.write(record)
        if self.progress is not None:
            self.progress(record)
        return record

    # --- the state --------------------------------------------------------------------------------------------------

    def save(self, data: dict[str, Any] | None = None, stopped: str = "") -> None:
        """Log, weights, then the state, which makes the rest count."""
        self.flush()
        self.peers.first_does(lambda: self._save(self.feed.state_dict() if data is None else data, stopped))
        self.meter.restart()

    def _save(self, data: dict[str, Any], stopped: str) -> None:
        assert self.log is not None
        self.log.flush()
        known = {**self.facts, "steps": str(self.step)}
        checkpoint.save_recipe(self.recipe, self.cfg, self.out, known)
        checkpoint.export_encoder(self.recipe, self.cfg, self.out, known)
        checkpoint.save_state(
            self.out / "checkpoint" / "last.pt",
            {
                "step": self.step,
                "stopped": stopped,
                "config": self.cfg.model_dump(mode="json"),
                **self.facts,
                "model": self.recipe.state_dict(),
                "optimisers": self.optimisers.state_dict(),
                "data": data,
            },
        )

    def _restore(self, state: dict[str, Any]) -> None:
        checkpoint.refuse_other_facts(self.recipe, state, self.out / "checkpoint" / "last.pt")
        self.step = int(state["step"])
        self.recipe.load_state_dict(state["model"], strict=True)
        self.optimisers.load_state_dict(state["optimisers"])
        self.feed.load_state_dict(state["data"])

    def close(self) -> None:
        """Close the log."""
        if self.log is not None:
            self.log.close()
        if self.board is not None:
            self.board.close()


class _Moving:
    """What `step` and `after_step` change by themselves: buffers, and parameters of no optimiser (an EMA teacher).

    The optimisers hold back their own parameters when a number is not finite; these are put back instead. Recipes
    without `after_step` have none.
    """

    def __init__(self, recipe: Any, optimisers: Optimisers) -> None:
        owned = {id(p) for params in optimisers.params.values() for p in params}
        state = recipe.state_dict(keep_vars=True) if hasattr(recipe, "after_step") else {}
        self.tensors = [value.detach() for value in state.values() if id(value) not in owned]
        self.kept = [torch.empty_like(value) for value in self.tensors]

    def keep(self) -> None:
        """Remember the values before a step."""
        for kept, value in zip(self.kept, self.tensors, strict=True):
            kept.copy_(value)

    def give_back(self, blocked: Tensor) -> None:
        """Undo what the step changed, where `blocked` is 1; without waiting for the device."""
        for kept, value in zip(self.kept, self.tensors, strict=True):
            value.copy_(torch.where(blocked > 0, kept, value))


def _feed(cohort: Any, cfg: RunConfig, peers: World, columns: tuple[str, ...]) -> Feed:
    per_rank = cfg.batch_size // peers.size
    epoch_size = cohort.rows if cfg.epoch_size is None else cfg.epoch_size
    if cfg.gamma is None:  # whole batches only; the rest of a pass comes first in the next epoch
        epoch_size -= epoch_size % cfg.batch_size
    loader = cohort.loader(
        batch_size=per_rank,
        gamma=cfg.gamma,
        by=cfg.by,
        seed=cfg.seed,
        epoch_size=epoch_size,
        workers=cfg.workers,
        rank=peers.rank,
        world=peers.size,
        columns=columns,
        streaming={"window": cfg.stream_window, "split": cfg.stream_split},
    )
    return Feed(loader, per_rank, columns)
