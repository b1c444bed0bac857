"""What the page does: cancel runs, and run experiments."""

import secrets
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from services.executor.recovery import cancel
from services.executor.store import Store
from services.operations import words
from services.operations.run_records import record_of
from services.operations.triggering import send_trigger
from services.web.bodies import Form, action, need
from services.web.rendering import place


@action
async def cancel_run(request: Request, form: Form) -> Response:
    """Ask for the end of a run."""
    run_id = need(form, "id")
    await request.app.state.access.ask(lambda store: cancel(store, run_id))
    return RedirectResponse(place(request, "/run", id=run_id), 303)


@action
async def run_again(request: Request, form: Form) -> Response:
    """Run the experiment of a run again, with the run's parameters."""
    run_id = need(form, "id")

    async def act(store: Store) -> str:
        params = words.parse_json((await record_of(store, run_id)).get("params"))
        return await trigger(
            request, store, run_id.rpartition(":")[0], params if isinstance(params, dict) else {}
        )

    return RedirectResponse(place(request, "/run", id=await request.app.state.access.ask(act)), 303)


async def trigger(request: Request, store: Store, experiment_id: str, params: dict[str, Any]) -> str:
    """Run an experiment with these parameters over its own.  Returns the id of the run."""
    message = {
        "experiment_id": experiment_id,
        "request_id": secrets.token_hex(8),
        "triggered_by": "web",
        **({"params": params} if params else {}),
    }
    return await send_trigger(store, request.app.state.channel, message)
