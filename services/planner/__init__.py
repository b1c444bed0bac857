"""The planner: turns one manifest into many runs, and computes findings from their raw artifacts."""
