"""Experiments, schedules and tools as the neighbours wrote them."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from services.executor.store.scripts import Script, Scripts, asking
from shared import keys
from shared.errors import ContractError
from shared.messages import Experiment, State, place_of_state
from shared.schedules import Schedule, read_schedule
from shared.stored import Stored, content_of, prepare_stored, read_stored, schedule_at, would_recur

if TYPE_CHECKING:
    from services.executor.store.claims import Claims

READ_AT_ONCE = 200

READ = Script("read", keys=("names[]",))
_SET_STATE = Script("set_state", args=("experiment_id", "state"))


@dataclass(frozen=True, slots=True)
class Published:
    """What came of publishing an experiment.

    Attributes:
        state: of the experiment.
        removed_schedule: it had a schedule from its file before, which the file hasn't any more.
        kept_schedule: it has a schedule that somebody else has written, and its file has none.
        stays_off: its schedule was turned off before, not by its file, and stays so.
    """

    state: State
    removed_schedule: bool = False
    kept_schedule: bool = False
    stays_off: bool = False


SET_ASIDE = (State.PAUSED, State.ARCHIVED)
"""States of an experiment that somebody has put there to stay."""


class Experiments:
    """Reads what the neighbours wrote; writes only what the contract gives to the executor."""

    def __init__(self, scripts: Scripts, claims: "Claims") -> None:
        self._scripts = scripts
        self._claims = claims

    async def set_state(self, experiment_id: str, state: State) -> None:
        """Set the state of an experiment in whatever shape it is stored.

        Raises:
            ContractError: there is no such experiment, or it can't be read.
        """
        answer = await self._claims.compiling(
            lambda _: self._scripts.call(_SET_STATE, [], [experiment_id, state.value])
        )
        if answer != "set":
            (await self.read(experiment_id)).readable()
            raise ContractError(f"{keys.experiment(experiment_id)} changes too fast; try again")

    async def read(self, experiment_id: str) -> Stored:
        """What is stored for `experiment_id`; what is wrong with it is in the answer."""
        [stored] = await self.read_many([experiment_id])
        return stored

    async def read_many(self, experiment_ids: Sequence[str]) -> list[Stored]:
        """The same for several, in one trip."""
        pairs = await self._scripts.call(READ, [keys.experiment(one) for one in experiment_ids])
        found: list[Stored] = []
        for one, (kind, content) in zip(experiment_ids, pairs, strict=True):
            await prepare_stored(kind, content)
            stored = read_stored(one, kind, content)
            if stored.experiment is None:
                stored = replace(stored, would_recur=would_recur(kind, content))
            found.append(stored)
        return found

    async def scan(self) -> AsyncIterator[tuple[str, Stored]]:
        """Every experiment there is, readable or not, in no order."""
        async for names in self._scan(keys.EXPERIMENT_PATTERN):
            for name, stored in zip(names, await self.read_many(names), strict=True):
                yield name, stored

    async def schedule(self, experiment_id: str) -> Schedule | None:
        """The schedule of one experiment.  Raises `ContractError`."""
        [(kind, content)] = await self._read([keys.schedule(experiment_id)])
        return None if kind == "none" else read_schedule(experiment_id, kind, content)

    async def schedules(self, experiment_ids: Sequence[str]) -> dict[str, Schedule | ContractError]:
        """The schedules of several, or what is wrong with them, as far as there are any."""
        pairs = await self._read([keys.schedule(one) for one in experiment_ids])
        read = {
            one: schedule_at(one, kind, content)
            for one, (kind, content) in zip(experiment_ids, pairs, strict=True)
        }
        return {one: schedule for one, schedule in read.items() if schedule is not None}

    async def names(self, prefix: str, cursor: int, count: int) -> tuple[int, list[str]]:
        """What follows a prefix in the names of `count` keys from a cursor on, and the next cursor.

        The cursor is 0 at first and at the end.  Names may come twice.
        """
        async with asking("scan"):
            cursor, found = await self._scripts.client.scan(cursor, match=f"{prefix}*", count=count)
        return cursor, [name[len(prefix) :] for name in found]

    async def scan_schedules(self) -> AsyncIterator[tuple[str, Schedule | ContractError]]:
        """Every schedule there is, or what is wrong with it, in no order."""
        async for names in self._scan(keys.SCHEDULE_PATTERN):
            for name, schedule in (await self.schedules(names)).items():
                yield name, schedule

    async def store_schedule(self, schedule: Schedule) -> None:
        """Keep a schedule that was only announced; an existing key stays as it is."""
        text = schedule.to_json()
        async with asking("store_schedule"):
            await self._scripts.client.set(keys.schedule(schedule.experiment_id), text, nx=True)

    async def publish(
        self,
        experiment: Experiment,
        text: str,
        schedule: Schedule | None,
        now: str,
        *,
        keeps_set_aside: bool = True,
    ) -> Published:
        """Store an experiment file and its schedule, and announce the schedule.

        Args:
            experiment: what the file says, with the state that it is to have.
            text: the file.
            schedule: when it runs, if it has a schedule.
            now: ISO 8601, for `created_at` and `updated_at`.
            keeps_set_aside: whether an experiment that is paused or archived stays so, and a schedule off.
        """
        key, schedule_key = keys.experiment(experiment.id), keys.schedule(experiment.id)
        state, had_schedule, stays_off = experiment.state, False, False

        async def store(pipe: Any) -> None:
            nonlocal state, had_schedule, stays_off
            kind = await pipe.type(key)
            before = await self._before(pipe, key, kind)
            stored = (await self.read(experiment.id)).experiment
            had_schedule = stored is not None and stored.schedule is not None
            state = before if keeps_set_aside and before in SET_ASIDE else experiment.state
            known = (await self.schedules([experiment.id])).get(experiment.id)
            is_off = isinstance(known, Schedule) and not known.enabled
            was_on_in_file = stored is None or stored.is_schedule_enabled
            stays_off = keeps_set_aside and is_off and was_on_in_file and bool(schedule and schedule.enabled)
            pipe.multi()
            if kind != "hash":
                pipe.delete(key)
            # Fields of another shape must not contradict the file.
            pipe.hdel(key, "tool", "params", "execution")
            pipe.hset(key, mapping={"spec": text, "state": state.value, "updated_at": now})
            pipe.hsetnx(key, "created_at", now)
            if schedule:
                text_of_schedule = schedule.model_copy(
                    update={"enabled": schedule.enabled and not stays_off}
                ).to_json()
                pipe.set(schedule_key, text_of_schedule)
                pipe.publish(self._scripts.channel(keys.SCHEDULES_CHANGED), text_of_schedule)
            elif had_schedule:
                pipe.delete(schedule_key)
            pipe.exists(schedule_key)

        async with asking("publish"):
            *_, deleted, exists = await self._scripts.client.transaction(store, key, schedule_key)
        is_gone = had_schedule and schedule is None
        return Published(state, is_gone and bool(deleted), bool(exists) and schedule is None, stays_off)

    async def _before(self, pipe: Any, key: str, kind: str) -> State | None:
        """The state of an experiment now, if it has one."""
        if kind == "string":
            place = place_of_state(await pipe.get(key))
            return State(place[0]) if place else None
        state = await pipe.hget(key, "state") if kind == "hash" else None
        return State(state) if state in list(State) else None

    async def scan_tools(self) -> AsyncIterator[tuple[str, Mapping[str, str] | ContractError]]:
        """Every tool that is registered, or what is wrong with its key, in no order."""
        async for names in self._scan(keys.tool("*")):
            for name, (kind, content) in zip(
                names, await self._read([keys.tool(name) for name in names]), strict=True
            ):
                if kind == "hash":
                    yield name, content
                elif kind != "none":
                    yield name, ContractError(f"{keys.tool(name)} is a Redis {kind}; expected a hash")

    async def read_tools(self, names: Sequence[str]) -> dict[str, Mapping[str, str]]:
        """What is registered of these; those that are not, and keys that are no hash, are left out."""
        found: dict[str, Mapping[str, str]] = {}
        for start in range(0, len(names), READ_AT_ONCE):
            some = names[start : start + READ_AT_ONCE]
            pairs = await self._read([keys.tool(name) for name in some])
            found |= {name: one for name, (kind, one) in zip(some, pairs, strict=True) if kind == "hash"}
        return found

    async def register_tool(self, name: str, fields: Mapping[str, str]) -> None:
        """Write `fields` at `tools:{name}`; what others wrote stays, also a `description` or a `path`."""
        key = keys.tool(name)

        async def store(pipe: Any) -> None:
            found = await pipe.hgetall(key)
            pipe.multi()
            pipe.hset(key, mapping={**fields, **_shown(found, fields)})
            pipe.hsetnx(key, "created_at", fields["updated_at"])
            if fields.get("status") == "active":
                pipe.hdel(key, "error")
            if "provisional" not in fields:
                pipe.hdel(key, "provisional")
            pipe.sadd(keys.registered(), name)

        async with asking("register_tool"):
            await self._scripts.client.transaction(store, key)

    async def registered_tools(self) -> set[str]:
        """The names of the tools that executors have registered, and that nobody has removed since."""
        async with asking("registered_tools"):
            return set(await self._scripts.client.smembers(keys.registered()))

    async def note_registered(self, names: Sequence[str]) -> None:
        """Add to the names of the tools that executors have registered."""
        if names:
            async with asking("note_registered"):
                await self._scripts.client.sadd(keys.registered(), *names)

    async def tool_is_missing(self, name: str, now: str) -> bool:
        """Write that no worker has a tool any more; False if no executor has registered it."""
        key = keys.tool(name)

        async def store(pipe: Any) -> None:
            is_ours = await pipe.hexists(key, "described_by")
            pipe.multi()
            if is_ours:
                pipe.hset(key, mapping={"state": "missing", "updated_at": now})
            else:
                pipe.srem(keys.registered(), name)
            pipe.hexists(key, "described_by")

        async with asking("tool_is_missing"):
            *_, is_ours = await self._scripts.client.transaction(store, key)
        return bool(is_ours)

    async def _read(self, names: Sequence[str]) -> list[tuple[str, Any]]:
        answer = await self._scripts.call(READ, names)
        return [(kind, content_of(kind, content)) for kind, content in answer]

    async def _scan(self, pattern: str) -> AsyncIterator[list[str]]:
        """The ids under a pattern, some hundred at a time, none twice."""
        prefix = len(pattern) - 1
        seen: set[str] = set()
        cursor = 0
        while True:
            async with asking("scan"):
                cursor, found = await self._scripts.client.scan(cursor, match=pattern, count=1_000)
            fresh = [name[prefix:] for name in dict.fromkeys(found) if name not in seen]
            seen.update(found)
            for start in range(0, len(fresh), READ_AT_ONCE):
                yield fresh[start : start + READ_AT_ONCE]
            if cursor == 0:
                return


def _shown(found: Mapping[str, str], fields: Mapping[str, str]) -> dict[str, str]:
    """The description and the path of a tool, where nobody but an executor has written one.

    Executors write theirs as `summary` and `file` as well; versions before did not.
    """
    ours = {"description": "summary", "path": "file"}
    is_older = "described_by" in found and "file" not in found
    return {
        name: fields[own]
        for name, own in ours.items()
        if own in fields and (is_older or found.get(name, "") in ("", found.get(own)))
    }
