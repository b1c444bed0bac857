"""What every backend looks at before it does anything with a call, so that all of them refuse the same."""

from services.executor.identity import canonical_json
from services.planner.execution import Execution
from shared.errors import ToolParameterError


def check(call: Execution) -> None:
    """Raises `ToolParameterError` for parameters that JSON can't hold."""
    try:
        canonical_json(call.parameters)
    except (ValueError, TypeError, RecursionError) as exc:
        raise ToolParameterError(f"the parameters can't be sent to the tool: {exc}") from None
