"""The toolkit: from a tool's call to the service."""

import asyncio
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from services.executor.isolation.calls import (
    Died,
    Event,
    Level,
    Metric,
    NothingKept,
    Partial,
    Progress,
    Raised,
    Returned,
)
from tests.isolation.bench import ArtifactList, Bench

MILLION = 1_000_000
SOON_SECONDS = 0.1
HEAD_ROOM_SECONDS = 1.0
"""A machine that does other work at the same time may take so much longer."""


class Memory(NothingKept):
    """Effects in a dictionary."""

    def __init__(self) -> None:
        self.steps: dict[str, Any] = {}
        self.broken = False

    async def recall(self, key: str) -> Any | None:
        await asyncio.sleep(0)
        if self.broken:
            raise RuntimeError("no store")
        return {"value": self.steps[key]} if key in self.steps else None

    async def record(self, key: str, value: Any) -> None:
        self.steps[key] = value


async def test_progress_and_metrics_arrive(bench: Bench) -> None:
    await bench.run("""
        from shared import toolkit
        def run():
            toolkit.progress(1, 4, "one")
            toolkit.metric("emails", 3, domain="example.org")
    """)

    assert bench.events == [Progress(1, 4, "one"), Metric("emails", 3, {"domain": "example.org"})]


async def test_a_report_arrives_while_the_tool_reports_nothing_more(bench: Bench) -> None:
    running = asyncio.create_task(
        bench.run(
            """
            import time
            from shared import toolkit
            def run():
                toolkit.progress(1, 4)
                toolkit.progress(2, 4)
                time.sleep(100)
            """,
            timeout_seconds=2.0,
        )
    )

    await bench.until(lambda event: event == Progress(2, 4, ""))

    assert not running.done()
    await running


async def test_a_million_progress_reports_cost_next_to_nothing_and_the_last_one_arrives(bench: Bench) -> None:
    tool = bench.tool(f"""
        import time
        from shared import toolkit
        def run():
            begun = time.process_time()
            for n in range({MILLION}): toolkit.progress(n + 1, {MILLION})
            return time.process_time() - begun
    """)
    begun = time.process_time()
    answer = await bench.run(tool, timeout_seconds=100)
    service_seconds = time.process_time() - begun

    reports = bench.of(Progress)
    assert isinstance(answer, Returned)
    print(
        f"a million reports: {len(reports)} arrived; CPU {answer.value:.2f} s, ours {service_seconds:.3f} s"
    )
    assert reports[-1] == Progress(MILLION, MILLION, "")
    assert reports == sorted(reports, key=lambda report: report.done)
    assert len(reports) < MILLION / 1_000
    assert service_seconds < answer.value / 10


@pytest.mark.parametrize("what", [Progress, Metric])
async def test_a_report_arrives_soon_whether_it_comes_alone_or_in_a_burst(
    bench: Bench, what: type[Any]
) -> None:
    late: list[float] = []
    tool = bench.tool("""
        import time
        from shared import toolkit
        def run():
            for n in range(60):
                now = time.monotonic()
                toolkit.progress(1, 60, repr(now))
                toolkit.metric("sent", now)
                time.sleep(0.2 if n % 10 == 0 else 0.013)
    """)

    def report(event: Event) -> None:
        now = time.monotonic()
        if isinstance(event, what):
            late.append(now - (float(event.message) if isinstance(event, Progress) else event.value))

    await bench.perform(bench.call(tool), report)

    print(f"{what.__name__}: the median {statistics.median(late):.3f} s, the last {max(late):.3f} s")
    assert len(late) >= 10
    assert statistics.median(late) < SOON_SECONDS
    assert max(late) < SOON_SECONDS + HEAD_ROOM_SECONDS


async def test_no_metric_is_lost(bench: Bench) -> None:
    await bench.run("""
        from shared import toolkit
        def run():
            for n in range(5_000): toolkit.metric("n", n)
    """)

    assert [metric.value for metric in bench.of(Metric)] == list(range(5_000))


async def test_partial_items_survive_a_crash_right_after(bench: Bench) -> None:
    answer = await bench.run("""
        import os
        from shared import toolkit
        def run():
            for n in range(100): toolkit.partial(n)
            os._exit(1)
    """)

    assert isinstance(answer, Died)
    assert bench.of(Partial) == [Partial(n) for n in range(100)]


