"""The one training loop, for every recipe: read `_Trainer.train_step` first.

It knows of a recipe only `draw`, `step`, `param_groups` and, if it has one, `after_step`. A step never waits for the
device: what it measures is collected there and fetched every `log_every` steps, and a gradient that is not finite
blocks every later update on the device itself, so the weights are still good when the guard looks.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training import checkpoint
from training.config import RunConfig
from training.data import Feed, generator, rows
from training.distributed import World, world
from training.runlog import RunLog
from training.schedules import warmup_cosine
from training.watch import Watch
from usdata.batch import to_device
from usdata.errors import ConfigError, UsdataError
from usdata.files import explain_os_errors, write_json

_REASONS = ["", "SIGTERM", "SIGINT", "max-hours"]


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
        UsdataError: a loss or gradient that is not finite (a checkpoint of the step before is left), damaged files.
        LakeError: `out` can't be written.
    """
    started, out = time.monotonic(), Path(out)
    with world(cfg.device) as peers, _stop_signals() as signals:
        _check_sizes(cohort, cfg, peers)
        state = _prepare(out, cfg, cohort, peers, resume)
        trainer = _Trainer(cohort, cfg, out, peers, state, progress)
        try:
            stopped = trainer.run(signals, None if max_hours is None else started + 3600 * max_hours)
        finally:
            trainer.close()
    return RunResult(
        out, trainer.step, cfg.steps, stopped, time.monotonic() - started, trainer.last, trainer.watch.last_probe
    )


def _check_sizes(cohort: Any, cfg: RunConfig, peers: World) -> None:
    images = cohort.rows if cfg.epoch_size is None else cfg.epoch_size
    if cohort.rows < cfg.batch_size or images < cfg.batch_size:
        raise ConfigError(
            f"{min(cohort.rows, images)} images are too few for a batch of {cfg.batch_size}.",
            hint=f"Lower the batch:  --set batch_size={max(1, min(cohort.rows, images))}   or choose a wider --cohort.",
        )
    if cfg.batch_size % (peers.size * cfg.accumulate):
        raise ConfigError(
            f"A batch of {cfg.batch_size} does not divide among {peers.size} ranks and {cfg.accumulate} micro-batches."
        )


def _prepare(out: Path, cfg: RunConfig, cohort: Any, peers: World, resume: bool) -> dict[str, Any] | None:
    """Check the directory, write config.json, and give the state to go on from, if there is one."""
    path = out / "checkpoint" / "last.pt"
    if not resume and peers.first and out.exists() and (not out.is_dir() or any(out.iterdir())):
        known = "a run's checkpoint" if path.exists() else "files"
        raise ConfigError(
            f"{out} already holds {known}.",
            hint="Go on with that run:  --resume   Or start a new one in another --out.",
        )
    state = checkpoint.load_state(path) if resume and path.exists() else None
    if state is not None:
        checkpoint.refuse_another_run(state, cfg, cohort.hash)
    if peers.first:
        with explain_os_errors(out, step="start"):
            out.mkdir(parents=True, exist_ok=True)
            for litter in [*out.glob(".*.tmp"), *out.glob("*/.*.tmp")]:  # of a process that was killed while writing
                litter.unlink()
            config = {"config": cfg.model_dump(mode="json"), "config_hash": cfg.hash}
            write_json(out / "config.json", {**config, **_facts(cohort), "rows": cohort.rows})
    return state


def _facts(cohort: Any) -> dict[str, str]:
    return {
        "cohort_hash": cohort.hash,
        "cohort_sql": cohort.sql,
        "cohort_name": cohort.name or "",
        "code_version": checkpoint.code_version(),
    }


