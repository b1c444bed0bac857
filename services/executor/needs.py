"""What a tool asks for: the table `[tool.fullsend]` in its PEP 723 block, read without running it."""

from typing import Literal

from services.executor.isolation.environment.requirements import block_of
from services.executor.isolation.sandbox import Sandbox
from shared.documents import kind, validated
from shared.errors import ContractError, ToolError
from shared.messages import LimitKey, PositiveCount, PositiveNumber, WireRecord


class ToolNeeds(WireRecord, extra="forbid"):
    """The table `[tool.fullsend]` in a tool's PEP 723 block: what it asks for, read without running it."""

    environment: tuple[str, ...] = ()
    isolation: Literal["warm", "fork", "spawn"] | None = None
    sandbox: Sandbox | None = None
    timeout_seconds: PositiveNumber | None = None
    max_concurrent: PositiveCount | None = None
    max_per_minute: PositiveNumber | None = None
    burst: PositiveCount | None = None
    limit_key: LimitKey | None = None
    memory_mb: PositiveCount | None = None
    cpu_seconds: PositiveCount | None = None
    file_size_mb: PositiveCount | None = None
    open_files: PositiveCount | None = None
    processes: PositiveCount | None = None


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
        return validated(ToolNeeds, place, needs)
    except ContractError as exc:
        raise ToolError(str(exc)) from None
