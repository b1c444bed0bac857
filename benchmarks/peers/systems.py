"""The systems, each set up for throughput as its documentation recommends.

Logging is switched off where the system has a switch for it, but not in the executor.  Numbers of processes
are chosen for two cores.
"""

from collections.abc import Mapping
from dataclasses import replace

from benchmarks.peers.system import PROJECT, Case, System

OURS = "fullsend, warm"
FORK = "fullsend, fork"
DEFAULT = "fullsend, defaults"
SKELETON = "bare skeleton"

_APPS = "benchmarks.peers.inside"
_WIDTH = "50"
_OUR_SLOTS = "24"
_SLOTS: Mapping[Case, Mapping[str, str]] = {Case.WIDE: {"SLOTS": _WIDTH}, Case.SINGLE: {"SLOTS": "1"}}


def _cases(busy: str, **others: str | tuple[str, ...]) -> dict[Case, tuple[str, ...]]:
    """The programs of each case; `busy` is the default."""
    said = {Case(name): (one,) if isinstance(one, str) else one for name, one in others.items()}
    return {**dict.fromkeys(Case, (busy,)), **said}


def _ours(name: str, level: str) -> System:
    return System(
        name=name,
        app="fullsend_app",
        venv=PROJECT,
        packages=(),
        commands=_cases("python -m services.executor.main"),
        settings=f"`ISOLATION={level}`, `CONCURRENCY={_OUR_SLOTS}`, two lines of log per run",
        source="docs/operations.md",
        isolated="process, reset after each run" if level == "warm" else "process per run",
        variables={"ISOLATION": level, "ARTIFACTS": "artifacts", "TOOLS_PATH": "tools"},
        more={
            Case.BUSY: {"CONCURRENCY": _OUR_SLOTS},
            Case.WIDE: {"CONCURRENCY": _WIDTH},
            Case.SINGLE: {"CONCURRENCY": "1"},
            Case.CRON: {"SCHEDULE_MODE": "trigger,cron"},
        },
    )


def _rq() -> System:
    pool = "rq worker-pool --quiet -P {root} -u {url} -n"
    one = "rq worker --quiet --disable-job-desc-logging -P {root} -u {url}"
    return System(
        name="rq",
        app="rq_app",
        venv="rq",
        packages=("rq", "hiredis"),
        commands=_cases(
            f"{pool} 2",
            wide=f"{pool} {_WIDTH}",
            single=one,
            default="rq worker -P {root} -u {url}",
            cron=(one, f"rq cron -P {{root}} -u {{url}} {_APPS}.rq_cron"),
        ),
        settings="`rq worker-pool -n 2`, the default `Worker`, which forks for each job",
        source="docs/benchmark.md in rq's repository, `rq worker-pool --help`; one process per core",
        isolated="process per job",
    )


def _celery() -> System:
    app = f"celery -A {_APPS}.celery_app"
    worker = f"{app} --quiet worker --loglevel WARNING"
    return System(
        name="celery",
        app="celery_app",
        venv="celery",
        packages=("celery[redis]", "hiredis"),
        commands=_cases(
            f"{worker} -P prefork -c 2",
            wide=f"{worker} -P threads -c {_WIDTH}",
            single=f"{worker} -P prefork -c 1",
            default=f"{app} worker",
            cron=f"{worker} -P prefork -c 2 -B -s beat",
        ),
        settings="`-P prefork -c 2`, `worker_prefetch_multiplier=128`; `-P threads` for 50 at once",
        source="its Optimizing guide (many short tasks: 64 or 128); one process per core",
        isolated="process, reused",
    )


def _saq() -> System:
    saq = f"saq {_APPS}.saq_app.settings"
    return System(
        name="saq",
        app="saq_app",
        venv="saq",
        packages=("saq[redis]", "hiredis", "typing-extensions"),
        commands=_cases(f"{saq} --workers 2", wide=saq, single=saq, default=saq, cron=saq),
        settings="`--workers 2`, `concurrency=32`",
        source="SAQ's README (several workers for several cores); 32 as in streaQ's benchmark of SAQ",
        isolated="no",
        more={**_SLOTS, Case.BUSY: {"SLOTS": "32"}},
    )


def _arq() -> System:
    arq = f"arq {_APPS}.arq_app.WorkerSettings"
    return System(
        name="arq",
        app="arq_app",
        venv="arq",
        packages=("arq", "hiredis"),
        commands=_cases(f"{arq} --custom-log-dict {_APPS}.arq_app.silent", default=arq),
        settings="`max_jobs=32`, `poll_delay=0.01`, `log_results=False`; cron at `microsecond=0`",
        source="docstring of `arq.worker.Worker`; 32 as in streaQ's benchmark, the poll delay is our choice",
        isolated="no",
        more=_SLOTS,
    )


