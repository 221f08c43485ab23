"""The verbs `demo` and `serve`."""

import typer

app = typer.Typer()
