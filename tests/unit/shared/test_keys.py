"""The keys and channels, pinned: neighbours and older versions of this service know them by these texts."""

import inspect
from collections.abc import Callable

import pytest

from shared import keys

CHANNELS = {
    "EXECUTE_NOW": "fullsend:execute_now",
    "SCHEDULES_CHANGED": "fullsend:schedules",
    "METRICS": "fullsend:metrics",
    "RESULTS": "fullsend:experiment_results",
    "MARKERS": "fullsend:executor:markers",
    "CANCEL": "fullsend:executor:cancel",
}
PATTERNS = {"EXPERIMENT_PATTERN": "experiments:*", "SCHEDULE_PATTERN": "schedules:*"}
KEYS: dict[Callable[..., str], str] = {
    keys.experiment: "experiments:a:b",
    keys.schedule: "schedules:a:b",
    keys.tool: "tools:a:b",
    keys.run: "experiment_runs:a:b",
    keys.metrics: "metrics:a:b",
    keys.queue: "fullsend:executor:queue:a:b",
    keys.retries: "fullsend:executor:retries",
    keys.bell: "fullsend:executor:bell",
    keys.bell_of: "fullsend:executor:bell:a:b",
    keys.tools_of: "fullsend:executor:tools:a:b",
    keys.wanted: "fullsend:executor:wanted",
    keys.partials: "fullsend:executor:partials:a:b",
    keys.registered: "fullsend:executor:registered",
    keys.cron_of: "fullsend:executor:cron:a:b",
    keys.probe: "fullsend:executor:probe:a:b",
    keys.compiled: "fullsend:executor:compiled:2:a:b",
    keys.due_times: "fullsend:executor:due_times",
    keys.noted_schedules: "fullsend:executor:noted_schedules",
    keys.turns: "fullsend:executor:turns",
    keys.cycle: "fullsend:executor:cycle",
    keys.workers: "fullsend:executor:workers",
    keys.slots: "fullsend:executor:slots",
    keys.silence: "fullsend:executor:silence:a:b",
    keys.listeners: "fullsend:executor:listeners",
    keys.holders: "fullsend:executor:holders:a:b",
    keys.rate: "fullsend:executor:rate:a:b",
    keys.blocked: "fullsend:executor:blocked:a:b",
    keys.nudges: "fullsend:executor:nudges",
    keys.ears: "fullsend:executor:ears",
    keys.ear: "fullsend:executor:ear:a:b",
    keys.open_runs: "fullsend:executor:open:a:b",
    keys.planner: "fullsend:executor:planner:a:b",
    keys.admitted: "fullsend:executor:admitted:a:b",
    keys.request: "fullsend:executor:request:3:a:b:a:b",
    keys.logs: "fullsend:executor:logs:a:b",
    keys.checkpoints: "fullsend:executor:checkpoints:a:b",
    keys.runs: "fullsend:executor:runs",
    keys.runs_of: "fullsend:executor:runs_of:a:b",
    keys.runs_with: "fullsend:executor:runs_a:b",
    keys.runs_indexed: "fullsend:executor:runs_indexed",
    keys.artifacts: "fullsend:executor:artifacts:a:b",
    keys.cached: "fullsend:executor:cached:a:b",
    keys.journal: "fullsend:executor:journal",
    keys.dataset: "fullsend:executor:dataset",
}


def test_channels_and_patterns_are_what_neighbours_know() -> None:
    constants = {name: value for name, value in vars(keys).items() if name.isupper()}

    assert constants == CHANNELS | PATTERNS


@pytest.mark.parametrize(("key", "text"), KEYS.items(), ids=lambda one: getattr(one, "__name__", ""))
def test_a_key_is_what_neighbours_know(key: Callable[..., str], text: str) -> None:
    named = ["a:b"] * len(inspect.signature(key).parameters)

    assert key(*named) == text


def test_every_key_is_pinned() -> None:
    functions = {one for _, one in inspect.getmembers(keys, inspect.isfunction)}

    assert functions == set(KEYS)


def test_what_is_not_the_contracts_is_under_the_executors_own_name() -> None:
    own = [text for text in (*KEYS.values(), *CHANNELS.values()) if text.startswith("fullsend:executor:")]
    contract = {*KEYS.values(), *CHANNELS.values()} - set(own)

    assert {text.split(":")[0] for text in contract} == {
        "experiments",
        "schedules",
        "tools",
        "experiment_runs",
        "metrics",
        "fullsend",
    }
    assert len(set(own)) == len(own) == len(KEYS) - 5 + 2
