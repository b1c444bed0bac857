"""When runs are due: cron expressions, due times that were missed, and speedrun."""
