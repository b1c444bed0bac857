# mypy: disable-error-code="import-not-found, import-untyped"
"""The schedules of rq: what `rq cron` reads."""

from rq import cron

from benchmarks.peers.inside import asked, jobs

if asked.CRON_NOTES:
    cron.register(jobs.note, queue_name="default", args=(asked.CRON_NOTES, "minute"), cron="* * * * *")
    cron.register(jobs.note, queue_name="default", args=(asked.CRON_NOTES, "second"), cron="* * * * * *")
