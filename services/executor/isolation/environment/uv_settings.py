"""The settings for uv: its own, or pip's, translated.

uv reads one configuration file, which the operator names; by default, the user's or else the system's
uv.toml.  It reads none in the directory that the service was started in, nor above it.  uv reads neither
pip.conf nor PIP_*.  So unless there is a file for uv, pip's settings are translated (see
https://docs.astral.sh/uv/pip/compatibility/ for the differences).
"""

import configparser
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

MASK = "****"
MIN_SECRET_CHARACTERS = 4
_PASSED = {
    "HOME", "PATH", "TMPDIR", "LANG", "NETRC",
    "XDG_CACHE_HOME", "XDG_CONFIG_DIRS", "XDG_CONFIG_HOME", "XDG_DATA_HOME",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "SSL_CLIENT_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "http_proxy", "https_proxy", "all_proxy", "no_proxy",
}  # fmt: skip
# The executor decides which environment is built with which interpreter.
_NOT_PASSED = re.compile(r"UV_(PYTHON|SYSTEM_PYTHON|PROJECT.*|PUBLISH_.*|VENV_.*|WORKING_DIR.*)")
# These change how packages are reached, not which ones are installed.
_INDIFFERENT = re.compile(
    r"UV_(CACHE_DIR|NO_CACHE|HTTP_.*|REQUEST_TIMEOUT|CONCURRENT_.*|NO_PROGRESS|LINK_MODE|OFFLINE|PYTHON_.*"
    r"|NATIVE_TLS|SYSTEM_CERTS|INSECURE_HOST|KEYRING_.*|COMPILE_.*|CONFIG_FILE|NO_CONFIG|TOOL_.*|LOG_.*)"
)
_OF_FILES = {"UV_CONSTRAINT", "UV_OVERRIDE", "UV_EXCLUDE", "UV_BUILD_CONSTRAINT"}
_OF_PLACES = {
    "UV_FIND_LINKS",
    "UV_INDEX",
    "UV_DEFAULT_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    *_OF_FILES,
}
_CREDENTIALS = re.compile(r"NETRC|UV_KEYRING_.*|SSL_CLIENT_CERT|UV_INDEX_\w+_(USERNAME|PASSWORD)|PIP_.*")
_OURS = {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1", "NO_COLOR": "1"}
_SECRET_NAME = re.compile(r"PASSWORD|TOKEN|SECRET|CREDENTIAL")
_USER_IN_URL = re.compile(r"(?<=://)[^/\s@'\"`]+@")
# In a variable, a comma ends a URL only if another URL or path follows: a token may contain one.
_QUERY_IN_VARIABLE = re.compile(r"(://[^\s?]*)\?(?:(?!,[^\s,]*://|,/)\S)*")
_QUERY_OF_URL = re.compile(r"(://[^\s?'\"`()]+\?)[^\s'\"`()]+")


@dataclass(frozen=True, slots=True)
class UvSettings:
    """What each call of uv gets.

    Attributes:
        environ: its environment variables.
        install_options: for `uv pip install`.
        secrets: what no message may show.
        config_file: the only configuration file that uv reads.
        identity: all of this that decides which packages are installed, without credentials.
        places: the local directories and files among it.
    """

    environ: Mapping[str, str] = field(repr=False)
    install_options: tuple[str, ...] = ()
    secrets: tuple[str, ...] = field(default=(), repr=False)
    config_file: Path | None = None
    identity: tuple[str, ...] = ()
    places: tuple[Path, ...] = ()

    def without_credentials(self) -> dict[str, str]:
        """The variables for a call that runs code of packages, which could read them."""
        kept = {name: value for name, value in self.environ.items() if not _is_credential(name)}
        return {
            name: _QUERY_IN_VARIABLE.sub(r"\1", _USER_IN_URL.sub("", value)) for name, value in kept.items()
        }


def uv_settings(
    environ: Mapping[str, str], pip_files: Iterable[Path] | None = None, config_file: str = ""
) -> UvSettings:
    """The settings for a service with the environment `environ`.

    Args:
        environ: environment variables.
        pip_files: pip's configuration files in rising precedence; by default, those that pip reads.
        config_file: the configuration file for uv; by default, the user's or the system's.
    """
    passed = {name: _absolute(name, value) for name, value in environ.items() if _is_passed(name)}
    options: tuple[str, ...] = ()
    chosen = _config_file(environ, config_file)
    if chosen is None:
        pip = _pip_options(environ, _pip_files(environ) if pip_files is None else pip_files)
        translated, options = _translated(pip, passed)
        passed = translated | passed
    passed |= {"UV_NO_CONFIG": "1"} if chosen is None else {"UV_CONFIG_FILE": str(chosen)}
    places = [place for name in sorted(_OF_PLACES & passed.keys()) for place in _places(passed[name])]
    return UvSettings(
        passed | _OURS,
        options,
        tuple(_secrets(passed)),
        chosen,
        _identity(passed, options, chosen),
        tuple(places),
    )


def masked(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without the credentials and queries of URLs, and without `secrets`."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    return _QUERY_OF_URL.sub(rf"\1{MASK}", _USER_IN_URL.sub(f"{MASK}@", text))


def _is_passed(name: str) -> bool:
    return name in _PASSED or (name.startswith(("UV_", "PIP_")) and not _NOT_PASSED.fullmatch(name))


def _is_credential(name: str) -> bool:
    return bool(_CREDENTIALS.fullmatch(name) or _SECRET_NAME.search(name))


def _absolute(name: str, value: str) -> str:
    """A variable's value with absolute paths: uv doesn't run in this directory."""
    if name not in {*_OF_PLACES, "UV_CACHE_DIR", "NETRC", "SSL_CERT_FILE", "SSL_CERT_DIR", "SSL_CLIENT_CERT"}:
        return value
    parts = re.split(r"([\s,]+)", value)
    return "".join(str(Path(one).absolute()) if _is_path(one) else one for one in parts)


def _is_path(text: str) -> bool:
    return bool(text.strip(" ,")) and "://" not in text and "=" not in text and Path(text).exists()


def _places(value: str) -> Iterable[Path]:
    for word in re.split(r"[\s,]+", value):
        text = word.rpartition("=")[2] if "=" in word.partition("://")[0] else word
        path = unquote(text.removeprefix("file://")) if text.startswith("file://") else text
        if path and "://" not in path and Path(path).exists():
            yield Path(path)


def _identity(passed: Mapping[str, str], options: Iterable[str], config_file: Path | None) -> tuple[str, ...]:
    """What decides which packages are installed; a file counts by its content."""
    found = [*options, _content(config_file) if config_file else ""]
    for name, value in sorted(passed.items()):
        if name.startswith("UV_") and not _INDIFFERENT.fullmatch(name) and not _is_credential(name):
            contents = [_content(place) for place in _places(value)] if name in _OF_FILES else []
            found.append(" ".join([f"{name}={masked(value)}", *contents]))
    return tuple(found)


def _content(file: Path) -> str:
    try:
        return hashlib.sha256(masked(file.read_text(errors="replace")).encode()).hexdigest()
    except OSError:
        return str(file)


def _secrets(environ: Mapping[str, str]) -> list[str]:
    found: set[str] = set()
    for name, value in environ.items():
        if _SECRET_NAME.search(name):
            found.add(value)
        for word in re.split(r"[\s,]+", value):
            user = _USER_IN_URL.search(word)
            if user:
                name_and_password = user[0][:-1]
                found.update((name_and_password, name_and_password.partition(":")[2] or name_and_password))
    found |= {unquote(secret) for secret in found}
    return sorted((secret for secret in found if len(secret) >= MIN_SECRET_CHARACTERS), key=len, reverse=True)


# -- pip's settings -------------------------------------------------------------------


def _config_file(environ: Mapping[str, str], chosen: str) -> Path | None:
    """The configuration file that uv reads.  If there is one, pip's settings are not translated."""
    chosen = chosen or environ.get("UV_CONFIG_FILE", "")
    if chosen:
        return Path(chosen).absolute()
    system = environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")
    folders = [_config_home(environ), *map(Path, system), Path("/etc")]
    return next((file for folder in folders if (file := folder / "uv" / "uv.toml").is_file()), None)


def _config_home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "/nonexistent")) / ".config")