class _Step(nn.Module):
    """The recipe's `step` as a forward pass, which is what DDP and torch.compile wrap."""

    def __init__(self, recipe: Any) -> None:
        super().__init__()
        self.recipe = recipe

    def forward(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = self.recipe.step(images, draws)
        return terms


@dataclass
class _Pending:
    """What one step measured, still on the device, and where the data stood before it."""

    step: int
    epoch: int
    lr: float
    values: Tensor  # (1 + terms,): gradient norm, then the terms
    data: dict[str, Any]


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
        self.facts = _facts(cohort)
        self.step, self.last, self.terms = 0, dict[str, Any](), list[str]()
        self.recipe = checkpoint.build(cfg).to(peers.device).train()
        self.optimisers = _optimisers(self.recipe, cfg)
        self.blocked = torch.zeros((), device=peers.device)  # 1 from the first step that is not finite
        for optimiser in self.optimisers.values():  # fused optimisers then change nothing where it is 1
            optimiser.grad_scale, optimiser.found_inf = None, self.blocked  # type: ignore[attr-defined]
        per_rank = cfg.batch_size // peers.size
        epoch_size = cohort.rows if cfg.epoch_size is None else cfg.epoch_size
        if cfg.gamma is None:  # whole batches only; the rest of a pass comes first in the next epoch
            epoch_size -= epoch_size % cfg.batch_size
        self.feed = Feed(
            cohort.loader(
                batch_size=per_rank,
                gamma=cfg.gamma,
                by=cfg.by,
                seed=cfg.seed,
                epoch_size=epoch_size,
                workers=cfg.workers,
                rank=peers.rank,
                world=peers.size,
                streaming={"window": cfg.stream_window, "split": cfg.stream_split},
            ),
            per_rank,
        )
        if state is not None:
            self._restore(state)
        self.module: Any = _wrapped(_Step(self.recipe), cfg, peers)
        self.bf16 = _bf16(cfg, peers.device)
        self.watch = Watch(cohort, cfg, out, peers)
        self.log = RunLog(out / "log.jsonl", keep_to=None if state is None else self.step) if peers.first else None
        self.pending: list[_Pending] = []
        self.since = time.perf_counter()

    # --- the loop ---------------------------------------------------------------------------------------------------

    def run(self, signals: "_Signals", deadline: float | None) -> str:
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
                stopped = 0 if last else self.peers.highest(signals.caught or (3 if late else 0))
            self._look(final=last)
            if last or stopped or self.step % cfg.checkpoint_every == 0:
                self.save()
                saved = self.step
        if saved != self.step:
            self.save()
        self._write("stop", reason=_REASONS[stopped] or "finished")
        return _REASONS[stopped]

    def train_step(self) -> None:
        """One optimiser step: the mean gradient over the global batch, whatever it is cut into."""
        cfg, peers = self.cfg, self.peers
        data = self.feed.state_dict()
        images = self.feed.next()  # (batch / ranks, 1, 256, 256)
        draws = self.recipe.draw(cfg.batch_size, generator("draw", cfg.seed, self.step))
        lr = warmup_cosine(self.step, steps=cfg.steps, warmup_steps=cfg.warmup_steps, peak=cfg.peak_lr, end=cfg.min_lr)
        _set_lr(self.optimisers, lr)
        micro = len(images) // cfg.accumulate
        total: Tensor | None = None
        for start in range(0, len(images), micro):
            mine = peers.rank * len(images) + start  # this rank's images are these rows of the global batch
            values = self._forward_backward(
                images[start : start + micro], rows(draws, mine, mine + micro), last=start + micro == len(images)
            )
            total = values if total is None else total + values
        assert total is not None
        values = self._update(total)
        self.step += 1
        self.pending.append(_Pending(self.step, self.feed.epoch, lr, values, data))

    def _forward_backward(self, images: Tensor, draws: dict[str, Tensor], *, last: bool) -> Tensor:
        device, share = self.peers.device, 1 / self.cfg.accumulate
        wait = nullcontext() if last or self.peers.size == 1 else self.module.no_sync()
        try:
            with wait:
                with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                    terms = self.module(
                        to_device(images, device),
                        {name: value.to(device, non_blocking=True) for name, value in draws.items()},
                    )
                (terms["loss"] * share).backward()
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"The GPU has too little memory for {len(images)} images at a time.",
                step=f"train step {self.step + 1}",
                hint=f"Cut the batch into more pieces:  --set accumulate={2 * self.cfg.accumulate}",
            ) from error
        self.terms = list(terms)
        return torch.stack([value.detach().float() for value in terms.values()]) * share

    def _update(self, terms: Tensor) -> Tensor:
        """Clip and apply the gradients, unless a number is or was not finite; gives the norm before, then the terms."""
        owned = [p for o in self.optimisers.values() for group in o.param_groups for p in group["params"]]
        norm = nn.utils.get_total_norm([p.grad for p in owned if p.grad is not None])
        if self.cfg.clip_grad is not None:
            nn.utils.clip_grads_with_norm_(owned, self.cfg.clip_grad, norm)
        values = torch.cat([norm.detach().float().reshape(1), terms])
        self.blocked.copy_(torch.maximum(self.blocked, 1.0 - values.isfinite().all().float()))
        self.peers.share_highest(self.blocked)
        for optimiser in self.optimisers.values():
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if hasattr(self.recipe, "after_step"):
            self.recipe.after_step()
        return values

    # --- what is measured -------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Fetch what the steps since the last flush measured, log it, and stop the run if a number is not finite."""
        if not self.pending:
            return
        values = self.peers.mean(torch.stack([record.values for record in self.pending])).cpu()
        seconds = max(time.perf_counter() - self.since, 1e-9)
        speed = self.cfg.batch_size * len(self.pending) / seconds
        waited, pending, self.pending, self.feed.waited = self.feed.waited / seconds, self.pending, [], 0.0
        for record, numbers in zip(pending, values.tolist(), strict=True):
            named = dict(zip(["grad_norm", *self.terms], numbers, strict=True))
            if not all(map(_finite, numbers)):
                self._refuse(record, named)
            self.last = self._write(
                "step",
                step=record.step,
                epoch=record.epoch,
                lr=record.lr,
                **named,
                images_per_s=speed,
                data_wait=waited,
            )
        self.since = time.perf_counter()

    def _refuse(self, record: _Pending, named: dict[str, float]) -> None:
        """Leave a checkpoint of the step before, and say what went wrong."""
        wrong = [name for name, value in named.items() if not _finite(value)]
        raw = [name for name in wrong if name not in ("loss", "grad_norm")] or wrong
        self._write("stop", step=record.step - 1, reason="not finite", terms={name: str(named[name]) for name in wrong})
        self.step = record.step - 1
        self.save(data=record.data)
        raise UsdataError(
            f"Step {record.step}: {', '.join(f'{name} is {named[name]}' for name in raw)}.",
            step=f"train step {record.step}",
            hint=f"The weights of step {self.step} are in {self.out}. Try a lower --set lr=…, or --set clip_grad=1.",
        )

    def _look(self, first: bool = False, final: bool = False) -> None:
        """Probe and pictures, when they are due; they change nothing."""
        if self.watch.due(self.step, first, final):
            self.flush()
            if self.peers.first:
                found = self.watch.look(self.recipe, self.step, first, final)
                if found:
                    self._write("probe", **found)
            self.peers.wait()
            self.since, self.feed.waited = time.perf_counter(), 0.0

    def _write(self, kind: str, **values: Any) -> dict[str, Any]:
        values.setdefault("step", self.step)
        if self.log is None:
            return values
        record = self.log.write(kind, **values)
        if self.progress is not None:
            self.progress(record)
        return record

    # --- the state --------------------------------------------------------------------------------------------------

    def save(self, data: dict[str, Any] | None = None) -> None:
        """Log, weights, then the state, which makes the rest count."""
        self.flush()
        if self.log is not None:
            self.log.flush()
            facts = {**self.facts, "steps": str(self.step)}
            checkpoint.save_recipe(self.recipe, self.cfg, self.out, facts)
            checkpoint.export_encoder(self.recipe, self.cfg, self.out, facts)
            checkpoint.save_state(
                self.out / "checkpoint" / "last.pt",
                {
                    "step": self.step,
                    "config": self.cfg.model_dump(mode="json"),
                    **self.facts,
                    "model": self.recipe.state_dict(),
                    "optimisers": {name: o.state_dict() for name, o in self.optimisers.items()},
                    "data": self.feed.state_dict() if data is None else data,
                },
            )
        self.peers.wait()
        self.since, self.feed.waited = time.perf_counter(), 0.0

    def _restore(self, state: dict[str, Any]) -> None:
        self.step = int(state["step"])
        self.recipe.load_state_dict(state["model"], strict=True)
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self.feed.load_state_dict(state["data"])

    def close(self) -> None:
        """Close the log."""
        if self.log is not None:
            self.log.close()


