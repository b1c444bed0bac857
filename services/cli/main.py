"""The `fullsend` command: registers the subcommands, and reports each error as one line and an exit code."""

import io
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

import typer

from services.cli import (
    aggregate,
    connection,
    doctor,
    experiments,
    output,
    runs,
    schedules,
    tools,
    watch,
    web,
)
from services.cli.cloud import modal_commands
from services.cli.demo import run_demo
from services.cli.plans import plan, sweep
from services.cli.records import artifacts, diff
from services.executor.main import serve
from shared import log
from shared.errors import FullsendError, PlanError, SettingsError

WRONG_SETTINGS = 2
INTERRUPTED = 130
BROKEN_PIPE = 141


def worker() -> int:
    """Run a worker in this process until Ctrl-C or SIGTERM.

    If REDIS_URL is not set, the worker starts an embedded server with its data in .fullsend/. Other
    commands in this directory find that server. Settings come from the environment, .env and
    config/schedule.yaml; `fullsend doctor` lists them.
    """
    settings = connection.settings()
    log.configure(level=settings.log_level, for_good=True)
    return serve(settings, os.environ)


app = typer.Typer(
    name="fullsend",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown" if sys.stdout is not None and sys.stdout.isatty() else None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(run_demo.demo)
app.command()(worker)
app.command()(experiments.publish)
app.command()(experiments.trigger)
app.command()(runs.runs)
app.command()(runs.show)
app.command()(runs.logs)
app.command()(diff.diff)
app.add_typer(artifacts.app, name="artifacts")
app.add_typer(plan.app, name="plan")
app.add_typer(sweep.app, name="sweep")
app.add_typer(modal_commands.app, name="modal")
app.command()(experiments.cancel)
app.command()(watch.watch)
app.command()(web.web)
app.command()(schedules.schedules)
app.add_typer(tools.app, name="tools")
app.command()(aggregate.aggregate)
app.command()(doctor.doctor)


def _version(asked: bool) -> None:
    if asked:
        output.say(f"fullsend {metadata.version('fullsend-executor')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def fullsend(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run experiments: Python tools in isolated subprocesses, controlled and reported over Redis.

    Commands connect to the Redis server in REDIS_URL, from the environment or .env. If it is not set,
    they connect to the embedded server that `fullsend worker` or `fullsend demo` runs in this directory.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: the command line without the program's name; by default `sys.argv`.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a closed stream is None
            stream.reconfigure(errors="backslashreplace")  # text from Redis may hold lone surrogates
    try:
        code = app(args=arguments, prog_name="fullsend", standalone_mode=False)
        print(end="", flush=True)
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it exits; that must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as exc:
        return _report_error(exc)
    return code if isinstance(code, int) else 0


def _report_error(exc: Exception) -> int:
    """Print an error on one line and return the exit code."""
    match exc:
        case ExceptionGroup():
            return _report_error(exc.exceptions[0])
        case typer.TyperException():
            context = getattr(exc, "ctx", None)
            hint = f" (see `{context.command_path} --help`)" if context else ""
            output.print_error(exc.format_message() + hint)
            return exc.exit_code
        case SettingsError() | PlanError() | output.Mistakes():  # one line for each mistake
            for mistake in str(exc).splitlines():
                output.print_error(mistake)
            return WRONG_SETTINGS if isinstance(exc, SettingsError) else 1
        case FullsendError():
            output.print_error(str(exc))
            return 1
        case _ if os.environ.get("FULLSEND_DEBUG"):
            raise exc
        case _:
            text = f"{type(exc).__name__}: {exc}"
            output.print_error(
                f"{text} (this is a bug in fullsend; set FULLSEND_DEBUG=1 to see the traceback)"
            )
            return 1


if __name__ == "__main__":
    sys.exit(main())
