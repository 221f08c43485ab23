"""The flow `ingest` of private data: `prefect deployment run ingest/private -p name=site_a`.

Prefect keeps parameters, names of runs, states, logs and artifacts in a database, and shows them to whoever reaches the
server. So none of them may say anything of a file: the folder and the key are told to the worker by its environment
(USDATA_PRIVATE_DIR, USDATA_DEID_KEY_FILE), what is logged are counts and closed words, and no exception's words pass
unless they are known to be ours.
"""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed
from prefect.utilities.annotations import quote

from ingest import run
from ingest.build import ShardReport, build_shard
from ingest.card import Card
from ingest.deid.inputs import FOLDER_VARIABLE, find_source
from ingest.deid.key import KEY_VARIABLE
from ingest.deid.private import private_card, rules_of
from ingest.deid.rules import Rules
from ingest.plan import ShardJob
from ingest.workers import WorkerDied
from pipelines import flows
from pipelines.workers import Workers
from usdata.errors import CardError, ConfigError, DataError, LakeError, UsdataError
from usdata.lake import Lake

P = ParamSpec("P")
TEMPLATES_VARIABLE = "USDATA_DEID_TEMPLATES"
_OURS = (CardError, ConfigError, LakeError)  # their messages are sentences of ours, with settings in them
_SEE = "On the machine that holds the files, `usdata ingest private` tells more."


class PrivateError(UsdataError):
    """What went wrong in an ingest of private data, in words that name no file."""


def namelessly(work: Callable[P, Any]) -> Callable[P, Any]:
    """Let no error out but our own, with nothing in it that could name a file: Prefect stores an error's words."""

    @wraps(work)
    def told(*args: P.args, **kwargs: P.kwargs) -> Any:
        try:
            return work(*args, **kwargs)
        except (PrivateError, WorkerDied):
            raise
        except Exception as error:  # Prefect would store and log the words of any other
            raise _nameless(error) from None

    return told


def _nameless(error: Exception) -> PrivateError:
    """The error if its words are ours and hold no private path; else its kind alone."""
    if isinstance(error, DataError):
        return PrivateError(f"The files can't be used: {error.reason}.", dataset=error.dataset, hint=_SEE)
    if isinstance(error, _OURS):
        words = [_without_key(text) for text in (error.message, error.hint or "")]
        if not any(place in text for text in words for place in _private_places()):
            return PrivateError(words[0], dataset=error.dataset, step=error.step, hint=words[1] or None)
    return PrivateError(f"The run ended by a {type(error).__name__}; its words could name a file.", hint=_SEE)


def _without_key(text: str) -> str:
    path = os.environ.get(KEY_VARIABLE)
    return text.replace(path, f"${KEY_VARIABLE}") if path else text


def _private_places() -> set[str]:
    """The folder of private files as it may stand in a message."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return {folder, str(Path(folder).absolute()), str(Path(folder).resolve())} if folder else set()


@task(name="prepare", persist_result=False, log_prints=False, cache_policy=NO_CACHE)
@flows.plainly
@namelessly
def prepare(card: Card, source: Path, lake: Lake, workers: int, rules: Rules) -> run.Plan:
    """List the files under their keyed ids, examine them and plan the shards; see `ingest.run.prepare`."""
    return run.prepare(card, source, lake, workers=workers, rules=rules, progress=flows._Progress())


@task(
    persist_result=False,
    log_prints=False,
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=1,
    retry_condition_fn=flows._worker_died,
)
@flows.plainly
@namelessly
def build(job: ShardJob, workers: Workers) -> ShardReport:
    """Build one shard; each file is opened in an isolated process only."""
    return workers.build(job) if workers.number > 1 else build_shard(job)


@task(name="finish", persist_result=False, log_prints=False, cache_policy=NO_CACHE)
@flows.plainly
@namelessly
def finish(plan: run.Plan, built: list[ShardReport]) -> run.IngestReport:
    """Commit the shards; see `ingest.run.finish`."""
    return run.finish(plan, built)


@flow(name="ingest", persist_result=False, log_prints=False)
@flows.plainly
@namelessly
def ingest_private(
    name: str, lake: Path = Path("lake"), organ: str | None = None, workers: int | None = None
) -> dict[str, Any]:
    """Bring private files into the lake, de-identified; what is already right is not built again.

    The worker's environment says where the files and the key are: $USDATA_PRIVATE_DIR/<name>, $USDATA_DEID_KEY_FILE;
    and where reviewed device templates are, if there are any: $USDATA_DEID_TEMPLATES.

    Args:
        name: of the data set, and of the folder that holds its files.
        lake: the lake's folder.
        organ: of all files; what they say themselves if not given.
        workers: processes that build shards; all cores if not given. The lake is the same for any number.
    """
    card = private_card(name, organ)
    source = find_source(None, card.name)
    templates = os.environ.get(TEMPLATES_VARIABLE)
    rules = rules_of(card, None, source=source, templates=Path(templates) if templates else None)
    number = workers or len(os.sched_getaffinity(0))
    opened = Lake.create(lake)
    with run.only_ingest(opened, card.name):
        plan: run.Plan = flows._do(prepare, card, source, opened, number, rules)
        built = _build_all(run.open_jobs(plan), number)
        report: run.IngestReport = flows._do(finish, plan, built)
    _tell(report)
    if not report.counts.samples:
        raise LakeError("Not one image got in.", dataset=card.name, step="build", hint=_review(card.name))
    return _record(report)


def _build_all(jobs: list[ShardJob], number: int) -> list[ShardReport]:
    """Build all shards, `number` at a time. A job's name is the data set, the organ and a number."""
    if not jobs:
        return []
    log, reports = get_run_logger(), list[ShardReport]()
    with Workers(min(number, len(jobs))) as workers, flows.task_runner("processes", min(number, len(jobs))) as pool:
        futures: list[PrefectFuture[ShardReport]] = [
            pool.submit(build.with_options(task_run_name=job.name), {"job": quote(job), "workers": workers})
            for job in jobs
        ]
        for future in as_completed(futures):
            reports.append(future.result())
            log.info("shard %d of %d: %s, %d images", len(reports), len(jobs), reports[-1].name, reports[-1].samples)
    return reports


def _record(report: run.IngestReport) -> dict[str, Any]:
    """The counts of a run; notes are left out, since they are free text."""
    return {key: value for key, value in run.as_record(report).items() if key != "notes"}


def _review(name: str) -> str:
    return f"On the machine that holds the files:  usdata deid-review --name {name}"


def _tell(report: run.IngestReport) -> None:
    """The outcome in the log and as an artifact of the run: numbers and closed words."""
    c, log = report.counts, get_run_logger()
    log.info(
        "%s: %d files, %d items, %d images in the lake, %d quarantined, %d ignored; %d shards built, %d already right",
        *(report.dataset, c.files, c.items, c.samples, c.quarantined, c.ignored, report.built, report.reused),
    )
    if report.reasons:
        log.warning("quarantined: %s", ", ".join(f"{reason} {n}" for reason, n in report.reasons.items()))
    plain = [(name, n) for name, n in _record(report).items() if isinstance(n, int) and not isinstance(n, bool)]
    parts = [f"# {report.dataset}", flows._table(("", "number"), plain)]
    if report.reasons:
        parts += [flows._table(("quarantined because", "number"), report.reasons.items()), _review(report.dataset)]
    create_markdown_artifact(
        key=f"ingest-{report.dataset.replace('_', '-')}",
        markdown="\n\n".join(parts) + "\n",
        description=f"What came into the lake from {report.dataset}",
    )
