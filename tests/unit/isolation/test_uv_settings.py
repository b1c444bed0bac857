"""The settings for uv, and the secrets that messages must not show."""

from pathlib import Path

import pytest

from services.executor.isolation.environment.uv_settings import masked, uv_settings

INDEX = "https://packages.example/simple"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home directory on a system without configuration."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def base(home: Path) -> dict[str, str]:
    return {"HOME": str(home), "XDG_CONFIG_DIRS": str(home / "etc")}


def translated(home: Path, pip_conf: str = "", **environ: str) -> dict[str, str]:
    """The variables for uv that are not in the service's environment."""
    file = home / "pip.conf"
    file.write_text(pip_conf)
    given = base(home) | environ
    found = uv_settings(given, [file]).environ
    ours = ("UV_PYTHON_DOWNLOADS", "UV_NO_PROGRESS", "NO_COLOR", "UV_NO_CONFIG", "UV_CONFIG_FILE")
    return {name: value for name, value in found.items() if name not in (*given, *ours)}


def test_only_what_reaches_packages_is_passed(home: Path) -> None:
    given = {
        "UV_INDEX": INDEX, "PIP_CERT": "/ca.pem", "HTTPS_PROXY": "http://proxy", "PATH": "/bin",
        "REDIS_URL": "redis://", "VIRTUAL_ENV": "/venv", "PYTHONPATH": "/lib", "AWS_SECRET_ACCESS_KEY": "x",
        "UV_PUBLISH_TOKEN": "x", "UV_SYSTEM_PYTHON": "1", "UV_PYTHON": "2", "UV_PROJECT_ENVIRONMENT": "/x",
    }  # fmt: skip

    passed = uv_settings(base(home) | given, []).environ

    assert given.keys() & passed.keys() == {"UV_INDEX", "PIP_CERT", "HTTPS_PROXY", "PATH"}


def test_uv_never_fetches_an_interpreter(home: Path) -> None:
    settings = uv_settings(base(home) | {"UV_PYTHON_DOWNLOADS": "automatic"}, [])

    assert settings.environ["UV_PYTHON_DOWNLOADS"] == "never"


@pytest.mark.parametrize(
    ("pip_conf", "expected"),
    [
        (f"[global]\nindex-url = {INDEX}", {"UV_DEFAULT_INDEX": INDEX}),
        (
            "[global]\nextra-index-url =\n    https://a.example\n    https://b.example",
            {"UV_INDEX": "https://a.example https://b.example", "UV_INDEX_STRATEGY": "unsafe-best-match"},
        ),
        ("[install]\nfind_links = https://a.example /usr", {"UV_FIND_LINKS": "https://a.example,/usr"}),
        ("[install]\nfind-links = /nonexistent", {}),
        ("[global]\ntrusted-host = a.example b.example", {"UV_INSECURE_HOST": "a.example b.example"}),
        ("[global]\ncert = /ca.pem", {"SSL_CERT_FILE": "/ca.pem"}),
        ("[global]\nproxy = http://p", {"HTTP_PROXY": "http://p", "HTTPS_PROXY": "http://p"}),
        ("[global]\ntimeout = 99", {"UV_HTTP_TIMEOUT": "99"}),
        ("[global]\ntimeout = 1\n[install]\ntimeout = 2\n[list]\ntimeout = 3", {"UV_HTTP_TIMEOUT": "2"}),
        ("[global]\nquiet = 1", {}),
        ("this is not a configuration file", {}),
        ("", {}),
    ],
)
def test_pips_file_is_put_in_uvs_words(home: Path, pip_conf: str, expected: dict[str, str]) -> None:
    assert translated(home, pip_conf) == expected


def test_pips_variables_come_before_its_files(home: Path) -> None:
    found = translated(home, "[global]\nindex-url = https://file.example", PIP_INDEX_URL=INDEX)

    assert found == {"UV_DEFAULT_INDEX": INDEX}


def test_pip_without_an_index_is_uv_without_one(home: Path) -> None:
    assert uv_settings(base(home) | {"PIP_NO_INDEX": "1"}, []).install_options == ("--no-index",)
    assert uv_settings(base(home) | {"PIP_NO_INDEX": "0"}, []).install_options == ()


@pytest.mark.parametrize(
    ("name", "pip_conf"),
    [
        ("UV_DEFAULT_INDEX", f"[global]\nindex-url = {INDEX}"),
        ("UV_INDEX_URL", f"[global]\nindex-url = {INDEX}"),
        ("UV_INDEX", f"[global]\nextra-index-url = {INDEX}"),
        ("UV_EXTRA_INDEX_URL", f"[global]\nextra-index-url = {INDEX}"),
        ("UV_FIND_LINKS", "[global]\nfind-links = /usr"),
        ("SSL_CERT_FILE", "[global]\ncert = /ca.pem"),
        ("https_proxy", "[global]\nproxy = http://p"),
    ],
)
def test_what_uv_was_told_itself_stays(home: Path, name: str, pip_conf: str) -> None:
    assert translated(home, pip_conf, **{name: "told"}) == {}
    assert uv_settings(base(home) | {name: "told"}, [home / "pip.conf"]).environ[name] == "told"


def test_where_uv_is_configured_pips_settings_are_not_for_it(home: Path) -> None:
    (home / ".config" / "uv").mkdir(parents=True)
    (home / ".config" / "uv" / "uv.toml").touch()

    assert translated(home, f"[global]\nindex-url = {INDEX}") == {}


