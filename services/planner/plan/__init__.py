"""A plan on disk: its directory, the registry of its runs, and the sessions that execute it."""

from services.planner.plan.directory import PLANS, Plan, plans_in

__all__ = ["PLANS", "Plan", "plans_in"]
