"""The flows `ingest`, `curate`, `pretrain` and `downstream`: thin tasks over the functions that the verbs call.

What goes to Prefect's database: parameters, states, counts. Neither images nor the names of source files: task results
stay in memory (`persist_result=False`), and an expected failure is a state with its message instead of a stored error.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, as_completed
from prefect.runtime import flow_run
from prefect.states import Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.utilities.annotations import quote

from ingest import run
from ingest.build import ShardReport, build_shard
from ingest.card import Card, get_card
from ingest.fetch_terms import Accepted, check_names, open_terms, write_accepted
from ingest.plan import ShardJob
from ingest.unpack import open_source
from ingest.workers import WorkerDied
from pipelines.workers import Workers
from usdata.errors import CardError, ConfigError, UsdataError
from usdata.lake import Lake

P = ParamSpec("P")
_QUIET = 5.0  # seconds between two lines of progress in a run's log


def plainly(work: Callable[P, Any]) -> Callable[P, Any]:
    """Make an expected failure a Failed state that says what happened; other errors keep their traceback."""

    @wraps(work)
    def told(*args: P.args, **kwargs: P.kwargs) -> Any:
        for name in ("prefect.flow_runs", "prefect.engine"):
            logging.getLogger(name).addFilter(_unexpected)
        try:
            return work(*args, **kwargs)
        except UsdataError as error:
            return Failed(message=_words(error), data=error)

    return told


def _unexpected(record: logging.LogRecord) -> bool:
    """False for the traceback that Prefect's engine logs once more after it has logged the failed state's message."""
    return not (record.exc_info and isinstance(record.exc_info[1], UsdataError))


def _words(error: UsdataError) -> str:
    """The error without square brackets, which `prefect ... --watch` takes for colours."""
    place = [("dataset", error.dataset), ("item", error.item), ("step", error.step)]
    known = ", ".join(f"{name} {value}" for name, value in place if value)
    text = f"{error.message} ({known})" if known else error.message
    return (f"{text}\n{error.hint}" if error.hint else text).replace("[", "(").replace("]", ")")


def _do(step: Any, *values: Any) -> Any:
    """Run a task now and raise its failure. Quoted: Prefect then looks for no futures in a hundred thousand sources."""
    return step(*map(quote, values), return_state=True).result()


def _worker_died(task: Any, task_run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), WorkerDied)


# --- ingest -----------------------------------------------------------------------------------------------------------


@task(name="prepare", persist_result=False, cache_policy=NO_CACHE)
@plainly
def prepare(card: Card, source: Path | None, lake: Lake, workers: int, count: int | None) -> run.Plan:
    """List and scan the source and plan the shards; see `ingest.run.prepare`."""
    return run.prepare(card, source, lake, workers=workers, count=count, progress=_Progress())


class Sealed:
    """A job that neither Prefect nor Dask looks into: they would search its sources for futures, and rebuild it."""

    __slots__ = ("job",)

    def __init__(self, job: ShardJob) -> None:
        self.job = job


@task(persist_result=False, cache_policy=NO_CACHE, retries=2, retry_delay_seconds=1, retry_condition_fn=_worker_died)
@plainly
def build(sealed: Sealed, workers: Workers | None) -> ShardReport:
    """Build one shard, a chunk of at most 1,000 images; without `workers` in the process that runs the task."""
    return build_shard(sealed.job) if workers is None else workers.build(sealed.job)


@task(name="finish", persist_result=False, cache_policy=NO_CACHE)
@plainly
def finish(plan: run.Plan, built: list[ShardReport]) -> run.IngestReport:
    """Commit the shards; see `ingest.run.finish`."""
    return run.finish(plan, built)


@flow(name="ingest", persist_result=False)
@plainly
def ingest(
    dataset: str,
    source: Path | None = None,
    lake: Path = Path("lake"),
    workers: int | None = None,
    images: int | None = None,
    runner: Literal["processes", "dask"] = "processes",
    address: str | None = None,
    accept_terms: str | None = None,
) -> dict[str, Any]:
    """Bring a registered data set into the lake, or bring it up to date; what is already right is not built again.

    Args:
        dataset: a registered name; see `usdata datasets`.
        source: the folder or archive that holds the files; not for generated data sets.
        lake: the lake's folder.
        workers: processes that build shards; all cores if not given. The lake is the same for any number.
        images: how many images a generated data set draws.
        runner: `processes` on this machine, or `dask` (needs the package prefect-dask).
        address: of a running Dask scheduler, whose workers see the same files; a cluster of its own if not given.
        accept_terms: the name of the data set, if its terms of use are accepted.
    """
    card = get_card(dataset)
    if images and not card.generator:
        raise CardError(f"`images` is for generated data sets; {dataset} is read from files.", dataset=dataset)
    accepted = _accept(card, lake, accept_terms)
    _ask_for_source(card, source)
    number = workers or len(os.sched_getaffinity(0))
    opened = Lake.create(lake)
    write_accepted(opened, card, accepted, get_run_logger().info)
    with open_source(source) if source else nullcontext() as folder, run.only_ingest(opened, dataset):
        plan: run.Plan = _do(prepare, card, folder, opened, number, images)
        built = _build_all(run.open_jobs(plan), number, runner, address)
        report: run.IngestReport = _do(finish, plan, built)
    _tell(report, opened)
    if not report.counts.samples:
        raise UsdataError("Not one image got in.", dataset=dataset, step="build", hint=_query(report, opened))
    return run.as_record(report)


def _accept(card: Card, lake: Path, given: str | None) -> Accepted | None:
    """How the data set's terms were accepted; None if it has none."""
    names = [given] if given else []
    check_names(names, [card.name])
    command = f"prefect deployment run ingest/{card.name} -p accept_terms={card.name} --watch"
    return open_terms(card, lake, names, "accept_terms", command=command)


