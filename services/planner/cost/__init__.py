"""What runs use of machines, and what that costs: before a plan, while it runs, and after."""

from services.planner.cost.modal_prices import modal_tariff
from services.planner.cost.rates import UNPRICED, Rates, Resources, Tariff
from services.planner.cost.tariffs import PricedBackend, tariff_of
from services.planner.cost.usage import NO_USAGE, Usage

__all__ = [
    "NO_USAGE",
    "UNPRICED",
    "PricedBackend",
    "Rates",
    "Resources",
    "Tariff",
    "Usage",
    "modal_tariff",
    "tariff_of",
]
