"""A warm process is reset between runs."""

from pathlib import Path

import pytest

from services.executor.isolation.calls import Level, Raised, Returned
from services.executor.isolation.sandbox import Sandbox
from tests.isolation.bench import Bench

STATES = {
    "cwd": ("os.chdir('/')", "os.path.basename(os.getcwd()) != ''"),
    "environ": (
        "os.environ['NEW'] = '1'; os.environ.pop('PATH')",
        "'NEW' not in os.environ and 'PATH' in os.environ",
    ),
    "signal handlers": ("signal.signal(signal.SIGTERM, print)", "signal.getsignal(15) is signal.SIG_DFL"),
    "ignored signals": (
        "signal.signal(signal.SIGUSR1, signal.SIG_IGN)",
        "signal.getsignal(10) is signal.SIG_DFL",
    ),
    "signal mask": (
        "signal.pthread_sigmask(signal.SIG_BLOCK, {15})",
        "not signal.pthread_sigmask(signal.SIG_BLOCK, ())",
    ),
    "alarm": ("signal.signal(14, print); signal.alarm(100)", "signal.alarm(0) == 0"),
    "umask": ("os.umask(0o077)", "os.umask(0o022) == 0o022"),
    "locale": ("locale.setlocale(locale.LC_ALL, 'C')", "locale.setlocale(locale.LC_ALL) == LOCALE"),
    "root logger": (
        "logging.basicConfig(level=10); logging.disable(50)",
        "not logging.root.handlers and logging.root.level == 30 and not logging.root.manager.disable",
    ),
    "other loggers": (
        "logging.getLogger('new').addHandler(logging.NullHandler()); logging.getLogger('new').setLevel(50)",
        "not logging.getLogger('new').handlers and logging.getLogger('new').level == 0",
    ),
    "sys.path": ("sys.path.insert(0, '/new')", "'/new' not in sys.path"),
    "another sys.path": ("sys.path = ['/new']", "'/new' not in sys.path"),
    "sys.argv": ("sys.argv = ['x', 'y']", "len(sys.argv) == 1"),
    "meta path": ("sys.meta_path.clear()", "sys.meta_path"),
    "stdout": ("sys.stdout = io.StringIO()", "sys.stdout is sys.__stdout__"),
    "trace": ("sys.settrace(lambda *_: None)", "sys.gettrace() is None"),
    "profile": ("sys.setprofile(lambda *_: None)", "sys.getprofile() is None"),
    "recursion limit": ("sys.setrecursionlimit(500)", "sys.getrecursionlimit() == 1000"),
    "garbage collector": ("gc.disable()", "gc.isenabled()"),
    "warnings": ("warnings.simplefilter('error')", "all(f[0] != 'error' for f in warnings.filters)"),
    "socket time-out": ("socket.setdefaulttimeout(1)", "socket.getdefaulttimeout() is None"),
    "decimal context": ("decimal.getcontext().prec = 3", "decimal.getcontext().prec == 28"),
    "time zone": ("os.environ['TZ'] = 'Asia/Tokyo'; time.tzset()", "time.timezone == 0"),
    "event loop policy": (
        "asyncio.set_event_loop_policy(type('P', (asyncio.DefaultEventLoopPolicy,), {})())",
        "type(asyncio.get_event_loop_policy()).__name__ != 'P'",
    ),
    "temp directory": (
        "open('left', 'w').close(); os.mkdir('d'); open('d/x', 'w').close()",
        "os.listdir('.') == []",
    ),
    "removed temp directory": ("os.rmdir(os.getcwd())", "os.path.isdir(os.getcwd())"),
    "stdout's encoding": ("sys.stdout.reconfigure(encoding='ascii')", "sys.stdout.encoding == 'utf-8'"),
    "stdout's buffering": ("sys.stdout.reconfigure(line_buffering=False)", "sys.stdout.line_buffering"),
    "sys.__stderr__": ("sys.__stderr__ = None", "sys.__stderr__ is sys.stderr"),
    "putenv": ("os.putenv('NEW', '1'); os.unsetenv('PATH')", "sorted(c_environ()) == sorted(os.environb)"),
    "a soft limit": ("soft(resource.RLIMIT_NOFILE, 50)", "soft(resource.RLIMIT_NOFILE) != 50"),
    "processors": ("os.sched_setaffinity(0, {min(ALL)})", "os.sched_getaffinity(0) == ALL"),
    "tempfile": ("tempfile.tempdir = '/new'", "tempfile.gettempdir() == os.getcwd()"),
}


@pytest.mark.parametrize("state", STATES)
async def test_the_changes_of_a_run_are_undone_before_the_next(bench: Bench, state: str) -> None:
    change, check = STATES[state]
    tool = bench.tool(f"""
        import asyncio, ctypes, decimal, gc, io, locale, logging, os, signal, socket, sys, tempfile, time
        import resource, warnings
        LOCALE = locale.setlocale(locale.LC_ALL)
        ALL = os.sched_getaffinity(0)
        def soft(kind, value=None):
            if value: resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))
            return resource.getrlimit(kind)[0]
        def c_environ():
            array = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
            number = 0
            while array[number] is not None:
                yield array[number].partition(b"=")[0]
                number += 1
        def run(first):
            if first:
                {change}
                return os.getpid()
            return [os.getpid(), bool({check})]
    """)
    await bench.run(tool, params={"first": False})

    changed = await bench.run(tool, params={"first": True})
    after = await bench.run(tool, params={"first": False})

    assert isinstance(changed, Returned)
    assert after == Returned([changed.value, True], 2)


