"""A report as one JSON document, its keys sorted."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from services.planner.report.findings import Findings, Group, Summary


def document(found: Findings) -> str:
    """Plan, statistics, groups and evaluations; `times` apart from them."""
    members = {
        "manifest": _finite(found.manifest.model_dump(mode="json", fallback=str)),
        "statistics": {
            "total": len(found.results),
            "by_status": found.counts,
            "attempts": sum(one.attempt_count for one in found.results),
        },
        "tool_digests": found.tool_digests,
        "warnings": found.warnings,
        "groups": [_group(one) for one in found.groups],
        "evaluations": [one.to_json() for one in found.evaluations],
        "artifacts": {
            str(one.index): _places(one.execution.artifacts)
            for one in found.results
            if one.execution is not None and one.execution.artifacts
        },
        "times": times(found),
    }
    return json.dumps(members, indent=2, sort_keys=True, allow_nan=False) + "\n"


def times(found: Findings) -> dict[str, Any]:
    """When the plan's cases ran, and how long."""
    begun = [one.started_at for one in found.results if one.started_at is not None]
    ended = [one.finished_at for one in found.results if one.finished_at is not None]
    seconds = [one.execution_time for one in found.results if one.started_at is not None]
    return {
        "started_at": _text(min(begun, default=None)),
        "finished_at": _text(max(ended, default=None)),
        "wall_seconds": (max(ended) - min(begun)).total_seconds() if begun and ended else 0.0,
        "execution_seconds": sum(seconds),
        "case_seconds": asdict(Summary.of(seconds)) if seconds else None,
    }


def _finite(value: Any) -> Any:
    """The same without numbers that JSON doesn't have; what is in `metadata` nobody has looked at."""
    match value:
        case dict():
            return {name: _finite(one) for name, one in value.items()}
        case list():
            return [_finite(one) for one in value]
        case float():
            return value if math.isfinite(value) else None
        case _:
            return value


def _places(artifacts: Mapping[str, str]) -> dict[str, str]:
    """Where artifacts are; what has no place of its own is too much for here, and is just named."""
    return {name: "inline" if one.startswith("data:") else one for name, one in artifacts.items()}


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _group(one: Group) -> dict[str, Any]:
    return {
        "number": one.number,
        "dataset": one.case.dataset,
        "scenario": one.case.scenario,
        "parameters": one.case.parameters,
        "cases": one.cases,
        "n": len(one.cases),
        "succeeded": one.succeeded,
        "values": {name: asdict(Summary.of(sample)) for name, sample in one.samples.items()},
    }
