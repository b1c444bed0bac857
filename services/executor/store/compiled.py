"""Experiments compiled for scripts, which read no JSON and no YAML.

A worker reads a document once, in whatever shape a neighbour wrote it, and keeps beside the document's
digest what it says.  `lua/documents.lua` says when that counts.
"""

import json
from collections.abc import Sequence
from functools import lru_cache

from msgspec.structs import replace

from services.executor.store.orders import limit_of
from shared import keys
from shared.documents import json_text, printable, shown
from shared.errors import ContractError
from shared.messages import Experiment, Policy, State, place_of_state
from shared.stored import (
    REMEMBERED,
    REMEMBERED_CHARACTERS,
    Stored,
    not_found,
    read_stored,
    stored_as,
)

KEPT_SECONDS = 7 * 86_400
"""Experiments that nobody runs for so long are compiled again."""


def compiled(experiment_id: str, kind: str, content: Sequence[str] | str, digest: str) -> dict[str, str]:
    """The fields that scripts read, of a document in any shape.

    Args:
        experiment_id: whose it is.
        kind, content, digest: as a script has read the document.

    Returns:
        `digest`; `tool`, `limit` (see `Limit`) and `priority`, empty when the document can't be read;
        `body`, which `read_compiled` reads; `state`, the document's own, unless it is an unknown word; and of
        a text `before` and `after`, which surround its state in the form that the executor writes.
    """
    if kind == "hash":  # whose field `state` is no part of what is compiled: it is read each time
        content = _without_state(content)
    stored = read_stored(experiment_id, kind, content)
    if stored.experiment is None:
        fields = {"digest": digest, "tool": "", "limit": "", "priority": "", "body": _refusal(stored)}
        state = State.READY
    else:
        experiment = stored.experiment
        state = experiment.state
        fields = {
            "digest": digest,
            "tool": printable(experiment.tool),
            "limit": limit_of(experiment.policy, f"experiment:{experiment_id}"),
            "priority": experiment.policy.priority or "",
            "body": _body(experiment),
        }
    if kind == "hash":
        fields["state"] = state.value
    elif kind == "string" and isinstance(content, str) and (place := place_of_state(content)):
        fields["state"], fields["before"], fields["after"] = place
    return fields


def read_compiled(experiment_id: str, body: str, state: str) -> Stored:
    """What a script has told of an experiment; without a body there is none."""
    if not body:
        return Stored(None, not_found(experiment_id))
    read = _read_body if len(body) > REMEMBERED_CHARACTERS else _remembered_body
    stored = stored_as(read(experiment_id, body))
    if stored.experiment is None or state == stored.experiment.state:
        return stored
    try:
        return Stored(replace(stored.experiment, state=State(state or State.READY)), None)
    except ValueError:
        *others, last = State
        place = printable(keys.experiment(experiment_id))
        return Stored(
            None,
            ContractError(
                f"{place} member 'state' is {shown(state)}: expected {', '.join(others)} or {last}"
            ),
        )


def _read_body(experiment_id: str, body: str) -> Experiment | str:
    members = json.loads(body)
    if "error" in members:
        return str(members["error"])
    return Experiment(
        id=experiment_id,
        state=State.READY,
        tool=members["tool"],
        params=members["params"],
        schedule=None,
        timezone=None,
        policy=Policy(**members["policy"]),
    )


_remembered_body = lru_cache(maxsize=REMEMBERED)(_read_body)


def _body(experiment: Experiment) -> str:
    policy = experiment.policy.model_dump(exclude_none=True)
    return json_text({"tool": experiment.tool, "params": experiment.params, "policy": policy})


def _refusal(stored: Stored) -> str:
    return json_text({"error": str(stored.error)})


def _without_state(content: Sequence[str] | str) -> list[str]:
    pairs = zip(content[::2], content[1::2], strict=True)
    return [part for pair in pairs if pair[0] != "state" for part in pair]
