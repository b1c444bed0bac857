"""`fullsend doctor`."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from services.cli import connection, output
from services.cli.doctor_checks import Finding, Level, findings, problem, worker_findings
from services.cli.output import AsJson, Column
from services.executor import config
from services.executor.store import Store
from shared.connection import without_password
from shared.errors import FullsendError, SettingsError

MARKS = {Level.OK: "✓", Level.WARNING: "!", Level.PROBLEM: "✗"}


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting, its value here, and where the value comes from."""

    name: str
    value: str
    origin: str


def doctor(
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Also ask the worker at this address: http://HOST:HEALTH_PORT."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Check settings, Redis, workers, tools and experiments.

    Prints each setting and its source, then a finding for each check. The exit code is 1 if any finding
    is a problem; warnings do not count.
    """
    try:
        settings = connection.settings()
    except SettingsError as exc:
        configured: list[Setting] = []
        found = [problem("settings", mistake) for mistake in str(exc).splitlines()]
    else:
        configured, found = _configured(settings), _check(settings)
    if url is not None:
        found += worker_findings(url)
    if as_json:
        output.print_json({"settings": list(map(asdict, configured)), "findings": list(map(asdict, found))})
    else:
        _print(configured, found, output.console())
    return int(any(one.level is Level.PROBLEM for one in found))


def _configured(settings: config.Settings) -> list[Setting]:
    origins = config.origins(config.load())
    return [
        Setting(name.upper(), _shown(name, getattr(settings, name)), origins[name]) for name in config.NAMES
    ]


def _check(settings: config.Settings) -> list[Finding]:
    """Run the checks; if Redis fails in between, return the findings so far and that problem."""
    found: list[Finding] = []

    async def look(store: Store) -> None:
        async for one in findings(store, settings, url):
            found.append(one)

    try:
        url = connection.address(settings)
        connection.with_store(look, settings)
    except FullsendError as exc:
        found.append(problem("redis", output.one_line(str(exc))))
    return found


def _shown(name: str, value: Any) -> str:
    match value:
        case str() if name == "redis_url":
            return without_password(value)
        case tuple():
            return ",".join(map(str, value))
        case float():
            return f"{value:.15g}"
        case _:
            return str(value)


def _print(configured: list[Setting], found: list[Finding], out: Console) -> None:
    if configured:
        rows: list[list[output.Cell]] = [[one.name, one.value, _origin(one.origin)] for one in configured]
        output.table([Column("SETTING"), Column("VALUE"), Column("FROM")], rows, out)
        out.print()
    for one in found:
        subject, text = output.one_line(one.subject), output.message_line(one.text)
        if out.is_terminal:
            mark = output.styled(one.level, MARKS[one.level])
            out.print(Text.assemble(mark, " ", (subject, "bold"), "  ", text), soft_wrap=False)
        else:
            output.say(f"{one.level:<7}  {subject}  {text}")


def _origin(origin: str) -> Text:
    return Text(origin, "dim" if origin == "default" else "green")
