"""What a tool asks for: the table `[tool.fullsend]` in its PEP 723 block, read without running it."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.executor.isolation.requirements import block_of
from services.executor.isolation.sandbox import Sandbox
from shared.documents import kind, validated
from shared.errors import ContractError, ToolError
from shared.messages import LimitKey

PASSED_TO_EVERY_TOOL = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Variables that no program can do without and that hold no secret."""


class ToolNeeds(BaseModel):
    """The table `[tool.fullsend]` in a tool's PEP 723 block: what it asks for, read without running it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: tuple[str, ...] = ()
    isolation: Literal["warm", "fork", "spawn"] | None = None
    sandbox: Sandbox | None = None
    timeout_seconds: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    max_concurrent: Annotated[int | None, Field(ge=1)] = None
    max_per_minute: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    burst: Annotated[int | None, Field(ge=1)] = None
    limit_key: LimitKey | None = None
    memory_mb: Annotated[int | None, Field(gt=0)] = None
    cpu_seconds: Annotated[int | None, Field(gt=0)] = None
    file_size_mb: Annotated[int | None, Field(gt=0)] = None
    open_files: Annotated[int | None, Field(gt=0)] = None
    processes: Annotated[int | None, Field(gt=0)] = None


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


def passed_to_every_tool(variables: Mapping[str, str]) -> dict[str, str]:
    """What each tool sees of the environment, whether or not it asks for more."""
    return {name: variables[name] for name in PASSED_TO_EVERY_TOOL if name in variables}
