"""The `fullsend` command: composes the commands, and turns what goes wrong into one line and an exit code."""

import io
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

import typer

from services.cli import aggregate, connection, doctor, experiments, output, runs, schedules, tools, watch
from services.cli.demo import run_demo
from services.cli.plans import plan, sweep
from services.cli.records import artifacts, diff
from services.executor.main import serve
from shared import log
from shared.errors import FullsendError, SettingsError

WRONG_SETTINGS = 2
INTERRUPTED = 130
BROKEN_PIPE = 141


def worker() -> int:
    """Run the executor here, until Ctrl-C or SIGTERM.

    Without REDIS_URL it brings a server of its own, with its data in .fullsend/, which the other
    commands find from the same directory. Settings come from the environment, .env and
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
app.command()(runs.cancel)
app.command()(watch.watch)
app.command()(schedules.schedules)
app.command()(tools.tools)
app.command()(aggregate.aggregate)
app.command()(doctor.doctor)


def _version(asked: bool) -> None:
    if asked:
        print(f"fullsend {metadata.version('fullsend-executor')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def fullsend(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run experiments: Python tools in isolated subprocesses, driven and reported over Redis.

    Commands speak to the server that REDIS_URL names, in the environment or in .env. Without it, to the
    one that a `fullsend worker` or `fullsend demo` has started in this directory.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # it is None where it was closed
            stream.reconfigure(errors="backslashreplace")  # text from Redis may hold what it can't encode
    try:
        code = app(args=arguments, prog_name="fullsend", standalone_mode=False)
        print(end="", flush=True)
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # so that the exit doesn't flush into it
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as exc:
        return _tell(exc)
    return code if isinstance(code, int) else 0


def _tell(exc: Exception) -> int:
    """Say in a line what went wrong; the exit code."""
    match exc:
        case ExceptionGroup():
            return _tell(exc.exceptions[0])
        case typer.TyperException():
            context = getattr(exc, "ctx", None)
            hint = f" (see `{context.command_path} --help`)" if context else ""
            output.error(exc.format_message() + hint)
            return exc.exit_code
        case SettingsError():
            for mistake in str(exc).splitlines():
                output.error(mistake)
            return WRONG_SETTINGS
        case FullsendError():
            output.error(str(exc))
            return 1
        case _ if os.environ.get("FULLSEND_DEBUG"):
            raise exc
        case _:
            text = f"{type(exc).__name__}: {exc}"
            output.error(f"{text} (a fault of this program; FULLSEND_DEBUG=1 shows where)")
            return 1


if __name__ == "__main__":
    sys.exit(main())
