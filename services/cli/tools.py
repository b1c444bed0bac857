"""`fullsend tools`."""

import asyncio
import os
from typing import Annotated

import typer
from rich.text import Text

from services.cli import connection, output
from services.cli.output import AsJson, Column
from services.executor.loader import Loader
from services.operations.registered_tools import Registered, all_registered, signature
from services.planner.runtime import ToolRuntime
from shared import log
from shared.errors import ToolError

COLUMNS = [Column("TOOL"), Column("STATUS"), Column("ABOUT", wraps=True), Column("PARAMETERS", wraps=True)]


app = typer.Typer()


@app.callback(invoke_without_command=True)
def tools(
    context: typer.Context,
    as_json: AsJson = False,
) -> None:
    """List the registered tools, their parameters and their errors.

    Workers register the tools in their tools folder. A tool whose environment isn't built yet is described by
    its source, and its status is `provisional`. A tool that no live worker has any more is `missing`. To
    check a file before that, run `python -m services.executor.loader --test tools/FILE.py`.
    """
    if context.invoked_subcommand is None:
        _list(as_json)


@app.command()
def build(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[TOOL]...", help="By default, all tools.")
    ] = None,
) -> int:
    """Build the environments of tools in TOOLS_PATH that have dependencies.

    Otherwise, a worker builds a tool's environment when a run of it waits. The exit code is 1 if one can't be
    built.
    """
    log.configure(level="error")
    chosen = connection.settings()
    runtime = ToolRuntime(connection.places(chosen), 1, os.environ)
    return asyncio.run(_build(runtime.loader, names))


async def _build(loader: Loader, names: list[str] | None) -> int:
    failed = False
    for name in names or loader.names():
        try:
            has_own = await loader.equip(name)
        except ToolError as exc:
            failed = True
            output.print_error(f"{name}: {exc}")
        else:
            if has_own or names:
                output.say(f"{name}: {'built' if has_own else 'needs no environment of its own'}")
    return int(failed)


def _list(as_json: bool) -> None:
    found = connection.with_store(all_registered)
    if as_json:
        output.print_json(found)
        return
    out = output.console()
    if not found and out.is_terminal:
        out.print("no tools are registered; a worker registers the tools in its tools folder")
        return
    rows = [
        [
            one["name"],
            output.styled(_status(one)),
            Text(output.one_line(one["error"]), "red") if one["error"] else _first_line(one["description"]),
            signature(one["parameters"]),
        ]
        for one in found
    ]
    output.table(COLUMNS, rows, out)


def _status(one: Registered) -> str:
    if one["state"] == "missing":
        return "missing"
    return "provisional" if one["provisional"] else str(one["status"])


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
