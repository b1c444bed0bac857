"""`fullsend schedules`."""

from dataclasses import asdict
from typing import Annotated

import typer

from services.cli import connection, output
from services.cli.output import Column
from services.operations.schedule_rows import read_all_schedules

COLUMNS = [
    Column("EXPERIMENT"),
    Column("STATE"),
    Column("CRON", drop=2),
    Column("NEXT"),
    Column("NEXT IN UTC", drop=1),
    Column("MEANING", wraps=True),
    Column("PROBLEM", wraps=True),
]


def schedules(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for another program.")] = False,
) -> None:
    """List schedules in words, with next due times and problems."""
    found = connection.with_store(read_all_schedules)
    if as_json:
        output.print_json([asdict(one) for one in found])
        return
    out = output.console()
    if not found and out.is_terminal:
        out.print("no schedules; an experiment file gets one with `schedule` in `execution`")
        return
    rows: list[list[output.Cell]] = [
        [
            one.experiment_id,
            output.styled(one.state),
            one.cron,
            one.next_local,
            one.next_utc,
            one.meaning,
            output.styled("problem", one.doubts),
        ]
        for one in found
    ]
    output.table(COLUMNS, rows, out)