@pytest.mark.parametrize(
    "call",
    [
        "progress('much')",
        "progress(float('nan'))",
        "metric('n', None)",
        "metric('n', float('inf'))",
        "metric('n', 1, tag=object())",
        "partial(object())",
    ],
)
async def test_a_report_that_makes_no_sense_is_an_error_of_the_tool(bench: Bench, call: str) -> None:
    answer = await bench.run(f"from shared import toolkit\ndef run(): toolkit.{call}")

    assert isinstance(answer, Raised)
    assert bench.events == []


async def test_reports_from_threads_arrive_whole(bench: Bench) -> None:
    await bench.run("""
        import concurrent.futures
        from shared import toolkit
        def run():
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                list(pool.map(toolkit.partial, range(2_000)))
    """)

    assert {partial.item for partial in bench.of(Partial)} == set(range(2_000))


async def test_once_runs_a_step_once_over_all_attempts(bench: Bench) -> None:
    tool = bench.tool("""
        from shared import toolkit
        def send():
            print("sent")
            return {"id": 1, "to": ("a", "b")}
        def run(): return [toolkit.once("send", send), toolkit.run.attempt]
    """)
    memory = Memory()

    first = await bench.run(tool, effects=memory, attempt=1)
    second = await bench.run(tool, effects=memory, attempt=2, level=Level.SPAWN)

    assert first == Returned([{"id": 1, "to": ["a", "b"]}, 1], 2)
    assert second == Returned([{"id": 1, "to": ["a", "b"]}, 2], 2)
    assert bench.lines() == ["sent"]


async def test_once_returns_a_recorded_none_without_repeating(bench: Bench) -> None:
    tool = bench.tool("from shared import toolkit\ndef run(): return toolkit.once('k', lambda: print('ran'))")
    memory = Memory()

    for _ in range(2):
        assert await bench.run(tool, effects=memory) == Returned(None)

    assert bench.lines() == ["ran"]


async def test_once_in_several_threads_keeps_the_answers_apart(bench: Bench) -> None:
    answer = await bench.run(
        """
        import concurrent.futures
        from shared import toolkit
        def run():
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                return list(pool.map(lambda n: toolkit.once(str(n), lambda: n), range(50)))
        """,
        effects=Memory(),
    )

    assert answer == Returned(list(range(50)), 50)


async def test_a_store_that_fails_is_a_retryable_error_of_the_run(bench: Bench) -> None:
    memory = Memory()
    memory.broken = True

    answer = await bench.run("from shared import toolkit\ndef run(): toolkit.once('k', int)", effects=memory)

    assert isinstance(answer, Raised)
    assert answer.error_type == "ConnectionError"
    assert answer.retryable


async def test_an_artifact_is_captured_at_the_moment_of_the_call(bench: Bench) -> None:
    kept = ArtifactList()
    tool = bench.tool("""
        from shared import toolkit
        def run():
            first = toolkit.artifact("a.json", b"{}", media_type="application/geo+json")
            with open("b.txt", "w") as file: file.write("before")
            second = toolkit.artifact("b.txt", "b.txt")
            with open("b.txt", "w") as file: file.write("after")
            return [first, second]
    """)

    answers = [await bench.perform(bench.call(tool), bench.report, effects=kept) for _ in range(2)]

    first, second = kept.captures[:2]
    assert kept.contents == [b"{}", b"before"] * 2
    assert (first.name, first.media_type, first.size_bytes) == ("a.json", "application/geo+json", 2)
    assert (second.name, second.media_type, second.size_bytes) == ("b.txt", None, 6)
    assert answers[0] == Returned(["kept:1", "kept:2"], 2)


async def test_a_kept_artifact_leaves_no_file(bench: Bench) -> None:
    kept = ArtifactList()
    tool = bench.tool("""
        import os
        from shared import toolkit
        def run():
            for n in range(30): toolkit.artifact(str(n), b"x")
            return os.listdir(toolkit.run.temp_directory + "/../artifacts")
    """)

    answers = [await bench.perform(bench.call(tool), bench.report, effects=kept) for _ in range(3)]

    assert answers == [Returned([], 0)] * 3
    assert len(kept.contents) == 90