LEFT_BEHIND = {
    "a thread": "threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()",
    "a child": "KEPT.append(subprocess.Popen(['sleep', '1000']))",
    "an orphan": "subprocess.run(['sh', '-c', 'sleep 1000 &'])",
    "a socket": "KEPT.append(socket.socket())",
    "the second of two sockets": "a = socket.socket(); KEPT.append(socket.socket()); a.close()",
    "a descriptor of a high number": "os.dup2(0, 100)",
    "another standard output": "null = os.open(os.devnull, 1); os.dup2(null, 1); os.close(null)",
    "another standard error": "os.dup2(1, 2)",
    "another standard input": "file = os.open(__file__, 0); os.dup2(file, 0); os.close(file)",
    "a closed standard output": "os.close(1); KEPT.append(open(os.devnull))",
    "a closed stream": "sys.stdout.close()",
    "an executor": "KEPT.append(concurrent.futures.ThreadPoolExecutor()); KEPT[-1].submit(int)",
}


@pytest.mark.parametrize("left", LEFT_BEHIND)
async def test_a_process_with_leftovers_of_a_run_is_not_used_again(bench: Bench, left: str) -> None:
    tool = bench.tool(f"""
        import concurrent.futures, os, socket, subprocess, sys, threading, time
        KEPT = []
        def run(leave):
            if leave: {LEFT_BEHIND[left]}
            return os.getpid()
    """)
    before = await bench.run(tool, params={"leave": False})

    leaving = await bench.run(tool, params={"leave": True})
    after = await bench.run(tool, params={"leave": False})

    assert leaving == before
    assert after != before


async def test_what_a_run_prints_after_one_that_redirected_its_output_is_in_its_log(bench: Bench) -> None:
    tool = bench.tool("""
        import os, sys
        def run(how):
            if how == "redirect":
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, 1)
                os.close(null)
            if how == "close": sys.stdout.close()
            if how: return
            print("line")
    """)

    for how in ("", "redirect", "", "close", ""):
        await bench.run(tool, params={"how": how})

    assert bench.lines() == ["line"] * 3


HARD = {
    "a hard limit": (
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))",
        "resource.getrlimit(resource.RLIMIT_FSIZE)[1] != 1000",
    ),
    "niceness": ("os.nice(5)", "os.nice(0) == NICE"),
}


@pytest.mark.parametrize("state", HARD)
async def test_what_only_root_can_undo_is_undone_or_the_process_is_not_used_again(
    bench: Bench, state: str
) -> None:
    change, check = HARD[state]
    tool = bench.tool(f"""
        import os, resource
        NICE = os.nice(0)
        def run(act):
            if act: {change}
            return {check}
    """)

    for _ in range(2):
        await bench.run(tool, params={"act": True})

        assert await bench.run(tool, params={"act": False}) == Returned(True)


TIDY = {
    "redirected output that was put back": (
        "kept = os.dup(1); os.dup2(2, 1); os.dup2(kept, 1); os.close(kept)"
    ),
    "a joined thread": "t = threading.Thread(target=int); t.start(); t.join()",
    "a thread pool that was shut down": "with ThreadPoolExecutor() as pool: list(pool.map(int, range(9)))",
    "a child that was waited for": "subprocess.run(['true'])",
    "a child that nobody waited for": "subprocess.Popen(['true']).returncode; time.sleep(0.2)",
    "a garbage cycle with a file": "x = [open(__file__)]; x.append(x)",
    "progress and its thread": "toolkit.progress(1, 2); toolkit.progress(2, 2); time.sleep(0.2)",
    "an event loop": "asyncio.run(asyncio.to_thread(int))",
    "an exception": "raise ValueError",
}


@pytest.mark.parametrize("kind", TIDY)
async def test_a_run_that_tidied_up_keeps_its_process(bench: Bench, kind: str) -> None:
    tool = bench.tool(f"""
        import asyncio, os, subprocess, threading, time, warnings
        from concurrent.futures import ThreadPoolExecutor
        from shared import toolkit
        warnings.simplefilter("ignore")
        def run(act):
            if act:
                {TIDY[kind]}
            return os.getpid()
    """)
    before = await bench.run(tool, params={"act": False})

    for _ in range(3):
        await bench.run(tool, params={"act": True})

    assert await bench.run(tool, params={"act": False}) == before


async def test_the_seed_of_a_run_makes_its_random_numbers(bench: Bench) -> None:
    tool = bench.tool("import random\ndef run(): return random.random()")

    seeded = [await bench.run(tool, seed=7) for _ in range(2)]
    unseeded = [await bench.run(tool) for _ in range(2)]

    assert seeded[0] == seeded[1]
    assert unseeded[0] != unseeded[1]
    assert seeded[0] not in unseeded


