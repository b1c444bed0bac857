"""The experiment's policy counts most, then the tool's needs, then the settings."""

import pytest

from services.executor.isolation.calls import Level, Limits
from services.executor.policy import Defaults, ToolNeeds, process_limits, retry_backoff
from services.executor.store.orders import limit_of
from shared.errors import ToolError
from shared.messages import Policy

DEFAULTS = Defaults(
    300.0,
    retry_backoff(3, 1.0, 30.0),
    Level.WARM,
    environment=("ALL",),
    allowed=("KEY", "APP_*_URL", "MISSING", "REDIS*"),
    variables={"ALL": "1", "KEY": "2", "OTHER": "3", "APP_A_URL": "4", "REDIS_URL": "5", "redis_url": "6"},
)


def test_the_experiment_overrides_the_tool_and_the_tool_overrides_the_settings() -> None:
    said, needs = Policy(timeout_seconds=5, isolation="spawn"), ToolNeeds(timeout_seconds=9, isolation="fork")

    assert [DEFAULTS.timeout(one, other) for one, other in _combined(said, needs)] == [5, 9, 300]
    assert [DEFAULTS.isolation(one, other) for one, other in _combined(said, needs)] == [
        "spawn",
        "fork",
        "warm",
    ]


def test_process_limits_are_the_experiments_or_the_tools() -> None:
    limits = process_limits(Policy(memory_mb=1, processes=4), ToolNeeds(memory_mb=9, open_files=7))

    assert limits == Limits(memory_bytes=1_000_000, open_files=7, processes=4)


def test_the_longest_pause_is_at_least_the_first() -> None:
    assert DEFAULTS.retries(Policy(max_attempts=7, backoff_min=60)) == retry_backoff(7, 60, 60)
    assert DEFAULTS.retries(Policy()) == DEFAULTS.backoff


def test_a_tool_sees_the_variables_of_all_tools_and_those_that_it_asks_for() -> None:
    asked = ToolNeeds(environment=("KEY", "MISSING", "APP_A_URL", "PATH"))

    assert DEFAULTS.environ(ToolNeeds()) == {"ALL": "1"}
    assert DEFAULTS.environ(asked) == {"ALL": "1", "KEY": "2", "APP_A_URL": "4"}


@pytest.mark.parametrize("name", ["OTHER", "KEY2", "XKEY", "key", "APP_URL", "APP_A_URL_", "ABSENT", ""])
def test_a_variable_that_is_not_allowed_is_refused_by_name(name: str) -> None:
    expected = rf"asks for the variable {name} .* add {name} to TOOL_ENVIRONMENT_ALLOWED"

    with pytest.raises(ToolError, match=expected):
        DEFAULTS.environ(ToolNeeds(environment=("KEY", name)))


@pytest.mark.parametrize("name", ["REDIS_URL", "redis_url"])
def test_the_connection_is_given_to_no_tool_although_it_is_allowed(name: str) -> None:
    with pytest.raises(ToolError, match=f"asks for the variable {name} .*connection to Redis"):
        DEFAULTS.environ(ToolNeeds(environment=(name,)))


def test_a_chosen_key_differs_from_every_experiments_and_tools_own() -> None:
    chosen = limit_of(Policy(max_concurrent=2, limit_key="tool:t"), "experiment:exp")

    assert chosen == "2 0 1 key:tool:t"
    assert limit_of(ToolNeeds(max_per_minute=60), "tool:t") == "0 1000.0 1 tool:t"


def _combined(said: Policy, needs: ToolNeeds) -> list[tuple[Policy, ToolNeeds]]:
    return [(said, needs), (Policy(), needs), (Policy(), ToolNeeds())]
