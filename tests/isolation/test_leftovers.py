"""What a run changes in its process, the next run does not see: it is put back, or the process is ended."""

import os

import pytest

from services.executor.isolation.calls import Answer, Returned
from services.executor.isolation.sandbox import Sandbox
from tests.isolation.bench import Bench
from tests.isolation.users import NOBODY

# What is looked at, and what a run does to it.
RESTORED = {
    "a context variable": ("VARIABLE.get(0)", "VARIABLE.set(1)"),
    "digits of whole numbers": ("sys.get_int_max_str_digits()", "sys.set_int_max_str_digits(9999)"),
    "the stack of threads": ("threading.stack_size()", "threading.stack_size(1 << 20)"),
    "the hook for exceptions": ("sys.excepthook.__name__", "sys.excepthook = print"),
    "the hook for exceptions of threads": ("threading.excepthook.__name__", "threading.excepthook = print"),
    "the hook for traces of threads": ("threading._trace_hook", "threading.settrace(lambda *_: None)"),
    "the collector's thresholds": ("gc.get_threshold()", "gc.set_threshold(1, 2, 3)"),
    "the collector's callbacks": ("len(gc.callbacks)", "gc.callbacks.append(lambda *_: None)"),
    "the switch interval": ("sys.getswitchinterval()", "sys.setswitchinterval(0.5)"),
    "a new builtin": ("hasattr(builtins, 'mine')", "builtins.mine = 1"),
    "an error handler of codecs": (
        "b'\\xff'.decode('utf-8', 'replace')", "codecs.register_error('replace', lambda e: ('!', e.end))"
    ),
    "errors of numpy": ("numpy.geterr()", "numpy.seterr(all='raise')"),
    "numpy's printing": ("numpy.get_printoptions()['precision']", "numpy.set_printoptions(precision=2)"),
    "the context of decimal": ("decimal.getcontext().prec", "decimal.getcontext().prec = 5"),
    "the default context of decimal": (
        "[decimal.DefaultContext.prec, decimal.DefaultContext.traps[decimal.Inexact]]",
        "decimal.DefaultContext.prec = 5; decimal.DefaultContext.traps[decimal.Inexact] = True",
    ),
    "how warnings are shown": ("warnings.showwarning.__name__", "logging.captureWarnings(True)"),
    "the factory of log records": (
        "logging.getLogRecordFactory().__name__", "logging.setLogRecordFactory(lambda *a, **k: None)"
    ),
    "the class of loggers": (
        "logging.getLoggerClass().__name__", "logging.setLoggerClass(type('Mine', (logging.Logger,), {}))"
    ),
    "the opener of URLs": (
        "urllib.request._opener is None", "urllib.request.install_opener(urllib.request.build_opener())"
    ),
    "the descriptor that signals wake": ("signal.set_wakeup_fd(-1)", "wake()"),
    "the adoption of orphans": ("adopts()", "ctypes.CDLL(None).prctl(36, 0)"),
    "whether others may look into it": ("dumpable()", "ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)"),
    "the hook for breakpoints": ("sys.breakpointhook.__name__", "sys.breakpointhook = print"),
    "the limit of tracebacks": ("hasattr(sys, 'tracebacklimit')", "sys.tracebacklimit = 0"),
    "a constant of sys": ("sys.platform", "sys.platform = 'elsewhere'"),
    "a function of sys": ("sys.exit.__name__", "sys.exit = print"),
    "a constant of sys that is removed": ("hasattr(sys, 'pycache_prefix')", "del sys.pycache_prefix"),
    "the table of modules": ("'json' in sys.modules", "sys.modules = {}"),
    "the hooks of asynchronous generators": (
        "sys.get_asyncgen_hooks()[0] is None", "sys.set_asyncgen_hooks(print, print)"
    ),
    "the origins of coroutines": (
        "sys.get_coroutine_origin_tracking_depth()", "sys.set_coroutine_origin_tracking_depth(5)"
    ),
    "flags for loading libraries": ("sys.getdlopenflags()", "sys.setdlopenflags(257)"),
    "what the collector prints": ("gc.get_debug()", "gc.set_debug(gc.DEBUG_STATS)"),
    "the tracing of memory": ("tracemalloc.is_tracing()", "tracemalloc.start()"),
    "what is beside the temp directory": (
        "sorted(os.listdir('..'))",
        "open('../file', 'w').close(); os.makedirs('../folder/deep'); os.symlink('/etc', '../link')",
    ),
}  # fmt: skip
RETIRED = {
    "a timer of C": ("len(open('/proc/self/timers').read())", "c_timer()"),
    "a function of builtins": ("sorted([1])", "builtins.sorted = lambda x: 7"),
    "a function of os": ("os.path.exists(os.getcwd()) and os.getcwd()[:1]", "os.getcwd = lambda: '/nowhere'"),
    "a function of json": ("json.dumps([])", "json.dumps = lambda x: 'forged'"),
    "a function of socket": ("socket.create_connection.__name__", "socket.create_connection = print"),
    "a function of time": ("time.time() > 5", "time.time = lambda: 1.0"),
    "a function of random": ("random.random() < 1", "random.random = lambda: 4"),
    "a method of random": ("random.choice([1])", "random.choice = lambda x: 4"),
    "a method of another random": (
        "random.randint.__self__ is random._inst",
        "random.randint = random.Random(1).randint",
    ),
    "a function of os.path": ("os.path.exists('/')", "os.path.exists = lambda path: None"),
    "a class of subprocess": ("subprocess.Popen.__name__", "subprocess.Popen = int"),
    "a class of datetime": ("datetime.datetime.__name__", "datetime.datetime = int"),
    "a function of logging": ("logging.info.__name__", "logging.info = print"),
    "a function of asyncio": ("asyncio.run.__name__", "asyncio.run = print"),
    "a function of the toolkit": ("toolkit.metric.__name__", "toolkit.metric = print"),
    "a function of a module's dictionary": ("os.getcwd()[:1]", "vars(os)['getcwd'] = lambda: 'x'"),
    "a module in place of another": ("__import__('json').__name__", "sys.modules['json'] = socket"),
    "a function that is gone": ("hasattr(os, 'getcwdb')", "del os.getcwdb"),
    "the scheduling class": ("os.sched_getscheduler(0)", "os.sched_setscheduler(0, 5, os.sched_param(0))"),
    "the priority": ("os.nice(0)", "os.nice(3)"),
}
SOURCE = """
    import asyncio, builtins, codecs, contextvars, ctypes, datetime, decimal, gc, json, logging, os, random
    import signal, socket, struct, subprocess, sys, threading, time, tracemalloc, urllib.request, warnings
    from shared import toolkit
    import numpy
    VARIABLE = contextvars.ContextVar("VARIABLE")
    def wake():
        reading, writing = socket.socketpair()
        writing.setblocking(False)
        signal.set_wakeup_fd(writing.fileno())
    def adopts():
        answer = ctypes.c_int()
        ctypes.CDLL(None).prctl(37, ctypes.byref(answer))
        return answer.value
    def dumpable(): return ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
    def c_timer():
        timer = ctypes.c_void_p()
        assert ctypes.CDLL(None).timer_create(0, None, ctypes.byref(timer)) == 0
        when = struct.pack("qqqq", 0, 0, 3600, 0)
        assert ctypes.CDLL(None).timer_settime(timer, 0, when, None) == 0
    def run(change):
        before = {look}
        if change:
            {change}
        return [before, PID]
    PID = os.getpid()
"""