def _ask_for_source(card: Card, source: Path | None) -> None:
    if source is None and card.layout is not None and card.deid_profile == "public":
        raise CardError(
            f"Where are the files of {card.name!r}?",
            dataset=card.name,
            step="list",
            hint=f"prefect deployment run ingest/{card.name} -p source=DIR --watch      "
            f"or put them into DATA/{card.name} and start  usdata serve --data DATA",
        )


def _build_all(jobs: list[ShardJob], number: int, runner: str, address: str | None) -> list[ShardReport]:
    """Build all shards, `number` at a time; the log names each one that is done."""
    if not jobs:
        return []
    log, number = get_run_logger(), min(number, len(jobs))
    log.info("%d shards to build, %d at a time", len(jobs), number)
    reports: list[ShardReport] = []
    workers = Workers(number) if runner == "processes" else None
    with workers or nullcontext(), task_runner(runner, number, address) as pool:
        futures: list[PrefectFuture[ShardReport]] = [
            pool.submit(
                build.with_options(name=f"build {job.name}", task_run_name=job.name),
                {"sealed": Sealed(job), "workers": workers},
            )
            for job in jobs
        ]
        for future in as_completed(futures):
            reports.append(future.result())
            log.info("shard %d of %d: %s, %d images", len(reports), len(jobs), reports[-1].name, reports[-1].samples)
    return reports


def task_runner(kind: str, number: int, address: str | None = None) -> TaskRunner[Any]:
    """What runs the tasks: `number` threads, which wait for processes, or Dask.

    Raises:
        ConfigError: Dask is asked for and prefect-dask is not installed, or an address without Dask.
    """
    if kind == "processes":
        if address:
            raise ConfigError("`address` is for the runner dask.", hint="Add  -p runner=dask")
        return ThreadPoolTaskRunner(max_workers=number)
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise ConfigError(
            "The runner dask needs the package prefect-dask.", step="build", hint="pip install prefect-dask"
        ) from error
    if address:
        return DaskTaskRunner(address=address)
    own = {"n_workers": number, "threads_per_worker": 1, "dashboard_address": None}
    return DaskTaskRunner(cluster_kwargs=own)


class _Progress:
    """Writes how far a stage is into the run's log, every few seconds."""

    def __init__(self) -> None:
        self._log, self._next = get_run_logger(), time.monotonic() + _QUIET

    def __call__(self, stage: str, done: int, total: int) -> None:
        if time.monotonic() >= self._next:
            self._log.info("%s: %d of %d", stage, done, total)
            self._next = time.monotonic() + _QUIET


def _tell(report: run.IngestReport, lake: Lake) -> None:
    """The outcome in the log and as an artifact of the run."""
    c, log = report.counts, get_run_logger()
    log.info(
        "%s: %d files, %d items, %d images in the lake, %d quarantined, %d ignored; %d shards built, %d already right",
        *(report.dataset, c.files, c.items, c.samples, c.quarantined, c.ignored, report.built, report.reused),
    )
    for note in report.notes:
        log.warning("note: %s", note)
    if report.reasons:
        log.warning("quarantined: %s", ", ".join(f"{reason} {n}" for reason, n in report.reasons.items()))
    create_markdown_artifact(
        key=f"ingest-{report.dataset.replace('_', '-')}",
        markdown=_page(report, lake),
        description=f"What came into the lake from {report.dataset}",
    )


