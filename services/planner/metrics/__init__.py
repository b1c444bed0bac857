"""Metrics of payments, computed from the artifacts of a run after it; equal artifacts give equal bytes."""

from services.planner.metrics.computer import (
    DayMetrics,
    DebtorShare,
    MetricsBundle,
    MetricsComputer,
    Step,
    Totals,
)

__all__ = ["DayMetrics", "DebtorShare", "MetricsBundle", "MetricsComputer", "Step", "Totals"]
