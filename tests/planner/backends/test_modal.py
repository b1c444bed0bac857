"""What only the Modal backend promises: what containers get, how code and artifacts travel, the app."""

import asyncio
import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from services.cli.cloud import modal_app
from services.executor.outcome import Status
from services.executor.policy import ModalNeeds, ToolNeeds
from services.planner.backends import BACKENDS, modal_backend
from services.planner.backends.modal_options import MAX_TIMEOUT_SECONDS, ModalOptions
from shared.errors import PlanError
from tests.conftest import Tools
from tests.isolation.workshop import Workshop
from tests.modal_server import RunningServer
from tests.modal_server.fixtures import CHECKOUT, MODAL_OPTIONS
from tests.planner.backends.conftest import MakeModal, execution

pytestmark = pytest.mark.xdist_group("modal")


# -- code -----------------------------------------------------------------------------


async def test_the_code_of_a_tool_travels_with_its_neighbours_and_its_package_once(
    modal: MakeModal, modal_server: RunningServer, tools: Tools, tmp_path: Path
) -> None:
    tools("helper", "VALUE = 41\n")
    tools("single", "import helper\ndef single(): return helper.VALUE + 1\n")
    package = tmp_path / "tools" / "packed"
    package.mkdir()
    (package / "__init__.py").write_text("from packed.inner import value\ndef packed(): return value()\n")
    (package / "inner.py").write_text("def value(): return 'inner'\n")
    async with modal() as backend:
        results = [await backend.run(execution(name, {})) for name in ("single", "packed")]
        written = modal_server.modal.called["VolumePutFiles2"]
        again = [await backend.run(execution(name, {})) for name in ("single", "packed")]

    assert [one.result for one in results] == ["42", '"inner"']
    assert [one.result for one in again] == ["42", '"inner"']
    assert len({one.tool_digest for one in results}) == 2
    assert modal_server.modal.called["VolumePutFiles2"] == written


async def test_code_that_changes_is_sent_again(modal: MakeModal, tools: Tools) -> None:
    async with modal() as backend:
        results = []
        for number in (1, 2):
            tools("changing", f"def changing(): return {number}\n")
            results.append(await backend.run(execution("changing", {})))

    assert [one.result for one in results] == ["1", "2"]
    assert results[0].tool_digest != results[1].tool_digest


async def test_a_tool_has_its_own_packages_in_the_container(
    modal: MakeModal,
    modal_server: RunningServer,
    tools: Tools,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "shop").mkdir()
    shop = Workshop(tmp_path / "shop")
    shop.wheel("parcel", "1.5")
    for name, value in shop.environ.items():
        monkeypatch.setenv(name, value)
    block = "# /// script\n# dependencies = ['parcel>=1']\n# [tool.fullsend.modal]\n# cpu = 3\n# ///\n"
    tools("needy", f"{block}import sys\nimport parcel\ndef needy(): return [parcel.VERSION, sys.prefix]\n")
    async with modal() as backend:
        result = await backend.run(execution("needy", {}, timeout_seconds=60))

    assert result.error is None
    version, prefix = json.loads(result.loader.load_text(str(result.result)))
    assert version == "1.5"
    assert Path(prefix).is_relative_to(modal_server.modal.folder / ".fullsend" / "environments")


# -- what containers get ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("needs", "limit_seconds", "expected"),
    [
        (None, 10.0, {}),
        (None, 400.0, {"timeout": 860.0}),
        (None, 86_400.0, {"timeout": float(MAX_TIMEOUT_SECONDS)}),
        (ModalNeeds(timeout_seconds=5), 10.0, {"timeout": 80.0}),
        (ModalNeeds(timeout_seconds=7_200), 10.0, {"timeout": 7_200.0}),
        (
            ModalNeeds(memory_mib=8_192, cpu=4, gpu="A100:2"),
            10.0,
            {"memory": 8_192, "cpu": 4.0, "gpu": "A100:2"},
        ),
        (ModalNeeds(secrets=("mine",)), 10.0, {"secrets": ("mine",)}),
        (ModalNeeds(gpu="", secrets=()), 10.0, {"gpu": "", "secrets": ()}),
    ],
)
def test_a_tool_may_ask_for_its_own_container(
    needs: ModalNeeds | None, limit_seconds: float, expected: dict[str, object]
) -> None:
    options = ModalOptions(gpu="T4", secrets=("common",))

    assert options.for_tool(ToolNeeds(modal=needs), limit_seconds) == replace(options, **expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("limit", "slots", "concurrency", "containers"),
    [(None, 1, 100, 100), (50, 1, 100, 50), (50, 1, 10, 10), (None, 4, 10, 3), (50, 8, 1_000, 7)],
)
def test_a_plan_gets_containers_for_its_cases_at_once_up_to_the_limit(
    limit: int | None, slots: int, concurrency: int, containers: int
) -> None:
    assert ModalOptions(max_parallel=limit, slots=slots).for_plan(concurrency).max_containers == containers


