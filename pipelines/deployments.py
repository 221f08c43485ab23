"""The deployments: `ingest` per card and private, `curate/lake`, `pretrain/d2mae`, `downstream/probe`.

prefect.yaml is made from them:

python -m pipelines.deployments > prefect.yaml        after a card was added
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import yaml

from ingest.card import Card, get_card, registered

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

_PRIVATE = "Patients' own files, de-identified; give -p name=SITE. Folder and key: see docs/private.md."

_HEAD = """\
# Prefect deployments for a work pool, one per card. Made by: python -m pipelines.deployments > prefect.yaml
#
# On one machine `usdata serve` is simpler and needs nothing of this. For several machines, with PREFECT_API_URL set to
# your Prefect server, in the project's folder:
#   prefect work-pool create -t process local && prefect --no-prompt deploy --all && prefect worker start --pool local
# then, from anywhere that reaches the server:
#   prefect deployment run ingest/phantom --watch
#   prefect deployment run ingest/busi -p source=/data/busi --watch
#   prefect deployment run ingest/private -p name=site_a --watch     files and key by the worker's environment:
#                                                                    docs/private.md
# Paths are those of the worker's machine; relative ones start in the folder in which `prefect deploy` was called.
name: usdata
pull:
  - prefect.deployments.steps.set_working_directory: {directory: "{{ $PWD }}"}  # of `prefect deploy`
definitions:
  work_pools:
    local: &local {name: local}
deployments:
"""


@dataclass(frozen=True, slots=True)
class Spec:
    """One deployment: `prefect deployment run <flow>/<name>`."""

    flow: str
    name: str
    description: str
    parameters: dict[str, Any] = field(default_factory=dict)
    entrypoint: str = ""  # module and function; "": the function of the flow's name in `pipelines.flows`

    def __post_init__(self) -> None:
        if not self.entrypoint:
            object.__setattr__(self, "entrypoint", f"pipelines.flows.{self.flow}")


def specs(lake: str, data: Path | None = None) -> list[Spec]:
    """All deployments.

    Args:
        lake: the lake's folder, as the flows get it.
        data: folder in which the data sets lie, if there is one; those found get their `source`.
    """
    found = [_ingest_spec(get_card(name), lake, data) for name in registered()]
    found.append(Spec("ingest", "private", _PRIVATE, {"lake": lake}, "pipelines.private.ingest_private"))
    found.append(Spec("curate", "lake", "Find copies and near-copies within and across data sets.", {"lake": lake}))
    found.append(Spec("pretrain", "d2mae", "Train an encoder by D2MAE.", {"recipe": "d2mae", "lake": lake}))
    found.append(Spec("downstream", "probe", "Score an encoder; give it with -p encoder=DIR.", {"lake": lake}))
    return found


def _ingest_spec(card: Card, lake: str, data: Path | None) -> Spec:
    parameters = {"dataset": card.name, "lake": lake}
    source = find_source(card, data)
    return Spec("ingest", card.name, card.title, parameters | ({"source": str(source)} if source else {}))


def find_source(card: Card, data: Path | None) -> Path | None:
    """Where the files of a card lie below `data`: a folder named like the data set, with `_` or `-`, or an archive of
    that name or of the name it is published under; absolute. None if there is none, or nothing to look for."""
    if data is None or card.generator:
        return None
    stems = dict.fromkeys((card.name, card.name.replace("_", "-"), card.name.replace("-", "_")))
    names = [*stems, *(stem + ending for stem in stems for ending in _ARCHIVES)]
    names += [source.archive for source in card.sources if source.archive]
    return next((path.absolute() for name in names if (path := data / name).exists()), None)


def runner_deployments(lake: Path, data: Path | None) -> list["RunnerDeployment"]:
    """The deployments as a Prefect runner serves them; they name a module, so runs do not depend on the folder."""
    from prefect.deployments.runner import EntrypointType

    return [
        resolve_name(spec.entrypoint).to_deployment(
            name=spec.name,
            parameters=spec.parameters,
            description=spec.description,
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        for spec in specs(str(lake.absolute()), data)
    ]


def prefect_yaml() -> str:
    """The text of prefect.yaml."""
    return _HEAD + "".join(_entries())


def _entries() -> Iterator[str]:
    for spec in specs("lake"):
        parameters = yaml.safe_dump(spec.parameters, default_flow_style=True, sort_keys=False, width=1000).strip()
        yield f"  - {yaml.safe_dump({'name': spec.name})}    entrypoint: {spec.entrypoint}\n"
        yield f"    parameters: {parameters}\n    work_pool: *local\n"


if __name__ == "__main__":
    sys.stdout.write(prefect_yaml())