def test_uv_reads_the_file_that_the_operator_names_or_else_the_users_and_no_other(home: Path) -> None:
    (home / ".config" / "uv").mkdir(parents=True)
    named, users = home / "named.toml", home / ".config" / "uv" / "uv.toml"
    none = uv_settings(base(home)).environ
    users.touch()

    by_default = uv_settings(base(home)).environ
    by_setting = uv_settings(base(home) | {"UV_CONFIG_FILE": "/other"}, config_file=str(named)).environ

    assert (none["UV_NO_CONFIG"], "UV_CONFIG_FILE" in none) == ("1", False)
    assert by_default["UV_CONFIG_FILE"] == str(users)
    assert by_setting["UV_CONFIG_FILE"] == str(named)


def test_what_decides_about_versions_is_part_of_the_identity_and_the_rest_is_not(home: Path) -> None:
    (home / "constraints").write_text("a<2")
    (home / "uv.toml").write_text("no-binary = true")

    def identity(config_file: str = "", **environ: str) -> tuple[str, ...]:
        return uv_settings(base(home) | environ, [], config_file).identity

    plain, constrained = identity(), identity(UV_CONSTRAINT=str(home / "constraints"))
    configured = identity(str(home / "uv.toml"))
    (home / "constraints").write_text("a<3")
    (home / "uv.toml").write_text("no-binary = false")

    assert plain == identity(UV_HTTP_TIMEOUT="9", UV_CACHE_DIR="/x", UV_INDEX_LAB_PASSWORD="secret")
    assert (
        identity(UV_INDEX=f"https://a:b@{INDEX[8:]}") == identity(UV_INDEX=f"https://c@{INDEX[8:]}") != plain
    )
    assert plain != constrained != identity(UV_CONSTRAINT=str(home / "constraints"))
    assert plain != configured != identity(str(home / "uv.toml"))


def test_paths_do_not_depend_on_the_directory_that_uv_runs_in(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    (home / "wheels").mkdir()
    (home / "constraints").touch()
    given = {"UV_FIND_LINKS": f"wheels,{INDEX}", "UV_CONSTRAINT": "constraints", "UV_INDEX": f"a={INDEX}"}

    found = uv_settings(base(home) | given, [])

    assert found.environ["UV_FIND_LINKS"] == f"{home}/wheels,{INDEX}"
    assert found.environ["UV_CONSTRAINT"] == f"{home}/constraints"
    assert set(found.places) == {home / "wheels", home / "constraints"}


def test_what_runs_code_of_packages_gets_no_credentials(home: Path) -> None:
    given = {
        "UV_INDEX": f"lab=https://me:hunter2@{INDEX[8:]}",
        "UV_INDEX_LAB_PASSWORD": "hunter2",
        "UV_INDEX_LAB_USERNAME": "hunter2",
        "NETRC": "/hunter2",
        "HTTPS_PROXY": "http://me:hunter2@proxy",
    }

    kept = uv_settings(base(home) | given, []).without_credentials()

    assert "hunter2" not in str(kept)
    assert (kept["UV_INDEX"], kept["HTTPS_PROXY"]) == (f"lab={INDEX}", "http://proxy")


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (f"{INDEX}?token=hunter2", INDEX),
        (f"lab={INDEX}?a=1&token=hunter2 {INDEX}", f"lab={INDEX} {INDEX}"),
        (f"{INDEX}?token=hunter2,/wheels,{INDEX}?hunter2", f"{INDEX},/wheels,{INDEX}"),
        (f"{INDEX}?token=a,hunter2", INDEX),
        (f"{INDEX},{INDEX}?token=hunter2", f"{INDEX},{INDEX}"),
        ("/wheels?", "/wheels?"),
    ],
)
def test_it_gets_no_query_of_a_url(value: str, kept: str, home: Path) -> None:
    settings = uv_settings(base(home) | {"UV_FIND_LINKS": value}, [])

    assert settings.without_credentials()["UV_FIND_LINKS"] == kept


def test_pips_files_are_looked_for_where_pip_looks(home: Path) -> None:
    (home / ".config" / "pip").mkdir(parents=True)
    (home / ".config" / "pip" / "pip.conf").write_text("[global]\nindex-url = https://user.example")
    (home / "chosen.conf").write_text(f"[global]\nindex-url = {INDEX}")

    by_default = uv_settings(base(home)).environ
    by_choice = uv_settings(base(home) | {"PIP_CONFIG_FILE": str(home / "chosen.conf")}).environ
    by_none = uv_settings(base(home) | {"PIP_CONFIG_FILE": "/dev/null"}).environ

    assert by_default["UV_DEFAULT_INDEX"] == "https://user.example"
    assert by_choice["UV_DEFAULT_INDEX"] == INDEX
    assert "UV_DEFAULT_INDEX" not in by_none


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fetch https://user:pass@h/x failed", "fetch https://****@h/x failed"),
        ("fetch (https://token@h/x)", "fetch (https://****@h/x)"),
        ("url (https://h/x.whl?sig=abc&e=1)", "url (https://h/x.whl?****)"),
        ("a@b.example and 1 < 2?", "a@b.example and 1 < 2?"),
        ("https://h/x#sha256=abc", "https://h/x#sha256=abc"),
    ],
)
def test_credentials_in_urls_are_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


def test_secrets_are_masked_wherever_they_turn_up(home: Path) -> None:
    given = base(home) | {
        "UV_INDEX": "private=https://user:p%40ssword@h/simple https://tokentoken@h/simple",
        "UV_INDEX_PRIVATE_PASSWORD": "swordfish",
    }
    secrets = uv_settings(given, []).secrets

    assert masked("tokentoken p@ssword p%40ssword swordfish user", secrets) == "**** **** **** **** user"


def test_settings_do_not_show_their_secrets(home: Path) -> None:
    settings = uv_settings(base(home) | {"UV_INDEX_PRIVATE_PASSWORD": "swordfish"}, [])

    assert "swordfish" not in repr(settings)
