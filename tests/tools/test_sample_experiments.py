"""The sample experiments are what the publishing service would write, and fit the tools that ship."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tools.conftest import Load

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "config" / "experiments").glob("*.yaml"))
TOOLS = {path.stem for path in (ROOT / "tools").glob("*.py")}
POLICY = {
    "timeout_seconds", "max_attempts", "backoff_min", "backoff_max", "isolation", "priority", "seed", "cache",
}  # fmt: skip


def experiment(path: Path) -> dict[str, Any]:
    document = yaml.safe_load(path.read_text())
    assert set(document) == {"experiment"}
    return dict(document["experiment"])


def misfit(load: Load, execution: dict[str, Any]) -> str | None:
    """Why the parameters don't fit the tool's signature, or None."""
    tool = getattr(load(execution["tool"]), execution["tool"])
    try:
        inspect.signature(tool).bind(**execution["params"])
    except TypeError as exc:
        return str(exc)
    return None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_sample_is_ready_and_says_what_it_is_for(path: Path) -> None:
    sample = experiment(path)

    assert sample["id"] == path.stem
    assert sample["state"] == "ready"
    assert sample["hypothesis"]
    assert set(sample["execution"]) <= {"tool", "params", "schedule", "timezone"} | POLICY


def test_exactly_one_sample_names_a_tool_that_isnt_there() -> None:
    missing = [path.stem for path in FILES if experiment(path)["execution"]["tool"] not in TOOLS]

    assert missing == ["exp_demo_missing_tool"]


def test_exactly_one_sample_has_parameters_that_dont_fit(load: Load) -> None:
    runnable = [path for path in FILES if experiment(path)["execution"]["tool"] in TOOLS]
    wrong = [path.stem for path in runnable if misfit(load, experiment(path)["execution"])]

    assert wrong == ["exp_demo_wrong_params"]


def test_the_samples_need_no_network() -> None:
    for path in FILES:
        execution = experiment(path)["execution"]
        urls = [*execution["params"].get("urls", []), execution["params"].get("api_url")]

        assert all(url is None or url.startswith("http://127.0.0.1:9") for url in urls)
