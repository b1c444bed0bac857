"""A plan on disk: its directory, its registry, and who executes it."""

from services.planner.plan.directory import PLANS, Plan, plans_in

__all__ = ["PLANS", "Plan", "plans_in"]