def _page(report: run.IngestReport, lake: Lake) -> str:
    record = run.as_record(report)
    plain = [(name, value) for name, value in record.items() if isinstance(value, int) and not isinstance(value, bool)]
    parts = [f"# {report.dataset}", _table(("", "number"), plain), _table(("organ", "images"), report.organs.items())]
    if report.reasons:
        parts.append(_table(("quarantined because", "number"), report.reasons.items()))
        parts.append(f"All of them: `{_query(report, lake)}`")
    return "\n\n".join(parts + [f"Note: {note}" for note in report.notes]) + "\n"


def _table(head: tuple[str, str], rows: Any) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "| --- | ---: |", *(f"| {name} | {value:,} |" for name, value in rows)]
    return "\n".join(lines)


def _query(report: run.IngestReport, lake: Lake) -> str:
    return f"usdata sql \"select * from quarantine where dataset = '{report.dataset}'\" --lake {lake.root}"


# --- curate -----------------------------------------------------------------------------------------------------------


@task(persist_result=False, cache_policy=NO_CACHE)
@plainly
def dedup(lake: Path, threshold: float, recut: bool, workers: int) -> dict[str, Any]:
    """Find copies and near-copies and write their groups; see `usdata.dedup_run.search`."""
    from usdata.dedup_run import search

    found = search(Lake(lake), threshold=threshold, recut=recut, workers=workers, progress=_Progress())
    return {"rows": found.rows(), "words": found.words(), "totals": found.pairs.totals()}


@task(persist_result=False, cache_policy=NO_CACHE)
@plainly
def split(lake: Path, leaks: Literal["refuse", "drop", "keep"]) -> dict[str, Any]:
    """Place what has no split yet; see `usdata.split.make_split`."""
    from usdata.split import make_split
    from usdata.split_tell import counts_of, refuse

    made = make_split(Lake(lake), on_leaks=leaks)
    if made.refused:
        raise refuse(made)
    return counts_of(made)


@flow(name="curate", persist_result=False)
@plainly
def curate(
    lake: Path = Path("lake"),
    threshold: float = 0.995,
    recut: bool = True,
    workers: int | None = None,
    leaks: Literal["refuse", "drop", "keep"] = "refuse",
) -> dict[str, Any]:
    """Note which samples belong together, as `usdata dedup`, and split them so that they stay so, as `usdata split`.

    The split is extended with its own seed and ratios; make it with others by the verb.

    Args:
        lake: the lake's folder.
        threshold: correlation of thumbnails that near-copies exceed.
        recut: also look for copies that were cut anew.
        workers: threads; all cores if not given. The result is the same for any number.
        leaks: what to do with groups in two splits by words that are fixed: refuse, drop or keep.
    """
    found: dict[str, Any] = _do(dedup, lake, threshold, recut, workers or len(os.sched_getaffinity(0)))
    for line in found["words"]:
        get_run_logger().info(line)
    kinds = ("exact", "near", "recut")
    pairs = [(f"{row['relation']}: {row['datasets']}", sum(row[kind] for kind in kinds)) for row in found["rows"]]
    create_markdown_artifact(
        key="curate-duplicates", markdown="\n\n".join(["# Duplicates", *found["words"], _table(("", "pairs"), pairs)])
    )
    placed: dict[str, Any] = _do(split, lake, leaks)  # keeps the groups together that were just written
    counts = [(name, number) for name, number in placed.items() if isinstance(number, int)]
    get_run_logger().info("split: %s", ", ".join(f"{name} {number}" for name, number in counts))
    create_markdown_artifact(key="curate-split", markdown=f"# Split\n\n{_table(('', 'number'), counts)}\n")
    totals: dict[str, Any] = found["totals"]
    return totals | {"split": placed}


# --- pretrain and downstream ------------------------------------------------------------------------------------------


@task(persist_result=False, cache_policy=NO_CACHE)
@plainly
def train(lake: Path, cohort: str, settings: dict[str, Any], out: Path, resume: bool) -> dict[str, Any]:
    """Train a recipe; see `training.train.pretrain`."""
    from training.config import resolve
    from training.train import pretrain as run_training

    cfg = resolve(**settings)
    result = run_training(Lake(lake).cohort(cohort), cfg, out, resume=resume, progress=_training_progress(cfg.steps))
    if not result.finished:
        raise UsdataError(
            f"Stopped by {result.stopped} after step {result.step} of {result.steps}; all is saved in {out}.",
            step="train",
            hint=f"Go on:  usdata pretrain ... --out {out} --resume     (or the same run with out and resume=true)",
        )
    return result.as_dict()