async def looked(
    bench: Bench, look: str, change: str, source: str = SOURCE, *, runs_before: int = 1
) -> list[Answer]:
    """The answers of a run that makes the change, and of the next one."""
    tool = bench.tool(source.format(look=look, change=change))
    changes = [*[False] * runs_before, True, False]
    return [await bench.run(tool, params={"change": it_does}) for it_does in changes][runs_before:]


@pytest.mark.parametrize("what", RESTORED)
async def test_what_can_be_put_back_is(bench: Bench, what: str) -> None:
    first, second = await looked(bench, *RESTORED[what])

    assert isinstance(first, Returned)
    assert first == second


@pytest.mark.parametrize("what", RETIRED)
async def test_for_what_can_not_the_process_is_ended(bench: Bench, what: str) -> None:
    first, second = await looked(bench, *RETIRED[what])

    assert isinstance(first, Returned)
    assert isinstance(second, Returned)
    assert first.value[0] == second.value[0]
    assert first.value[1] != second.value[1]


async def test_for_another_namespace_of_users_the_process_is_ended(bench: Bench) -> None:
    tool = bench.tool("""
        import ctypes, os
        def run(leave):
            before = os.getuid()
            return [before, os.getpid(), ctypes.CDLL(None).unshare(0x10000000) if leave else 0]
    """)

    first, second = [await bench.run(tool, params={"leave": leave}) for leave in (True, False)]

    assert isinstance(first, Returned)
    assert isinstance(second, Returned)
    if first.value[2] != 0 or os.getuid() == NOBODY:
        pytest.skip("no namespace can be made here, or it has the same user")
    assert first.value[0] == second.value[0]
    assert first.value[1] != second.value[1]


LAZY = {
    "decimal": (
        "decimal.DefaultContext.prec", "decimal.DefaultContext.prec = 5; decimal.getcontext().prec = 6"
    ),
    "logging": (
        "logging.getLoggerClass().__name__", "logging.setLoggerClass(type('Mine', (logging.Logger,), {}))"
    ),
    "threading": ("threading.excepthook.__name__", "threading.excepthook = print"),
    "urllib.request": (
        "urllib.request._opener is None", "urllib.request.install_opener(urllib.request.build_opener())"
    ),
}  # fmt: skip


