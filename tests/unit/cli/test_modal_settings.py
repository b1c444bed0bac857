"""Settings for plans on Modal: environment > .env > defaults."""

from pathlib import Path

import pytest

from services.cli.cloud.modal_settings import DEFAULTS, ModalSettings, modal_options
from shared.errors import SettingsError

VALUES = {
    "volume": ("a", "b-c", "d.e"),
    "timeout": ("11", "12", "13"),
    "memory": ("11", "12", "13"),
    "cpu": ("0.5", "2", "3"),
    "gpu": ("T4", "A100:2", "H100"),
    "secrets": ("a", "a,b", "c"),
    "max_parallel": ("11", "12", "13"),
    "slots": ("11", "12", "13"),
    "wait": ("11", "12", "13"),
}
"""Three values for each setting, as text."""

OTHERS = {
    "BILANCIO_MODAL_VOLUME": "volume",
    "BILANCIO_CLOUD_TIMEOUT": "timeout",
    "BILANCIO_MODAL_TIMEOUT": "timeout",
    "BILANCIO_CLOUD_MEMORY": "memory",
    "BILANCIO_MODAL_MEMORY": "memory",
    "BILANCIO_CLOUD_MAX_PARALLEL": "max_parallel",
    "BILANCIO_MODAL_MAX_PARALLEL": "max_parallel",
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory without settings, and an environment without them."""
    monkeypatch.chdir(tmp_path)
    for name in (*OTHERS, *(f"MODAL_{name.upper()}" for name in VALUES)):
        monkeypatch.delenv(name, raising=False)


def as_read(name: str, text: str) -> object:
    """The value of a setting in a text."""
    default = 0 if name == "max_parallel" else getattr(DEFAULTS, name)
    return tuple(text.split(",")) if isinstance(default, tuple) else type(default)(text)


@pytest.mark.parametrize("name", VALUES)
def test_the_environment_overrides_the_env_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, _ = VALUES[name]

    assert getattr(modal_options(), name) == getattr(DEFAULTS, name)
    Path(".env").write_text(f"MODAL_{name.upper()}={first}\nOTHER=1\n")
    assert getattr(modal_options(), name) == as_read(name, first)
    monkeypatch.setenv(f"MODAL_{name.upper()}", second)
    assert getattr(modal_options(), name) == as_read(name, second)


@pytest.mark.parametrize(("variable", "name"), OTHERS.items())
def test_another_variable_counts_where_the_own_is_not_set(
    variable: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = VALUES[name]

    Path(".env").write_text(f"{variable}={first}\n")
    assert getattr(modal_options(), name) == as_read(name, first)
    monkeypatch.setenv(variable, second)
    assert getattr(modal_options(), name) == as_read(name, second)
    monkeypatch.setenv(f"MODAL_{name.upper()}", third)
    assert getattr(modal_options(), name) == as_read(name, third)


def test_each_mistake_is_told_with_the_variable_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILANCIO_CLOUD_MEMORY", "much")
    monkeypatch.setenv("MODAL_TIMEOUT", "100000")
    monkeypatch.setenv("MODAL_VOLUME", "a/b")

    with pytest.raises(SettingsError) as caught:
        modal_options()

    volume, timeout, memory = str(caught.value).splitlines()
    assert volume.startswith("MODAL_VOLUME=a/b: ")
    assert timeout.startswith("MODAL_TIMEOUT=100000: ")
    assert memory.startswith("MODAL_MEMORY=much: expected a whole number")
    assert memory.endswith("(set by this variable or by BILANCIO_CLOUD_MEMORY or BILANCIO_MODAL_MEMORY)")


def written(name: str) -> str:
    """A default as the manual shows it."""
    default = getattr(DEFAULTS, name)
    match default:
        case tuple():
            return ",".join(default)
        case float():
            return f"{default:g}"
        case None:
            return ""
        case _:
            return str(default)


def test_the_manual_lists_every_setting_with_its_default() -> None:
    manual = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    rows = [
        line.replace("`", "").split("|")[1:4] for line in manual.splitlines() if line.startswith("| `MODAL_")
    ]
    listed = {
        name.strip(): default.strip()
        for names, _, defaults in rows
        for name, default in zip(names.split(","), f"{defaults},,,".split(","), strict=False)
    }

    assert listed == {f"MODAL_{name.upper()}": written(name) for name in ModalSettings.model_fields}