@flow(name="pretrain", persist_result=False)
@plainly
def pretrain(
    recipe: str = "d2mae",
    cohort: str = "all",
    preset: str | None = None,
    lake: Path = Path("lake"),
    out: Path | None = None,
    sets: Sequence[str] = (),
    resume: bool = False,
) -> dict[str, Any]:
    """Train an encoder on a cohort, as `usdata pretrain`.

    Args:
        recipe: name of a recipe.
        cohort: SQL condition, saved name, or `all`.
        preset: micro, small or paper; micro if not given.
        lake: the lake's folder.
        out: new folder for weights, log, checkpoint; if not given, `runs/<recipe>-<name of the run>` beside the lake.
        sets: settings `key=value` over the preset.
        resume: go on where a run in `out` was interrupted.
    """
    folder = out or lake.parent / "runs" / f"{recipe}-{flow_run.name}"
    settings = {"recipe": recipe, "preset": preset, "sets": list(sets)}
    result: dict[str, Any] = _do(train, lake, cohort, settings, folder, resume)
    shown = {"images_per_s", "loss", "grad_norm", "lr"}
    measured = {k: v for k, v in result["last"].items() if k in shown and isinstance(v, float)}
    rows = [("steps", result["steps"]), ("seconds", round(result["seconds"])), *measured.items()]
    get_run_logger().info("%d steps in %.0f s; weights in %s", result["step"], result["seconds"], folder)
    create_markdown_artifact(
        key=f"pretrain-{recipe}", markdown=f"# {recipe}\n\nWeights: `{folder}`\n\n{_table(('', 'value'), rows)}\n"
    )
    return {"out": str(folder), "steps": result["steps"], "loss": result["last"].get("loss")}


def _training_progress(steps: int) -> Callable[[dict[str, Any]], None]:
    log, due = get_run_logger(), time.monotonic() + _QUIET

    def tell(record: dict[str, Any]) -> None:
        nonlocal due
        if record["kind"] == "probe" and "knn_accuracy" in record:
            log.info("step %d: kNN %.3f (majority %.3f)", record["step"], record["knn_accuracy"], record["majority"])
        if record["kind"] == "step" and time.monotonic() >= due:
            log.info("step %d of %d: loss %s", record["step"], steps, record["loss"])
            due = time.monotonic() + _QUIET

    return tell


@task(persist_result=False, cache_policy=NO_CACHE)
@plainly
def probe(lake: Path, cohort: str, encoder: Path, label: str | None, seed: int, by_split: bool) -> dict[str, Any]:
    """Score an encoder on a labelled cohort; see `training.downstream.classify.probe_cohort`."""
    from training.downstream.classify import probe_cohort

    return probe_cohort(Lake(lake).cohort(cohort), encoder, label=label, seed=seed, by_split=by_split)


@flow(name="downstream", persist_result=False)
@plainly
def downstream(
    encoder: Path,
    cohort: str = "all",
    label: str | None = None,
    lake: Path = Path("lake"),
    seed: int = 0,
    by_split: bool = False,
) -> dict[str, Any]:
    """Linear probe and kNN of an encoder beside random weights and thumbnails, as `usdata downstream probe`.

    Args:
        encoder: the `out` of a pretraining run; scores.json is written there.
        cohort: SQL condition, saved name, or `all`.
        label: catalog column; organ if there are several, else label, if not given.
        lake: the lake's folder.
        seed: of folds, bootstrap and the random encoder.
        by_split: train and test on the lake's own split instead of folds.
    """
    from training.downstream.classify import rows_of

    result: dict[str, Any] = _do(probe, lake, cohort, encoder, label, seed, by_split)
    rows = list(rows_of(result))
    names = list(rows[0]) if rows else []
    lines = ["| " + " | ".join(names) + " |", "| " + " | ".join("---" for _ in names) + " |"]
    lines += ["| " + " | ".join(str(row[name]) for name in names) + " |" for row in rows]
    for line in lines:
        get_run_logger().info(line)
    create_markdown_artifact(
        key="downstream-probe", markdown="\n".join([f"# {result['label']}", "", f"Encoder: `{encoder}`", "", *lines])
    )
    return {"scores": str(encoder / "scores.json"), "label": result["label"]}
