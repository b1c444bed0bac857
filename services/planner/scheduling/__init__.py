"""Executes the cases of a plan: which attempt begins when, and what ends them."""
