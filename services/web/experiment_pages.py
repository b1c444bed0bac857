"""Experiments: what there is, a form to run one, and its state."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from services.executor.store import Store, Stored
from services.operations import words
from services.operations.registered_tools import registered_tool
from services.operations.run_records import recent_runs, record_of
from services.operations.schedule_rows import ScheduleRow, read_all_schedules
from services.web.actions import trigger
from services.web.bodies import Form, action, need
from services.web.forms import fields_of, read_params
from services.web.rendering import page, place
from services.web.run_page import RunRow
from shared.messages import Experiment, State

RUNS = 20
MARKS = 10
"""Last runs of each experiment in the list."""
LOOKED_AT = 2_000
"""Runs among which the last ones of each experiment are looked for."""

WISHES = {"pause": State.PAUSED, "resume": State.READY, "archive": State.ARCHIVED}


@dataclass(frozen=True, slots=True)
class ExperimentRow:
    """An experiment as the list shows it."""

    experiment_id: str
    state: str
    tool: str
    problem: str
    next_due: str
    runs: list[RunRow]


async def experiments(request: Request) -> Response:
    """All experiments."""

    async def look(store: Store) -> tuple[list[tuple[str, Stored]], list[ScheduleRow], list[RunRow]]:
        found = [pair async for pair in store.experiments.scan()]
        runs = await recent_runs(store, None, LOOKED_AT)
        return found, await read_all_schedules(store), [RunRow.of(one) for one in runs]

    found, schedules, runs = await request.app.state.access.ask(look)
    due = {one.experiment_id: one.next_local or one.state for one in schedules}
    last: dict[str, list[RunRow]] = {}
    for run in runs:
        some = last.setdefault(run.experiment_id, [])
        if len(some) < MARKS:
            some.append(run)
    rows = [_row(name, stored, due.get(name, ""), last.get(name, [])) for name, stored in sorted(found)]
    return page(request, "experiments.html", rows=rows)


def _row(name: str, stored: Stored, due: str, runs: list[RunRow]) -> ExperimentRow:
    if stored.experiment is None:
        return ExperimentRow(name, "invalid", "", str(stored.error), due, runs)
    return ExperimentRow(name, stored.experiment.state.value, stored.experiment.tool, "", due, runs)


async def experiment(request: Request) -> Response:
    """One experiment, with a form that contains its parameters, or those of the run `like`."""
    experiment_id = need(request.query_params, "id")
    like = request.query_params.get("like")

    async def look(store: Store) -> Response:
        one = (await store.experiments.read(experiment_id)).readable()
        params = dict(one.params)
        if like:
            of_run = words.parse_json((await record_of(store, like)).get("params"))
            params |= of_run if isinstance(of_run, dict) else {}
        return await _shown(request, store, one, params)

    answer: Response = await request.app.state.access.ask(look)
    return answer


async def _shown(
    request: Request,
    store: Store,
    one: Experiment,
    params: Mapping[str, Any],
    form: Form | None = None,
    problems: Mapping[str, str] | None = None,
) -> Response:
    tool = await registered_tool(store, one.tool)
    schedules = [row for row in await read_all_schedules(store) if row.experiment_id == one.id]
    runs = await recent_runs(store, one.id, RUNS)
    return page(
        request,
        "experiment.html",
        422 if problems else 200,
        one=one,
        tool=tool,
        fields=fields_of(tool and tool["parameters"], params, form, problems),
        schedules=schedules,
        runs=[RunRow.of(record) for record in runs],
        wishes=[
            wish for wish, state in WISHES.items() if state is not one.state and _makes_sense(wish, one.state)
        ],
    )


def _makes_sense(wish: str, state: State) -> bool:
    if wish == "resume":
        return state in (State.PAUSED, State.ARCHIVED, State.DRAFT)
    return state not in (WISHES[wish], State.ARCHIVED)


@action
async def trigger_experiment(request: Request, form: Form) -> Response:
    """Run an experiment with the parameters in a form; if they are wrong, show it again."""
    experiment_id = need(form, "id")

    async def act(store: Store) -> Response:
        one = (await store.experiments.read(experiment_id)).readable()
        tool = await registered_tool(store, one.tool)
        params, problems = read_params(tool and tool["parameters"], form)
        if problems:
            return await _shown(request, store, one, {}, form, problems)
        run_id = await trigger(request, store, experiment_id, params)
        return RedirectResponse(place(request, "/run", id=run_id), 303)

    answer: Response = await request.app.state.access.ask(act)
    return answer


@action
async def change_state(request: Request, form: Form) -> Response:
    """Pause, resume or archive an experiment."""
    experiment_id, wish = need(form, "id"), need(form, "wish")
    if wish not in WISHES:
        raise HTTPException(400, f"{wish!r} is not one of {', '.join(WISHES)}")
    await request.app.state.access.ask(lambda store: store.experiments.set_state(experiment_id, WISHES[wish]))
    return RedirectResponse(place(request, "/experiment", id=experiment_id), 303)