async def test_containers_get_what_the_tool_asks_for(
    modal: MakeModal, modal_server: RunningServer, tools: Tools
) -> None:
    modal_server.modal.secrets["st-mine"] = {"MY_KEY": "secret value"}
    modal_server.modal.named_secrets["mine"] = "st-mine"
    tools(
        "asking",
        """
        # /// script
        # [tool.fullsend.modal]
        # memory_mib = 3000
        # cpu = 2.5
        # gpu = "T4"
        # secrets = ["mine"]
        # timeout_seconds = 900
        # ///
        import os
        def asking(): return sorted(name for name in os.environ if name in ("MY_KEY", "MODAL_TASK_ID"))
        """,
    )
    async with modal() as backend:
        result = await backend.run(execution("asking", {}))
    [made] = [one for _, one in modal_server.modal.functions.values() if one.resources.memory_mb == 3_000]

    assert result.error is None
    assert result.result == "[]"  # a tool sees a variable only if it and the operator name it
    assert (made.timeout_secs, made.resources.milli_cpu) == (900, 2_500)
    assert (made.resources.gpu_config.gpu_type, made.resources.gpu_config.count) == ("T4", 1)
    assert list(made.secret_ids) == ["st-mine"]
    assert made.autoscaler_settings.max_containers == 2


async def test_a_secret_that_does_not_exist_fails_the_call(modal: MakeModal, tools: Tools) -> None:
    tools("noop", "# /// script\n# [tool.fullsend.modal]\n# secrets = ['none']\n# ///\ndef noop(): pass\n")
    async with modal() as backend:
        result = await backend.run(execution("noop", {}))

    assert (result.status, result.error and result.error.type) == (Status.FAILED, "PlanError")
    assert "Secret 'none' not found" in str(result.error)


# -- many -------------------------------------------------------------------------------


async def test_a_thousand_calls_wait_on_modal_and_are_cancelled_with_the_plan(
    modal: MakeModal, modal_server: RunningServer, tools: Tools
) -> None:
    tools("square", "def square(n): return n * n\n")
    server = modal_server.modal
    elsewhere = replace(MODAL_OPTIONS, cpu=0.5)
    async with modal(elsewhere, concurrency=1_000) as backend:
        first = await backend.run(execution("square", {"n": 9}))
        server.are_available = False
        for one in list(server.containers.values()):
            one.kill()
        calls = [
            asyncio.create_task(backend.run(execution("square", {"n": n}, n, timeout_seconds=100)))
            for n in range(1_000)
        ]
        [waiting] = [
            one
            for name, one in server.waiting.items()
            if server.functions[name][1].resources.milli_cpu == 500
        ]
        while waiting.qsize() < 1_000:
            await asyncio.sleep(0.05)
        capacity, running = backend.capacity, [one for one in calls if not one.done()]
    server.are_available = True
    results = await asyncio.gather(*calls)

    assert (first.result, capacity, len(running)) == ("81", 1_000, 1_000)
    assert {one.status for one in results} == {Status.CANCELLED}


# -- what comes back --------------------------------------------------------------------