def _pip_files(environ: Mapping[str, str]) -> list[Path]:
    """The files that pip reads, in rising precedence (https://pip.pypa.io/en/stable/topics/configuration/)."""
    chosen = environ.get("PIP_CONFIG_FILE", "")
    if chosen == os.devnull:
        return []
    system = [
        Path(folder) / "pip" / "pip.conf" for folder in environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")
    ]
    user = [
        Path(environ.get("HOME", "/nonexistent")) / ".pip" / "pip.conf",
        _config_home(environ) / "pip" / "pip.conf",
    ]
    site = [Path(sys.prefix) / "pip.conf"]
    return [*system, Path("/etc/pip.conf"), *user, *site, *([Path(chosen)] if chosen else [])]


def _pip_options(environ: Mapping[str, str], files: Iterable[Path]) -> dict[str, str]:
    """pip's options: [global] and [install] in its files, overridden by PIP_*."""
    parser = configparser.RawConfigParser(strict=False)
    for file in files:
        try:
            parser.read(file, encoding="utf-8")
        except (OSError, configparser.Error, UnicodeDecodeError):
            continue
    options: dict[str, str] = {}
    for section in ("global", "install"):
        if parser.has_section(section):
            options |= {name.replace("_", "-").lower(): value for name, value in parser.items(section)}
    for name, value in environ.items():
        if name.startswith("PIP_") and value:
            options[name.removeprefix("PIP_").replace("_", "-").lower()] = value
    return options


def _translated(pip: Mapping[str, str], own: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """pip's options as variables for uv and options of `uv pip install`.  Variables that uv has stay."""
    found: dict[str, str] = {}
    if "index-url" in pip and "UV_INDEX_URL" not in own:
        found["UV_DEFAULT_INDEX"] = pip["index-url"].strip()
    if pip.get("extra-index-url", "").split() and not {"UV_INDEX", "UV_EXTRA_INDEX_URL"} & own.keys():
        found["UV_INDEX"] = " ".join(pip["extra-index-url"].split())
        # pip treats all indexes as one, and its users rely on that.
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    places = [place for place in pip.get("find-links", "").split() if "://" in place or Path(place).exists()]
    if places:
        found["UV_FIND_LINKS"] = ",".join(places)
    if pip.get("trusted-host", "").split():
        found["UV_INSECURE_HOST"] = " ".join(pip["trusted-host"].split())
    if "cert" in pip:
        found["SSL_CERT_FILE"] = pip["cert"]
    if "proxy" in pip and not any(name.lower() in ("https_proxy", "all_proxy") for name in own):
        found["HTTP_PROXY"] = found["HTTPS_PROXY"] = pip["proxy"]
    seconds = pip.get("timeout") or pip.get("default-timeout")
    if seconds:
        found["UV_HTTP_TIMEOUT"] = seconds
    no_index = pip.get("no-index", "").lower() in ("1", "true", "yes", "on")
    return found, ("--no-index",) if no_index else ()
