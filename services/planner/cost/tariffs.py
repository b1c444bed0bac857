"""What a run on each backend holds and costs: as the backend says, or by the operator's price."""

from typing import Final, Protocol

from services.planner.backends import PlanContext, backend_class
from services.planner.cost.rates import HOUR_SECONDS, Rates, Tariff

MISSING: Final = "no price is known for a core on {}; the setting CORE_HOUR_PRICE gives one"


class PricedBackend(Protocol):
    """What a backend's class has that knows its prices; optional for a backend."""

    @classmethod
    async def plan_tariff(cls, context: PlanContext, tool: str) -> Tariff:
        """Return what a run of the tool holds there, and what that costs; asks the platform if it answers.

        Raises:
            PlanError: the tool asks for something that has no price.
        """


async def tariff_of(backend: str, context: PlanContext, tool: str) -> Tariff:
    """Return what a run of a tool on a backend holds and costs.

    A backend without `plan_tariff` runs on the operator's own machines: one core for each run, at the price
    of the setting CORE_HOUR_PRICE.

    Args:
        backend: its name in the planner's table, or `module:Class`.
        context: of the plan.
        tool: the name of the plan's tool.
    """
    ask = getattr(backend_class(backend), "plan_tariff", None)
    if ask is not None:
        tariff: Tariff = await ask(context, tool)
        return tariff
    if not context.core_hour_price:
        return Tariff(missing=MISSING.format(backend))
    price, currency = context.core_hour_price, context.price_currency
    source = f"the setting CORE_HOUR_PRICE ({price:g} {currency})"
    return Tariff(rates=Rates(core=price / HOUR_SECONDS, currency=currency, source=source))