@pytest.mark.parametrize("module", LAZY)
async def test_what_a_run_has_imported_is_put_back_to_what_python_starts_with(
    bench: Bench, module: str
) -> None:
    source = f"""
    import os
    def run(change):
        import {module}
        before = {{look}}
        if change:
            {{change}}
        return [before, os.getpid()]
    """

    first, second = await looked(bench, *LAZY[module], source, runs_before=0)

    assert isinstance(first, Returned)
    assert first == second


async def test_a_function_of_a_module_that_the_run_has_imported_is_not_replaced_for_the_next(
    bench: Bench,
) -> None:
    source = """
    import os, sys
    def run(change):
        was_there = "random" in sys.modules
        import random
        if change:
            random.choice = lambda x: 4
        return [was_there, random.choice([1]), os.getpid()]
    """

    first, second = await looked(bench, "", "", source, runs_before=0)

    assert isinstance(first, Returned)
    assert isinstance(second, Returned)
    assert (first.value[:2], second.value[:2]) == ([False, 4], [False, 1])
    assert first.value[2] != second.value[2]


@pytest.mark.parametrize("instead", ["None", "types.ModuleType('asyncio')"])
async def test_what_a_run_has_put_in_place_of_a_module_is_not_there_for_the_next(
    bench: Bench, instead: str
) -> None:
    source = f"""
    import os, sys, types
    def run(change):
        was_there = "asyncio" in sys.modules
        if change:
            sys.modules["asyncio"] = {instead}
        return [was_there, os.getpid()]
    """

    first, second = await looked(bench, "", "", source, runs_before=0)

    assert isinstance(first, Returned)
    assert isinstance(second, Returned)
    assert first.value[0] is second.value[0] is False
    assert first.value[1] != second.value[1]


async def test_what_the_import_has_put_in_place_of_modules_stays(bench: Bench) -> None:
    tool = bench.tool("""
        import os, sys, types
        sys.modules["asyncio"] = sys.modules["decimal"] = sys.modules["urllib.request"] = None
        sys.modules["hashlib"] = types.ModuleType("hashlib")
        sys.modules["re"] = types.ModuleType("re")
        sys.modules["re"].match = lambda pattern, text: "mine"
        def run():
            import hashlib, re
            return ["asyncio" in sys.modules, vars(hashlib).get("md5"), re.match("", ""), os.getpid()]
    """)

    first, second = [await bench.run(tool) for _ in range(2)]

    assert isinstance(first, Returned)
    assert first == second
    assert first.value[:3] == [True, None, "mine"]


async def test_what_the_import_has_set_stays(bench: Bench) -> None:
    tool = bench.tool("""
        import builtins, contextvars, decimal, gc, json, os, sys
        decimal.getcontext().prec = 50
        decimal.DefaultContext.prec = 40
        gc.set_threshold(5000, 20, 20)
        builtins.mine = 1
        json.dumps = lambda value: "mine"
        VARIABLE = contextvars.ContextVar("VARIABLE")
        VARIABLE.set("imported")
        def run():
            return [decimal.getcontext().prec, decimal.DefaultContext.prec, gc.get_threshold(), mine,
                    json.dumps(1), VARIABLE.get(), os.getpid()]
    """)

    first, second = [await bench.run(tool) for _ in range(2)]

    assert isinstance(first, Returned)
    assert first == second
    assert first.value[:6] == [50, 40, [5000, 20, 20], 1, "mine", "imported"]


@pytest.mark.parametrize(
    "body",
    ["VARIABLE.set(1); yield VARIABLE.get()", "VARIABLE.set(1); return [VARIABLE.get()]"],
)
@pytest.mark.parametrize("prefix", ["", "async "])
async def test_context_variables_of_every_kind_of_tool_are_its_runs_own(
    bench: Bench, prefix: str, body: str
) -> None:
    tool = bench.tool(f"""
        import contextvars
        VARIABLE = contextvars.ContextVar("VARIABLE")
        {prefix}def run():
            assert VARIABLE.get(None) is None
            {body}
    """)

    assert [await bench.run(tool) for _ in range(2)] == [Returned([1], 1)] * 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its groups")
async def test_a_process_that_has_other_groups_serves_no_other_run(bench: Bench) -> None:
    tool = bench.tool(
        """
        import os
        def run(change):
            before = os.getgroups()
            if change: os.setgroups([12345])
            return [before, os.getpid()]
        """,
        sandbox=Sandbox.OFF,
    )

    first, second = [await bench.run(tool, params={"change": change}) for change in (True, False)]

    assert isinstance(first, Returned)
    assert isinstance(second, Returned)
    assert first.value[0] == second.value[0]
    assert first.value[1] != second.value[1]


async def test_the_kernels_choice_of_a_victim_is_the_same_for_each_run(bench: Bench) -> None:
    tool = bench.tool("""
        def run(change):
            with open("/proc/self/oom_score_adj", "r+") as file:
                before = file.read()
                if change: file.write("500")
            return before
    """)

    assert await bench.run(tool, params={"change": True}) == await bench.run(tool, params={"change": False})