@pytest.mark.parametrize("level", Level)
@pytest.mark.parametrize("draw", ["random.random()", "float(numpy.random.random())"])
@pytest.mark.parametrize("place", ["outside", "inside"])
async def test_the_seed_applies_wherever_the_generator_is_imported(
    bench: Bench, place: str, draw: str, level: Level
) -> None:
    module = draw.partition(".")[0].removeprefix("float(")
    outside, inside = (f"import {module}", "pass") if place == "outside" else ("", f"import {module}")
    tool = bench.tool(f"{outside}\ndef run():\n    {inside}\n    return {draw}")

    seeded = [await bench.run(tool, seed=7, level=level) for _ in range(3)]
    other = await bench.run(tool, seed=8, level=level)
    unseeded = [await bench.run(tool, level=level) for _ in range(2)]

    assert isinstance(other, Returned)
    assert seeded[0] == seeded[1] == seeded[2]
    assert (
        len({answer.value for answer in [*unseeded, other, seeded[0]] if isinstance(answer, Returned)}) == 4
    )


async def test_a_seeded_run_leaves_no_finder_behind(bench: Bench) -> None:
    tool = bench.tool("""
        import sys
        def run(load):
            if load:
                import random
                return list(vars(random.__loader__))
            return len(sys.meta_path)
    """)
    before = await bench.run(tool, params={"load": False})

    loaded = await bench.run(tool, params={"load": True}, seed=1)

    assert isinstance(loaded, Returned)
    assert "exec_module" not in loaded.value
    assert await bench.run(tool, params={"load": False}) == before


async def test_a_tool_sees_only_the_environment_it_is_given(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://secret")
    tool = bench.tool("import os\ndef run(): return dict(os.environ)")

    first = await bench.run(tool, environ={"API_KEY": "k"})
    second = await bench.run(tool)

    assert isinstance(first, Returned)
    assert isinstance(second, Returned)
    assert set(first.value) == {"PATH", "TMPDIR", "FULLSEND_FORK_SERVER", "API_KEY"}
    assert set(second.value) == {"PATH", "TMPDIR", "FULLSEND_FORK_SERVER"}


async def test_no_environment_of_the_service_is_visible_anywhere_below(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://secret")

    source = """
        import os
        def run():
            read = lambda pid: open(f"/proc/{pid}/environ").read()
            return read("self") + read(os.getppid())
    """
    answer = await bench.run(bench.tool(source, sandbox=Sandbox.OFF))

    assert isinstance(answer, Returned)
    assert "secret" not in answer.value


@pytest.mark.parametrize("level", Level)
async def test_a_changed_neighbour_of_the_tool_is_imported_anew(bench: Bench, level: Level) -> None:
    neighbour = bench.directory / "neighbour.py"
    neighbour.write_text("VALUE = 1")
    tool = bench.tool("import neighbour\ndef run(): return neighbour.VALUE")
    before = await bench.run(tool, level=level)

    neighbour.write_text("VALUE = 22")
    after = await bench.run(tool, level=level)

    assert (before, after) == (Returned(1), Returned(22))


async def test_a_tool_named_like_a_standard_module_does_not_hide_it(bench: Bench) -> None:
    bench.tool("def run(): return 'the tool'", name="email")
    user = bench.tool("import email.message\ndef run(): return email.__name__")

    assert await bench.run(user) == Returned("email")
    assert await bench.run(bench.tool("def run(): return 1", name="json")) == Returned(1)


async def test_nothing_of_the_service_can_be_imported_through_shared(bench: Bench) -> None:
    answer = await bench.run("""
        def run(): import shared.keys
    """)

    assert isinstance(answer, Raised)
    assert answer.error_type == "ModuleNotFoundError"


async def test_a_temp_directory_that_was_empty_for_long_is_emptied(bench: Bench) -> None:
    tool = bench.tool("""
        import os, time
        def run(act):
            names = os.listdir()
            if act == "wait": time.sleep(0.1)
            if act == "write": open("x", "w").close()
            if act == "move": os.rename(os.getcwd(), os.getcwd() + ".moved")
            return [names, os.getcwd() == os.environ["TMPDIR"]]
    """)

    acts = ["wait", "none", "write", "none", "write", "write", "wait", "none", "move", "none"]
    answers = [await bench.run(tool, params={"act": act}) for act in acts]

    assert answers == [Returned([[], True], 2)] * 8 + [Returned([[], False], 2), Returned([[], True], 2)]


async def test_the_temp_directory_of_a_run_is_its_own_and_is_gone_after_the_pool(bench: Bench) -> None:
    answer = await bench.run("""
        import os
        from shared import toolkit
        def run():
            open("x", "w").close()
            return [os.getcwd(), toolkit.run.temp_directory, os.environ["TMPDIR"]]
    """)
    await bench.pool.stop()

    assert isinstance(answer, Returned)
    assert len(set(answer.value)) == 1
    assert not Path(answer.value[0]).exists()