async def test_an_artifact_that_nobody_keeps_has_no_reference(bench: Bench) -> None:
    answer = await bench.run("from shared import toolkit\ndef run(): return toolkit.artifact('a', b'x')")

    assert answer == Returned(None)


async def test_an_artifact_of_a_missing_file_is_the_tools_own_error(bench: Bench) -> None:
    kept = ArtifactList()
    answer = await bench.run(
        """
        from shared import toolkit
        def run():
            try: toolkit.artifact("a", "missing")
            except FileNotFoundError: return toolkit.artifact("b", b"x")
        """,
        effects=kept,
    )

    assert answer == Returned("kept:1")


async def test_an_artifact_that_is_a_link_to_something_else_is_not_taken(bench: Bench) -> None:
    kept = ArtifactList()
    answer = await bench.run(
        """
        import os
        from shared import toolkit
        def run():
            host = toolkit._executor
            _, path = host._new_file()
            os.symlink("/etc/passwd", path)
            host.channel.ask("keep", {"name": "a", "number": 1, "size": 1})
        """,
        effects=kept,
    )

    assert isinstance(answer, Raised)
    assert kept.contents == []


async def test_an_artifact_behind_a_link_to_another_place_is_not_taken(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "1").write_text("secret")
    kept = ArtifactList()
    answer = await bench.run(
        f"""
        import os
        from shared import toolkit
        def run():
            host = toolkit._executor
            os.symlink({str(tmp_path)!r}, host.run["artifacts"])
            host.channel.ask("keep", {{"name": "a", "number": 1, "size": 1}})
        """,
        effects=kept,
    )

    assert isinstance(answer, Raised)
    assert "is not a file in the directory for artifacts" in answer.message
    assert kept.contents == []


async def test_an_artifact_given_by_reference_is_fetched(bench: Bench) -> None:
    kept = ArtifactList()
    kept.given["cas://1"] = b"given"
    answer = await bench.run(
        "from shared import toolkit\ndef run(): return toolkit.read_artifact('cas://1').decode()",
        effects=kept,
    )

    assert answer == Returned("given")


async def test_an_artifact_that_was_not_given_is_refused(bench: Bench) -> None:
    answer = await bench.run("from shared import toolkit\ndef run(): toolkit.read_artifact('cas://2')")

    assert isinstance(answer, Raised)
    assert "cas://2 is not an artifact that this call was given" in answer.message


async def test_a_call_may_name_another_function(bench: Bench) -> None:
    tool = bench.tool("def run(): return 1\ndef aggregate(): return 2\nlimit = 3")
    named = [replace(bench.call(tool), entry=entry) for entry in ("aggregate", "", "limit", "_answer")]

    answers = [await bench.perform(call, bench.report) for call in named]

    assert answers[:2] == [Returned(2), Returned(1)]
    assert [one.error_type for one in answers[2:] if isinstance(one, Raised)] == ["ToolError"] * 2


async def test_the_run_describes_itself(bench: Bench) -> None:
    answer = await bench.run(
        """
        from shared import toolkit
        def run():
            r = toolkit.run
            return [r.id, r.experiment_id, r.attempt, r.seed, 0 < r.remaining_seconds <= 30]
        """,
        attempt=3,
        seed=9,
    )

    assert answer == Returned(["exp:1-0", "exp", 3, 9, True], 5)


async def test_in_processes_of_the_tool_the_toolkit_is_harmless(bench: Bench) -> None:
    answer = await bench.run("""
        import multiprocessing, os
        from shared import toolkit
        def work(n):
            toolkit.progress(n, 3)
            toolkit.partial(n)
            return n * toolkit.once("k", lambda: 2)
        def run():
            with multiprocessing.get_context("fork").Pool(2) as pool:
                return pool.map(work, [1, 2, 3])
    """)

    assert answer == Returned([2, 4, 6], 3)
    assert bench.of(Progress) == []


async def test_multiprocessing_with_spawn_works_from_a_tool(bench: Bench) -> None:
    answer = await bench.run("""
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        def work(n): return n * 2
        def run():
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                return list(pool.map(work, [1, 2]))
    """)

    assert answer == Returned([2, 4], 2)