def _streaq() -> System:
    streaq = f"streaq run {_APPS}.streaq_app:worker"
    return System(
        name="streaq",
        app="streaq_app",
        venv="streaq",
        packages=("streaq",),
        commands=_cases(f"{streaq} --workers 2", wide=streaq, single=streaq, default=streaq, cron=streaq),
        settings="`--workers 2`, `concurrency=32`, `silent=True`",
        source="benchmarks/README.md in streaQ's repository",
        isolated="no",
        more=_SLOTS,
    )


def _taskiq(name: str, kind: str, extra: str, isolated: str, settings: str) -> System:
    app = f"{_APPS}.taskiq_app"
    worker = f"taskiq worker {app}:broker --log-level WARNING"
    scheduler = f"taskiq scheduler {app}:scheduler --log-level WARNING"
    pool = "--use-process-pool --max-process-pool-processes" if kind == "stream" else ""
    threads = f"{pool} 1" if pool else "--max-threadpool-threads 1"
    return System(
        name=name,
        app="taskiq_app",
        venv="taskiq",
        packages=("taskiq[uv,orjson]", "taskiq-redis", "hiredis"),
        commands=_cases(
            f"{worker} {extra}",
            wide=f"{worker} --workers 1 --max-async-tasks {_WIDTH} {f'{pool} {_WIDTH}' if pool else ''}",
            single=f"{worker} --workers 1 --max-async-tasks 1 {threads}",
            default=f"taskiq worker {app}:broker {'--use-process-pool' if pool else ''}",
            cron=(f"{worker} {extra}", scheduler),
        ),
        settings=settings,
        source="taskiq-redis' README, `taskiq worker --help` (2 workers is the default)",
        isolated=isolated,
        variables={"TASKIQ_BROKER": kind},
    )


def _dramatiq() -> System:
    app = f"{_APPS}.dramatiq_app"
    busy = f"dramatiq {app} --processes 2 --threads 8"
    return System(
        name="dramatiq",
        app="dramatiq_app",
        venv="dramatiq",
        packages=("dramatiq[redis]", "periodiq", "hiredis"),
        commands=_cases(
            busy,
            wide=f"dramatiq {app} --processes 2 --threads 25",
            single=f"dramatiq {app} --processes 1 --threads 1",
            default=f"dramatiq {app}",
            cron=(busy, f"periodiq {app}"),
        ),
        settings="`--processes 2 --threads 8`, `Results` with `RedisBackend`; periodiq for cron",
        source="`dramatiq --help` (both are the defaults there)",
        isolated="no",
    )


def _huey() -> System:
    consumer = f"huey_consumer {_APPS}.huey_app.huey"
    return System(
        name="huey",
        app="huey_app",
        venv="huey",
        packages=("huey", "redis", "hiredis"),
        commands=_cases(
            f"{consumer} --quiet -k process -w 8",
            wide=f"{consumer} --quiet -k process -w {_WIDTH}",
            single=f"{consumer} --quiet -k process -w 1",
            default=consumer,
        ),
        settings="`-k process -w 8`, `notify_result=True`",
        source="`huey_consumer --help` and docstrings; 8 is our choice",
        isolated="process, reused",
    )


def _docket() -> System:
    docket = f"docket worker --tasks {_APPS}.docket_app:tasks --docket bench --url {{url}}"
    quiet = f"{docket} --logging-level WARNING --concurrency"
    return System(
        name="docket",
        app="docket_app",
        venv="docket",
        packages=("pydocket", "hiredis"),
        commands=_cases(f"{quiet} 50", single=f"{quiet} 1", default=docket),
        settings="`--concurrency 50`",
        source="docs/production.md in docket's repository",
        isolated="no",
    )


def _with_defaults() -> System:
    """The executor with its default settings."""
    one = _ours(DEFAULT, "warm")
    return replace(
        one,
        commands={Case.BUSY: one.commands[Case.BUSY]},
        settings="`ISOLATION=warm`, everything else at its default (8 runs at the same time)",
        more={},
    )


def _skeleton() -> System:
    return System(
        name=SKELETON,
        app="skeleton_app",
        venv=PROJECT,
        packages=(),
        commands={Case.BUSY: (f"python -m {_APPS}.skeleton_app",)},
        settings="stream read, start written, warm child over a socket pair, one finish script; two children",
        source=f"{_APPS.replace('.', '/')}/skeleton_app.py",
        isolated="process, reused",
    )


SYSTEMS = (
    _ours(OURS, "warm"),
    _with_defaults(),
    _ours(FORK, "fork"),
    _skeleton(),
    _rq(),
    _celery(),
    _saq(),
    _arq(),
    _streaq(),
    _taskiq("taskiq, list", "list", "--workers 2", "no", "`ListQueueBroker`, `--workers 2`, uvloop, orjson"),
    _taskiq(
        "taskiq, stream",
        "stream",
        "--workers 1 --use-process-pool --max-process-pool-processes 2",
        "process, reused",
        "`RedisStreamBroker`, `--use-process-pool --max-process-pool-processes 2`, uvloop, orjson",
    ),
    _dramatiq(),
    _huey(),
    _docket(),
)
BY_NAME = {one.name: one for one in SYSTEMS}
