"""What a tool asks for: the table `[tool.fullsend]` in its PEP 723 block, read without running it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from services.executor.isolation.environment.requirements import block_of
from services.executor.isolation.sandbox import Sandbox
from shared.documents import kind, validated
from shared.errors import ContractError, ToolError
from shared.members import finite
from shared.messages import LimitKey


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolNeeds:
    """The table `[tool.fullsend]` in a tool's PEP 723 block: what it asks for, read without running it."""

    environment: tuple[str, ...] = ()
    isolation: Literal["warm", "fork", "spawn"] | None = None
    sandbox: Sandbox | None = None
    timeout_seconds: Annotated[float, Meta(gt=0), finite] | None = None
    max_concurrent: Annotated[int, Meta(ge=1)] | None = None
    max_per_minute: Annotated[float, Meta(gt=0), finite] | None = None
    burst: Annotated[int, Meta(ge=1)] | None = None
    limit_key: LimitKey | None = None
    memory_mb: Annotated[int, Meta(gt=0)] | None = None
    cpu_seconds: Annotated[int, Meta(gt=0)] | None = None
    file_size_mb: Annotated[int, Meta(gt=0)] | None = None
    open_files: Annotated[int, Meta(gt=0)] | None = None
    processes: Annotated[int, Meta(gt=0)] | None = None


def needs_of(place: str, text: str) -> ToolNeeds:
    """What the PEP 723 block of a module asks for.

    Raises:
        ToolError: the block can't be read; says where and why.
    """
    tool = block_of(place, text).get("tool", {})
    needs = tool.get("fullsend", {}) if isinstance(tool, dict) else tool
    if not isinstance(needs, dict):
        raise ToolError(f"{place} is {kind(needs)}; expected a table")
    try:
        return validated(ToolNeeds, place, needs, only_known=True)
    except ContractError as exc:
        raise ToolError(str(exc)) from None
