"""An order survives the queue: what is written is read again, and nonsense is refused."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.store import Claim, Order
from services.executor.store.orders import PRIORITIES
from shared.errors import ContractError

# A shared core makes a single example slow at times; the same examples on every run are no surprise.
steady = settings(deadline=None, derandomize=True, max_examples=150)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
texts = st.text(min_size=1)
names = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=50)
made = st.builds(
    Order,
    experiment_id=names,
    trigger=st.sampled_from(["trigger", "cron", "speedrun"]),
    timestamp=st.none() | st.from_regex(r"[0-9]{1,13}-[0-9]{1,5}", fullmatch=True),
    attempt=st.integers(1, 1_000),
    losses=st.integers(0, 10),
    serial=st.booleans(),
    priority=st.sampled_from(PRIORITIES),
    reserved=st.lists(names, max_size=2).map(tuple),
    params=st.dictionaries(st.text(), json_values, max_size=4),
    scheduled_for=st.none() | texts,
    request_id=st.none() | texts,
    triggered_by=st.none() | st.text(),
    traceparent=st.none() | st.text(),
    history=st.lists(st.dictionaries(st.text(), json_values, max_size=3), max_size=3).map(tuple),
)


@steady
@given(made)
def test_an_order_comes_back_as_it_was_written(order: Order) -> None:
    back = Order.decode(order.encode(), "5-6")

    assert back == (
        order if order.timestamp is not None else Order(**{**_members(order), "timestamp": "5-6"})
    )


def _members(order: Order) -> dict[str, Any]:
    return {name: getattr(order, name) for name in Order.__struct_fields__}


def order_text(rest: str = "{}", **head: str) -> str:
    """An order as the queue holds it, with some parts of its first line replaced."""
    parts = {
        "priority": "normal",
        "id": "e",
        "timestamp": "",
        "attempt": "1",
        "trigger": "cron",
        "serial": "",
    }
    return "\t".join((parts | {"serial": ""} | head).values()) + "\n\n\n" + rest


def test_only_what_differs_from_the_defaults_is_written() -> None:
    assert Order("e", "cron").encode() == order_text()


def test_an_order_names_the_limit_of_the_experiment_that_it_brings() -> None:
    own = {"tool": "t", "max_concurrent": 2, "limit_key": "a b"}

    assert Order("e", "plan", experiment=own).encode().split("\n")[2] == "own\tt\t2 0 1 key:a b"


def test_params_of_any_depth_that_is_read_can_be_queued() -> None:
    params: dict[str, Any] = {}
    for _ in range(95):
        params = {"a": params}

    assert Order.decode(Order("e", "trigger", params=params).encode(), "1-1").params == params


@pytest.mark.parametrize(
    "value", [10**30, -(2**63) - 1, 1e22, 5e-324, -0.0, "[" * 200, "\ud800", "\x7f", [1, 1.0, True]]
)
def test_whatever_json_can_hold_is_read_as_it_was(value: Any) -> None:
    """Also what the quick way of reading an order leaves to the careful one."""
    text = order_text(json.dumps({"params": {"a": value}}))

    assert repr(Order.decode(text, "1-2").params) == repr({"a": value})


def test_members_of_a_newer_version_are_passed_on() -> None:
    others = {"lane": {"name": "fast"}, "deadline": 5, "others": [1]}
    text = order_text(json.dumps(others), serial="serial\tand more").replace("serial\tand more", "\tand more")
    order = Order.decode(text, "1-2")

    assert order == Order("e", "cron", timestamp="1-2", others=others)
    assert Order.decode(order.after_failure({}).encode(), "3-4").others == others


@pytest.mark.parametrize(
    "text",
    [
        *("", "nonsense", "[]", "normal\te", "normal\te\t\t1\tcron\t", '{"experiment_id": "e"}'),
        order_text(id=""),
        order_text(id="\x7f"),
        order_text(timestamp="5"),
        order_text(timestamp="yesterday"),
        order_text(attempt="first"),
        order_text(attempt="0"),
        order_text(attempt="-1"),
        *(order_text(rest) for rest in ("", "nonsense", "[]", "null", "5")),
        order_text('{"losses": "x"}'),
        order_text('{"losses": -1}'),
        order_text('{"params": []}'),
        order_text('{"params": null}'),
        order_text('{"history": {}}'),
        order_text('{"history": ["x"]}'),
        order_text('{"request_id": 5}'),
        order_text('{"params": {"a": NaN}}'),
        order_text('{"params": ' + '{"a":' * 5_000 + "1" + "}" * 5_001),
        *(order_text(f'{{"experiment":{one}}}') for one in ("null", "[]", '"echo"', "5")),
    ],
)
def test_nonsense_is_refused_with_the_place_it_is_in(text: str) -> None:
    with pytest.raises(ContractError, match=r"^queue entry 1-2 "):
        Order.decode(text, "1-2")


@pytest.mark.parametrize("priority", ["urgent", ""])
def test_a_priority_that_nobody_knows_is_the_normal_one(priority: str) -> None:
    """Or the order would go back to a queue that nobody reads."""
    assert Order.decode(order_text(priority=priority), "1-2").priority == "normal"


@pytest.mark.parametrize(
    ("text", "run"),
    [
        (order_text(attempt="x"), ("e", "1-2")),
        (order_text("nonsense", timestamp="5-6"), ("e", "5-6")),
        (order_text(id=""), None),
        (order_text(timestamp="yesterday"), None),
        ("nonsense", None),
        ("", None),
    ],
)
def test_nonsense_may_still_name_its_run(text: str, run: tuple[str, str] | None) -> None:
    found = Order.run_named_in(text, "1-2")

    assert (found and (found.experiment_id, found.timestamp)) == run


def test_an_order_knows_its_run() -> None:
    order = Order("a:b", "cron", timestamp="1700000000123-4")

    assert (order.run_id, order.queued_at) == ("a:b:1700000000123-4", 1_700_000_000.123)


def test_what_follows_a_failure_is_the_next_attempt() -> None:
    order = Order("e", "cron", timestamp="1-1", params={"a": 1}).after_failure({"error": "x"})

    assert (order.attempt, order.losses, order.history) == (2, 0, ({"error": "x"},))
    assert (order.timestamp, order.params) == ("1-1", {"a": 1})


def test_what_follows_a_loss_is_the_same_attempt() -> None:
    order = Order("e", "cron", timestamp="1-1", attempt=2).after_loss({"error": "x"})

    assert (order.attempt, order.losses, order.history) == (2, 1, ({"error": "x"},))


def test_each_delivery_has_a_lease_of_its_own() -> None:
    order = Order("e", "cron", timestamp="1-1")
    leases = {Claim("q", entry, worker, order).lease for entry in ("1-1", "2-1") for worker in ("w1", "w2")}

    assert len(leases) == 4
