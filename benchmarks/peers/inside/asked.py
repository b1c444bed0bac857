"""What the program that measures asks of a system's settings, by the environment."""

import os

REDIS_URL = os.environ.get("REDIS_URL", "")
SLOTS = int(os.environ.get("SLOTS") or 0)
"""Jobs at once in one process; 0 leaves what is recommended, or the system's default."""
DEFAULTS = bool(os.environ.get("DEFAULTS"))
"""Nothing is tuned: the system is as it comes."""
CRON_NOTES = os.environ.get("CRON_NOTES", "")
"""Where the jobs of the two schedules leave their lines; without it there are no schedules."""
DEADLINE_SECONDS = 2
"""The time limit of a job that hangs."""
FAILED = "failed"
"""Stands for the result of a job that ended without one."""
PATIENCE_SECONDS = 30
"""How long a client waits for one result."""
