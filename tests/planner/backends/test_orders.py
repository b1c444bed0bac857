"""An order that contains its experiment: nothing is stored for it, and an invalid one is refused."""

from typing import Any

import pytest

from services.executor.store import Order, Stored, experiment_of
from shared.errors import ContractError, ExperimentNotFoundError
from shared.messages import Policy

OWN = {"tool": "echo", "seed": 2**63 - 1, "timeout_seconds": 0.5, "max_attempts": 1}
MISSING = Stored(None, ExperimentNotFoundError("experiments:e does not exist"))


def test_an_order_brings_its_experiment_through_the_queue() -> None:
    order = Order.decode(Order("e", "plan", params={"a": 1}, experiment=OWN).encode(), "1-1")
    later = Order.decode(order.after_loss({}).encode(), "2-2")
    found = experiment_of(later, MISSING)

    assert (found.id, found.tool, found.params, found.schedule) == ("e", "echo", {}, None)
    assert found.policy == Policy(seed=2**63 - 1, timeout_seconds=0.5, max_attempts=1)


def test_an_order_without_one_has_the_stored_one() -> None:
    with pytest.raises(ExperimentNotFoundError):
        experiment_of(Order("e", "trigger", timestamp="1-1"), MISSING)


@pytest.mark.parametrize(
    ("experiment", "complaint"),
    [
        ({"seed": 1}, "null as its experiment's 'tool'"),
        ({"tool": ""}, "a text as its experiment's 'tool'"),
        ({"tool": ["echo"]}, "a list as its experiment's 'tool'"),
        ({"tool": "echo", "seed": -1}, "member 'seed' is '-1'"),
        ({"tool": "echo", "isolation": "none"}, "member 'isolation' is 'none'"),
    ],
)
def test_an_experiment_that_cant_be_read_is_refused(experiment: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ContractError, match=f"^the order of e:1-1 .*{complaint}"):
        experiment_of(Order("e", "plan", timestamp="1-1", experiment=experiment), MISSING)
