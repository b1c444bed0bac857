"""What a plan on Modal needs and may use, before Modal's client is imported."""

from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Final, Self

from services.executor.policy import ModalNeeds, ToolNeeds

APP: Final = f"fullsend-{version('fullsend-executor')}"
"""The app of this version: a planner never meets the containers of another one."""

FUNCTION: Final = "call_tool"
QUEUE: Final = "fullsend-reports"
SLOTS_VARIABLE: Final = "FULLSEND_MODAL_SLOTS"
MAX_TIMEOUT_SECONDS: Final = 86_400
MARGIN_SECONDS: Final = 60
"""What a call may take besides the tool: it gets its code, and what it leaves is stored."""


@dataclass(frozen=True, slots=True)
class ModalOptions:
    """How calls run on Modal; the names are those of the settings, without `modal_`.

    Attributes:
        app: the app that is called.
        volume: the name of the volume with code and artifacts.
        timeout: seconds after which Modal ends a call, at least; a longer limit of a tool counts.
        memory: MiB of a container.
        cpu: cores of a container.
        gpu: of a container, such as `T4` or `A100:2`; empty for none.
        secrets: names of Modal's secrets, whose variables a container gets.
        max_parallel: cases at once, in all containers; None for as many as a plan has.
        slots: cases at once in one container.
        wait: seconds without any container after which waiting calls fail.
    """

    app: str = APP
    volume: str = "fullsend-artifacts"
    timeout: float = 600.0
    memory: int = 2_048
    cpu: float = 1.0
    gpu: str = ""
    secrets: tuple[str, ...] = ()
    max_parallel: int | None = None
    slots: int = 1
    wait: float = 900.0

    @property
    def max_containers(self) -> int | None:
        """How many containers run at once, at most; None for as many as Modal allows."""
        return None if self.max_parallel is None else -(-self.max_parallel // self.slots)

    def for_plan(self, concurrency: int) -> Self:
        """Return the options for a plan of so many cases at once."""
        return replace(self, max_parallel=min(concurrency, self.max_parallel or concurrency))

    def for_tool(self, needs: ToolNeeds, limit_seconds: float) -> Self:
        """Return the options for calls of a tool.

        Args:
            needs: of the tool; what its table `[tool.fullsend.modal]` says replaces these options.
            limit_seconds: for one call; it counts once for the tool's import and once for the call.
        """
        asked = needs.modal or ModalNeeds()
        timeout = max(asked.timeout_seconds or self.timeout, 2 * limit_seconds + MARGIN_SECONDS)
        return replace(
            self,
            timeout=min(timeout, MAX_TIMEOUT_SECONDS),
            memory=asked.memory_mib or self.memory,
            cpu=asked.cpu or self.cpu,
            gpu=self.gpu if asked.gpu is None else asked.gpu,
            secrets=self.secrets if asked.secrets is None else asked.secrets,
        )
