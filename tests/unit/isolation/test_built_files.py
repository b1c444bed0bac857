"""What foreign code has left in an environment is neither followed nor waited for."""

import json
import os
from pathlib import Path

import pytest

from services.executor.isolation.environment.built_files import (
    ORIGIN_BYTES,
    built_wheels,
    installed_in,
)

ORIGIN = json.dumps({"url": "https://example.com/x", "vcs_info": {"commit_id": "abc"}})
PLAIN = ["built-1.0"]


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    folder = tmp_path / "environment"
    info_of(folder).mkdir(parents=True)
    return folder


def info_of(folder: Path) -> Path:
    return folder / "lib" / "python3.11" / "site-packages" / "built-1.0.dist-info"


def private(path: Path, text: str = "x") -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_where_a_package_came_from_is_read(folder: Path) -> None:
    (info_of(folder) / "direct_url.json").write_text(ORIGIN)

    assert installed_in(folder) == ['built-1.0 {"commit_id": "abc"} null']


@pytest.mark.timeout(60)
def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(info_of(folder) / "direct_url.json")

    assert installed_in(folder) == PLAIN


@pytest.mark.parametrize("text", ["", "[]", "[" * 50_000, "\udcff", ORIGIN + " " * ORIGIN_BYTES])
def test_an_origin_that_can_not_be_used_is_ignored(text: str, folder: Path) -> None:
    (info_of(folder) / "direct_url.json").write_text(text, errors="surrogateescape")

    assert installed_in(folder) == PLAIN


def test_the_origin_is_not_read_through_a_link(folder: Path, tmp_path: Path) -> None:
    (info_of(folder) / "direct_url.json").symlink_to(private(tmp_path / "other", ORIGIN))

    assert installed_in(folder) == PLAIN


@pytest.mark.parametrize("at", ["lib", "lib/python3.11", "lib/python3.11/site-packages"])
def test_packages_are_not_listed_through_a_link(at: str, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (folder / at).rename(other)
    (folder / at).symlink_to(other)

    assert installed_in(folder) == []


WHEEL = "built-1.0-py3-none-any.whl"


def test_a_built_wheel_is_found_where_uv_keeps_it(folder: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "cache" / "sdists-v9" / "index" / "abc" / "built" / "1.0" / "revision" / WHEEL
    wheel.parent.mkdir(parents=True)
    private(wheel)
    private(wheel.with_name("other-1.0-py3-none-any.whl"))

    assert built_wheels(tmp_path / "cache", folder) == {"built": wheel}


@pytest.mark.timeout(60)
def test_wheels_are_not_looked_for_through_links(folder: Path, tmp_path: Path) -> None:
    """With so many, following them would take hours."""
    cache, elsewhere = tmp_path / "cache", tmp_path / "elsewhere" / "a" / "b"
    cache.mkdir()
    elsewhere.mkdir(parents=True)
    wheel = private(elsewhere / WHEEL)
    for number in range(20):
        (cache / f"itself{number}").symlink_to(cache)
    (cache / "elsewhere").symlink_to(tmp_path / "elsewhere")
    (cache / WHEEL).symlink_to(wheel)

    assert built_wheels(cache, folder) == {}
