"""`fullsend modal`."""

import asyncio
from pathlib import Path
from typing import Annotated, Final

import typer

import services
from services.cli import connection, output
from services.cli.cloud.modal_settings import modal_options
from services.cli.output import AsJson
from services.executor.config import Settings
from services.planner.backends import backend_class
from services.planner.backends.modal_options import ModalOptions
from shared import log

CHECKOUT: Final = Path(services.__path__[0]).parent
PASSED_ON: Final = (
    "isolation", "sandbox", "tool_environment", "tool_environment_allowed",
    "tool_capabilities_allowed", "tool_builds_allowed",
)  # fmt: skip
"""The settings of this machine that count in the containers too."""

app = typer.Typer()


@app.callback(invoke_without_command=True)
def modal(context: typer.Context) -> None:
    """Deploy, look at and remove what plans need on Modal.

    The token is in MODAL_TOKEN_ID and MODAL_TOKEN_SECRET, or in the file that `python -m modal setup` writes.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def deploy() -> None:
    """Deploy the app of this version.

    It has a function, a volume and a queue. The image is made from a checkout of this project: its
    requirements.txt and its source. MODAL_SLOTS says how many cases a container runs at once.
    """
    chosen, options = _options()
    from services.cli.cloud import modal_app
    from services.cli.cloud.modal_function import call_tool  # these need the package

    image = modal_app.image_of(CHECKOUT, passed_on(chosen))
    asyncio.run(modal_app.deploy(options, image, call_tool))
    output.say(f"deployed {options.app}; run a plan with `--backend modal`")


@app.command()
def status(as_json: AsJson = False) -> int:
    """Show whether the app of this version is deployed, and what runs.

    The exit code is 1 if it is not deployed.
    """
    _, options = _options()
    from services.cli.cloud import modal_app

    found = asyncio.run(modal_app.look(options))
    if as_json:
        output.print_json(found.to_json())
    else:
        output.say("\n".join(found.lines()))
    return 0 if found.is_deployed else 1


@app.command()
def remove(
    volume: Annotated[
        bool, typer.Option("--volume", help="Delete the volume too, with all code and artifacts on it.")
    ] = False,
) -> None:
    """Stop the app of this version, and delete its queue."""
    _, options = _options()
    from services.cli.cloud import modal_app

    removed = asyncio.run(modal_app.remove(options, with_volume=volume))
    output.say(f"removed {', '.join(removed)}" if removed else f"there is no app {options.app} on Modal")


def passed_on(chosen: Settings) -> dict[str, str]:
    """Return the settings that count in the containers, as variables."""
    given = {name: getattr(chosen, name) for name in PASSED_ON if name in chosen.model_fields_set}
    return {
        name.upper(): ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in given.items()
    }


def _options() -> tuple[Settings, ModalOptions]:
    """Return the settings.  Raises `PlanError` if the package is missing."""
    log.configure(level="error")
    backend_class("modal")
    chosen = connection.settings()
    return chosen, modal_options()