def _optimisers(recipe: Any, cfg: RunConfig) -> dict[str, torch.optim.Optimizer]:
    """By name; one AdamW over the recipe's parameter groups, fused so that `found_inf` can hold it back."""
    groups = recipe.param_groups(cfg.weight_decay)
    return {"main": torch.optim.AdamW(groups, lr=0.0, betas=cfg.betas, fused=True)}


def _set_lr(optimisers: dict[str, torch.optim.Optimizer], lr: float) -> None:
    for optimiser in optimisers.values():
        for group in optimiser.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)


def _wrapped(module: nn.Module, cfg: RunConfig, peers: World) -> nn.Module:
    if cfg.compile is True or (cfg.compile == "auto" and peers.device.type == "cuda"):
        module.compile(dynamic=False)
    if peers.size > 1:
        devices = [peers.device.index] if peers.device.type == "cuda" else None
        return DistributedDataParallel(
            module, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    return module


def _bf16(cfg: RunConfig, device: torch.device) -> bool:
    if cfg.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return cfg.precision == "bf16"


def _finite(value: float) -> bool:
    return value - value == 0.0


@dataclass
class _Signals:
    caught: int = 0  # index into _REASONS


@contextmanager
def _stop_signals() -> Iterator[_Signals]:
    """SIGTERM and SIGINT only note their name, once; a second one ends the process as usual."""
    signals, numbers = _Signals(), {signal.SIGTERM: 1, signal.SIGINT: 2}
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there
        yield signals
        return

    def note(number: int, frame: FrameType | None) -> None:
        signals.caught = numbers[signal.Signals(number)]
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