async def test_with_a_store_that_both_sides_reach_only_references_come_back(
    modal: MakeModal, modal_server: RunningServer, tools: Tools, s3_url: str
) -> None:
    tools("store", "from shared import toolkit\ndef store():\n  toolkit.artifact('a', b'x' * 100_000)\n")
    fresh = replace(MODAL_OPTIONS, cpu=1.5)  # its containers start with the variables that lead to the store
    async with modal(fresh, store=s3_url) as backend:
        result = await backend.run(execution("store", {}))

    assert (result.storage_type, result.storage_base) == ("s3", s3_url)
    assert result.loader.load_bytes(result.artifacts["a"]) == b"x" * 100_000


async def test_content_that_has_changed_on_its_way_is_not_stored(
    modal: MakeModal, modal_server: RunningServer, tools: Tools, tmp_path: Path
) -> None:
    tools(
        "store",
        """
        import os, time
        from shared import toolkit
        def store(gate):
            toolkit.artifact('a', b'x' * 100_000)
            open(gate, "w").close()
            while os.path.exists(gate):
                time.sleep(0.01)
        """,
    )
    gate = tmp_path / "gate"
    async with modal() as backend:
        call = asyncio.create_task(backend.run(execution("store", {"gate": str(gate)})))
        while not gate.exists():
            await asyncio.sleep(0.01)
        [blob] = [
            path
            for path in modal_server.modal.folder.glob("volumes/*/sha256/*/*")
            if path.stat().st_size == 100_000 and path.read_bytes()[:1] == b"x"
        ]
        blob.write_bytes(b"y" * 100_000)
        gate.unlink()
        result = await call

    assert (result.status, result.error and result.error.type) == (Status.FAILED, "ArtifactCorruptError")
    assert not (tmp_path / "artifacts" / "sha256" / blob.parent.name / blob.name).exists()


async def test_large_parameters_and_results_travel_too(modal: MakeModal, tools: Tools) -> None:
    tools("twice", "def twice(text): return 2 * text\n")
    text = "ä" * 1_500_000
    async with modal() as backend:
        result = await backend.run(execution("twice", {"text": text}))

    assert result.error is None
    assert json.loads(result.loader.load_text(str(result.result))) == 2 * text


async def test_another_python_in_the_containers_is_named_once(
    modal: MakeModal, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(modal_backend, "PYTHON", "3.0")  # of this process
    tools("noop", "def noop(): return 1\n")
    async with modal(tell=told.append) as backend:
        for _ in range(2):
            await backend.run(execution("noop", {}))
        while not told:
            await asyncio.sleep(0.01)

    [line] = told
    assert line.startswith(
        f"the containers on Modal have Python {sys.version_info[0]}.{sys.version_info[1]}, "
    )


# -- the app ----------------------------------------------------------------------------


def test_the_image_has_our_pins_and_an_installation_of_our_source(
    modal_server: RunningServer, tmp_path: Path
) -> None:
    server = modal_server.modal
    function_id = server.layouts[server.apps[MODAL_OPTIONS.app]]["call_tool"]
    commands = server.commands_of(server.functions[function_id][1].image_id)
    files = server.files_under("/fullsend/")
    for name, content in files.items():
        path = tmp_path / name.removeprefix("/fullsend/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    [install] = [one for one in commands if "--no-deps" in one]
    target = tmp_path / "installed"
    subprocess.run(
        [*install.replace("RUN python", sys.executable).replace("/fullsend", str(tmp_path)).split(),
         "--target", str(target), "--quiet"],
        check=True,
    )  # fmt: skip
    installed = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}

    assert any("pip install -r /.requirements.txt" in one for one in commands), commands
    assert any(one.startswith(f"FROM python:3.{sys.version_info[1]}") for one in commands), commands
    assert "ENV FULLSEND_MODAL_SLOTS=4" in commands
    assert {"services/cli/cloud/modal_function.py", "services/executor/store/lua/claim.lua"} <= installed
    assert any(name.endswith(".dist-info/METADATA") for name in installed)
    assert not any("__pycache__" in name for name in files)


def test_a_folder_that_is_no_checkout_makes_no_image(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"is no checkout of this project, .* it has no requirements\.txt"):
        modal_app.image_of(tmp_path, {})


def test_the_package_is_the_one_of_the_extra() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]

    assert project["optional-dependencies"]["modal"] == [BACKENDS["modal"].requires]
