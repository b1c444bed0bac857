"""What a run's raw artifacts say, computed after the run and as often as is wanted, always the same bytes."""

from services.planner.metrics.computer import (
    DayMetrics,
    DebtorShare,
    MetricsBundle,
    MetricsComputer,
    Step,
    Totals,
)

__all__ = ["DayMetrics", "DebtorShare", "MetricsBundle", "MetricsComputer", "Step", "Totals"]
