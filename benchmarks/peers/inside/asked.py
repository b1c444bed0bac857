"""The settings that the benchmark passes to a system in the environment."""

import os

REDIS_URL = os.environ.get("REDIS_URL", "")
SLOTS = int(os.environ.get("SLOTS") or 0)
"""Jobs at the same time in one process; 0 is the recommended or default number."""
DEFAULTS = bool(os.environ.get("DEFAULTS"))
"""The system runs with its default settings."""
CRON_NOTES = os.environ.get("CRON_NOTES", "")
"""The file to which the jobs of the two schedules write lines; empty if there are no schedules."""
DEADLINE_SECONDS = 2
"""The time limit of a hanging job."""
FAILED = "failed"
"""The result of a job that has ended without a result."""
PATIENCE_SECONDS = 30
"""How long a client waits for one result."""
