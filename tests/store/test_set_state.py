"""Somebody's wish for another state of an experiment."""

from typing import Any

import pytest

from services.executor.store import Store
from shared import keys
from shared.errors import ContractError, ExperimentNotFoundError
from shared.messages import State
from tests.store.conftest import EXPERIMENT, SHAPES, publish, state_of


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_state_is_set_in_every_shape_also_an_archived_one(
    shape: str, store: Store, redis: Any
) -> None:
    await publish(redis, shape, "archived")

    await store.experiments.set_state(EXPERIMENT, State.READY)

    assert await state_of(redis) == "ready"
    assert (await store.experiments.read(EXPERIMENT)).readable().state is State.READY


async def test_an_experiment_that_can_not_be_read_keeps_its_state(store: Store, redis: Any) -> None:
    with pytest.raises(ExperimentNotFoundError):
        await store.experiments.set_state(EXPERIMENT, State.PAUSED)
    await redis.hset(keys.experiment(EXPERIMENT), mapping={"state": "ready", "execution": "no JSON"})
    with pytest.raises(ContractError):
        await store.experiments.set_state(EXPERIMENT, State.PAUSED)

    assert await redis.hget(keys.experiment(EXPERIMENT), "state") == "ready"
