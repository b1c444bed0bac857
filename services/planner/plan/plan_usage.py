"""What the runs of a plan have used of machines in all its sessions, from its registry."""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from services.planner.cost import UNPRICED, Tariff, Usage
from services.planner.plan.registry import Registry

_TARIFF: Final = "tariff:"
_COUNTED: Final = """
SELECT {key}, execution_id,
    sum(json_extract(result, '$.used.attempts')), sum(json_extract(result, '$.used.seconds')),
    sum(json_extract(result, '$.used.core_seconds')), sum(json_extract(result, '$.used.gib_seconds')),
    sum(json_extract(result, '$.used.gpu_seconds')), max(json_extract(result, '$.used.peak_bytes')),
    sum(json_extract(result, '$.used.money'))
FROM runs WHERE json_extract(result, '$.used') IS NOT NULL GROUP BY 1, 2
"""
"""What is in the results, each of which has what all attempts of its case in its session have used."""

_OTHERS: Final = """
SELECT {key}, execution_id,
    max(0, 86400 * (julianday(CASE WHEN status IN ('running', 'lost') THEN seen_at ELSE runs.ended_at END)
        - julianday(runs.began_at)))
FROM runs JOIN executions USING (execution_id)
WHERE runs.began_at IS NOT NULL AND json_extract(result, '$.used') IS NULL AND NOT EXISTS (
    SELECT 1 FROM runs AS ended WHERE ended.execution_id = runs.execution_id
        AND ended.case_index = runs.case_index AND json_extract(ended.result, '$.used') IS NOT NULL
)
"""
"""Attempts of cases without a result in their session: they run, were lost, or an older version ran them."""

_TOOL_COST: Final = """
SELECT {key}, sum(CASE WHEN json_type(value, '$.cost') IN ('integer', 'real')
    THEN max(0, json_extract(value, '$.cost')) ELSE 0 END)
FROM (
    SELECT {key}, coalesce(json_extract(result, '$.spent'), json_extract(result, '$.test_result'),
        CASE WHEN json_valid(json_extract(result, '$.execution.result'))
            AND json_type(json_extract(result, '$.execution.result')) = 'object'
        THEN json_extract(result, '$.execution.result') END) AS value
    FROM runs WHERE result IS NOT NULL
) WHERE value IS NOT NULL GROUP BY 1
"""
"""The sum of `cost` in the tool's results, but for those that are stored and were not read."""


@dataclass(frozen=True, slots=True)
class PlanUsage:
    """What the runs of a plan have used, in all sessions.

    Attributes:
        total: of all cases, with the overhead of places that are paid and run nothing.
        cases: of each case that has run, by index; empty unless asked for.
        currency: of the money; empty if there is none, or in several currencies, which aren't added.
        sources: where the prices are from.
        missing: why attempts have no price; empty if all have one.
        tool_cost: the sum of `cost` in the tool's results, in the tool's own unit; stored results count only
            if the plan has a budget of cost.
        tool_costs: the same of each case, by index; empty unless asked for.
    """

    total: Usage
    cases: dict[int, Usage] = field(default_factory=dict)
    currency: str = ""
    sources: tuple[str, ...] = ()
    missing: str = ""
    tool_cost: float = 0.0
    tool_costs: dict[int, float] = field(default_factory=dict)


NO_PLAN_USAGE: Final = PlanUsage(Usage())


def record_tariff(registry: Registry, number: int, tariff: Tariff, places: int) -> None:
    """Record what a run holds and costs in a session, and how many run there at once.

    Raises:
        PlanError: the registry can't be written.
    """
    registry.note(f"{_TARIFF}{number}", json.dumps({"tariff": tariff.to_json(), "places": places}))


def plan_usage(registry: Registry, *, by_case: bool = False) -> PlanUsage:
    """Return what the runs of a plan have used.  Blocks while it reads the registry.

    Args:
        registry: of the plan.
        by_case: whether to count each case as well.

    Raises:
        PlanError: the registry can't be read.
    """
    tariffs = {int(number): _tariff(text) for number, text in registry.facts(_TARIFF).items()}
    with registry.connected() as file:
        parts = list(
            _parts(file, "case_index" if by_case else "0", {n: one for n, (one, _) in tariffs.items()})
        )
        costs = file.execute(_TOOL_COST.format(key="case_index" if by_case else "0 AS case_index")).fetchall()
    cases: dict[int, list[Usage]] = {}
    for index, _, usage in parts:
        cases.setdefault(index, []).append(usage)
    sums = {index: one[0] if len(one) == 1 else Usage.total(one) for index, one in sorted(cases.items())}
    total = Usage.total(sums.values())
    for tariff, places in tariffs.values():
        total = total.with_overhead(tariff.overhead(places))
    priced = [one.rates for one, _ in tariffs.values() if one.rates]
    currencies = {one.currency for one in priced}
    has_unpriced = any(usage.money is None for _, _, usage in parts)
    return PlanUsage(
        total=total,
        cases=sums if by_case else {},
        currency=currencies.pop() if len(currencies) == 1 else "",
        sources=tuple(dict.fromkeys(one.source for one in priced)),
        missing=next((one.missing for one, _ in tariffs.values() if one.missing), "") if has_unpriced else "",
        tool_cost=sum(cost for _, cost in costs),
        tool_costs=dict(costs) if by_case else {},
    )


def _tariff(text: str) -> tuple[Tariff, int]:
    members = json.loads(text)
    return Tariff.from_json(members["tariff"]), members["places"]


def _parts(
    file: sqlite3.Connection, key: str, tariffs: dict[int, Tariff]
) -> Iterator[tuple[int, int, Usage]]:
    """Yield a case (or 0), a session, and what attempts have used there."""
    for index, session, *members in file.execute(_COUNTED.format(key=key)):
        attempts, seconds, cores, gib, gpus, peak_bytes, money = members
        yield index, session, Usage(attempts, seconds, cores, gib, gpus, peak_bytes, money)
    for index, session, seconds in file.execute(_OTHERS.format(key=key)):
        yield index, session, tariffs.get(session, UNPRICED).usage(seconds)
