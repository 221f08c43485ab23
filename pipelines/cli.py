"""The verbs `demo` and `serve`."""

import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for lake, weights, page.", metavar="DIR")] = Path("demo"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Remove what an earlier demo left there first.")] = False,
) -> None:
    """The whole way in a few minutes: images, lake, SQL, balanced pretraining, scores, one page to look at.

    Uses the real images in $USDATA_REAL_DATA too, if it is set.
    """
    from pipelines.demo import run_demo

    real = os.environ.get("USDATA_REAL_DATA")
    run_demo(out, Path(real) if real else None, fresh)


@app.command()
def serve(
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Folder that holds the data sets, each in a folder or archive of its name.", metavar="DIR"
        ),
    ] = None,
    lake: Annotated[Path, typer.Option("--lake", help="The lake's folder.", metavar="DIR")] = Path("lake"),
    port: Annotated[int, typer.Option(help="Port of the Prefect server.", min=1, max=65535)] = 4200,
) -> None:
    """Start a local Prefect server and serve a deployment per data set; then `prefect deployment run ingest/...`."""
    from pipelines.serve import serve as run

    run(data, lake, port)
