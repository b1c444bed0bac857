"""Every worker gives a message the same position, whenever it began to listen."""

from services.executor.store import Position
from services.executor.store.pubsub import Message
from services.executor.triggers import Positions


def _placed(*heard: str) -> dict[str, Position]:
    """What each message's position is to a worker that hears these; markers begin with `m` or `leaving`."""
    positions = Positions()
    placed: dict[str, Position] = {}
    for data in heard:
        if data.startswith(("m", "leaving")):
            placed |= {message.data: position for message, position in positions.mark(data)}
        elif position := positions.place(Message("channel", data)):
            placed[data] = position
    return placed


def test_messages_are_counted_from_the_last_marker() -> None:
    placed = _placed("m1:0", "a", "b", "m2:0", "c")

    assert placed == {
        "a": Position("m1:0:channel", 0),
        "b": Position("m1:0:channel", 1),
        "c": Position("m2:0:channel", 0),
    }


def test_who_heard_more_before_an_open_marker_agrees_on_what_both_heard() -> None:
    longer, shorter = _placed("a", "b", "c", "m1:1", "d"), _placed("c", "m1:1", "d")

    assert set(longer) == {"a", "b", "c", "d"}
    assert shorter == {data: longer[data] for data in ("c", "d")}


def test_what_came_before_a_marker_that_is_not_open_is_somebody_elses() -> None:
    assert set(_placed("a", "m1:0", "b")) == {"b"}


def test_what_came_before_a_workers_leaving_is_its_own() -> None:
    assert set(_placed("a", "leaving:x:1", "b", "m2:1", "c")) == {"b", "c"}
