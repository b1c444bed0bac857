"""What a confinement allows, and what the filter of system calls returns, without a kernel."""

import re
import struct
import sys
import threading
from pathlib import Path

import pytest

from services.executor.isolation import sandbox
from services.executor.isolation.common import confine, seccomp
from services.executor.isolation.sandbox import Bubblewrap, Confinement, Landlock, Sandbox, Unavailable
from shared.errors import SandboxUnavailableError

EPERM, ENOSYS, ALLOW, KILL = seccomp.EPERM, seccomp.ENOSYS, seccomp.ALLOW, seccomp.KILL
MACHINES = list(seccomp.MACHINES)
TABLE = {**seccomp.METADATA, **seccomp.ALWAYS, **seccomp.CONDITIONAL}
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def judged(
    machine: str, number: int, *arguments: int, audited_as: int = 0, network: bool = True, abi: int = 6
) -> int:
    """What the filter returns for a call: an interpreter of the part of classic BPF that it uses."""
    code = seccomp.program(machine, network=network, landlock_abi=abi)
    return executed(code, number, *arguments, audited_as=audited_as or seccomp.MACHINES[machine][1])


def executed(code: bytes, number: int, *arguments: int, audited_as: int) -> int:
    """What a filter's program returns for a call."""
    data = struct.pack("<IIQ6Q", number, audited_as, 0, *arguments, *[0] * (6 - len(arguments)))
    instructions = list(struct.iter_unpack("<HBBI", code))
    at, accumulator = 0, 0
    while True:
        operation, if_true, if_false, value = instructions[at]
        at += 1
        if operation == 0x06:
            return int(value)
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif operation == 0x54:
            accumulator &= value
        else:
            holds = {0x15: accumulator == value, 0x25: accumulator > value}[operation]
            at += if_true if holds else if_false


def number_of(machine: str, name: str) -> int:
    number = TABLE[name][seccomp.MACHINES[machine][0]]
    assert number is not None
    return number


# -- the filter ------------------------------------------------------------------------


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_of_level_process_refuses_only_what_changes_other_processes(machine: str) -> None:
    column, audited_as = seccomp.MACHINES[machine]
    code = seccomp.separation(machine)
    named = {
        # 1 is another process, and for ioprio_set 1 means "a process" and 0 the caller.
        name: (executed(code, pair[column] or 0, *arguments, audited_as=audited_as))
        for name, pair in TABLE.items()
        for arguments in [(1, 1) if name != "ioprio_set" else (1, 77)]
        if pair[column] is not None
    }
    own = {
        executed(code, number_of(machine, name), int(name == "ioprio_set"), 0, audited_as=audited_as)
        for name in seccomp.SEPARATING
    }

    refused = {*seccomp.SEPARATING, *seccomp.KEYRINGS}
    assert {name for name, answer in named.items() if answer == EPERM} == refused
    assert set(named.values()) == {EPERM, ALLOW}
    assert own == {ALLOW}
    assert executed(code, 20, audited_as=0x40000003) == KILL
    assert executed(code, 0x40000000 + 302, 1, audited_as=audited_as) == ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_that_reach_around_landlock_are_refused(machine: str) -> None:
    column = seccomp.MACHINES[machine][0]
    numbers = [pair[column] for pair in {**seccomp.ALWAYS, **seccomp.METADATA}.values()]

    answers = {judged(machine, number) for number in numbers if number is not None}

    assert answers == {EPERM}


@pytest.mark.parametrize(("machine", "reading"), [("x86_64", 0), ("aarch64", 63)])
def test_ordinary_calls_pass(machine: str, reading: int) -> None:
    assert judged(machine, reading, 3, 0, 100) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_another_machine_is_ended(machine: str) -> None:
    assert judged(machine, 20, audited_as=0x40000003) == KILL


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("number", [seccomp.LAST_KNOWN + 1, 0x40000000 + 41, 2**32 - 1])
def test_a_call_that_the_table_does_not_know_does_not_exist(machine: str, number: int) -> None:
    assert judged(machine, number) == ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        ("socket", (2, 1, 0), ALLOW),
        ("socket", (10, 2, 0), ALLOW),
        ("socket", (16, 3, 0), ALLOW),
        ("socket", (16, 3, 4), EPERM),
        ("socket", (1, 1, 0), EPERM),
        ("socket", (17, 3, 0), EPERM),
        ("socketpair", (1, 1 | 0o2000000, 0), ALLOW),
        ("socketpair", (1, 5, 0), ALLOW),
        ("socketpair", (1, 2, 0), EPERM),
        ("socketpair", (1, 3, 0), EPERM),
        ("socketpair", (30, 1, 0), EPERM),
        ("clone", (17,), ALLOW),
        ("clone", (17 | 0x10000000,), EPERM),
        ("clone", (17 | 0x00020000,), EPERM),
        ("clone3", (0, 88), ENOSYS),
        ("ioctl", (3, 0x5401), ALLOW),
        ("ioctl", (3, 0x541B), ALLOW),
        ("ioctl", (3, 0x40086602), EPERM),
        ("ioctl", (3, 0x5000940E), EPERM),
        ("ioctl", (0, 0x5412), EPERM),
        ("prlimit64", (0, 7), ALLOW),
        ("prlimit64", (1234, 7), EPERM),
        ("setpriority", (0, 0, 5), ALLOW),
        ("setpriority", (0, 1234, 5), EPERM),
        ("setpriority", (2, 0, 5), EPERM),
        ("personality", (0xFFFFFFFF,), ALLOW),
        ("personality", (0x0040000,), EPERM),
        ("openat2", (3,), ALLOW),
        ("truncate", (0,), ALLOW),
    ],
)
def test_some_calls_depend_on_their_arguments(
    machine: str, name: str, arguments: tuple[int, ...], answer: int
) -> None:
    assert judged(machine, number_of(machine, name), *arguments) == answer


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("family", [1, 2, 10, 16, 17, 40])
def test_without_network_there_is_no_socket_of_any_family(machine: str, family: int) -> None:
    assert judged(machine, number_of(machine, "socket"), family, 1, 0, network=False) == EPERM


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("abi", [1, 2])
def test_what_old_versions_of_landlock_do_not_see_the_filter_sees(machine: str, abi: int) -> None:
    opening = number_of(machine, "openat")

    assert judged(machine, number_of(machine, "truncate"), abi=abi) == EPERM
    assert judged(machine, number_of(machine, "openat2"), abi=abi) == ENOSYS
    assert judged(machine, opening, 3, 0, 0o2001000, abi=abi) == EPERM
    assert judged(machine, opening, 3, 0, 0o2001001, abi=abi) == ALLOW
    assert judged(machine, opening, 3, 0, 0o2000000, abi=abi) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_read_only_mounts_let_a_tool_change_modes_in_its_own_place(machine: str) -> None:
    assert judged(machine, number_of(machine, "fchmodat"), abi=0) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_the_table_agrees_with_the_kernels_headers(machine: str) -> None:
    header = HEADERS[machine]
    if not header.exists():
        pytest.skip(f"{header} is not installed")
    text = header.read_text()
    known = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text))
    column = seccomp.MACHINES[machine][0]

    wrong = {
        name: (pair[column], known[name])
        for name, pair in TABLE.items()
        if name in known and pair[column] != int(known[name])
    }

    assert wrong == {}
    assert len([name for name in TABLE if name in known]) > 90


# -- the child's side ------------------------------------------------------------------


def test_off_leaves_the_process_as_it_is() -> None:
    before = Path("/proc/self/status").read_text().split("CapEff:")[1]

    confine.apply({"level": "off"})

    assert Path("/proc/self/status").read_text().split("CapEff:")[1][:17] == before[:17]


def test_a_process_with_threads_is_not_confined_by_halves() -> None:
    enough = threading.Event()
    thread = threading.Thread(target=enough.wait)
    thread.start()

    with pytest.raises(confine.NotConfined, match="threads already"):
        confine.apply({"level": "files", "readable": [], "writable": [], "network": True, "landlock_abi": 1})
    enough.set()
    thread.join()


# -- the parent's side -----------------------------------------------------------------


def confinement(tmp_path: Path, level: Sandbox = Sandbox.FILES, **options: object) -> Confinement:
    given: dict[str, object] = {
        "prefixes": [],
        "tools": tmp_path,
        "temp": tmp_path / "temp",
        "kind": Landlock(6),
    }
    return sandbox.confinement(level, **{**given, **options})  # type: ignore[arg-type]


def test_a_tool_reads_its_folders_and_writes_its_temp_directory(tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    environment.mkdir()

    allowed = confinement(tmp_path, environment=environment, also=[Path("/usr/bin")])

    assert allowed.readable[:3] == (tmp_path, environment, Path("/usr/bin"))
    assert allowed.writable == (tmp_path / "temp",)


def test_places_are_found_from_any_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    monkeypatch.chdir(tmp_path)

    allowed = confinement(Path(), tools=Path("tools"))

    assert allowed.readable[0] == tmp_path / "tools"
    assert all(path.is_absolute() for path in (*allowed.readable, *allowed.writable))


@pytest.mark.parametrize(("level", "network"), [(Sandbox.FILES, True), (Sandbox.FILES_AND_NETWORK, False)])
def test_the_level_decides_about_the_network(tmp_path: Path, level: Sandbox, network: bool) -> None:
    allowed = confinement(tmp_path, level)

    assert allowed.to_json()["network"] is network
    assert allowed.to_json()["level"] == str(level)
    assert allowed.to_json()["landlock_abi"] == 6


@pytest.mark.parametrize(
    "place", ["/etc", "/", "/etc/passwd", "/etc/ssl", "/proc", "/usr", "/usr/bin", "/tmp", "/root"]
)
def test_what_belongs_to_somebody_is_not_among_what_any_program_needs(tmp_path: Path, place: str) -> None:
    allowed = confinement(tmp_path, prefixes=[Path("/usr"), Path("/usr/local"), Path("/")])

    assert Path(place) not in allowed.readable


def test_a_project_that_is_a_virtual_environment_keeps_its_secrets(tmp_path: Path) -> None:
    for folder in ("bin", "lib", "services"):
        (tmp_path / "project" / folder).mkdir(parents=True)
    (tmp_path / "project" / ".env").touch()

    allowed = confinement(tmp_path / "elsewhere", prefixes=[tmp_path / "project"])

    readable = {path for path in allowed.readable if path.is_relative_to(tmp_path / "project")}
    assert readable == {tmp_path / "project" / "bin", tmp_path / "project" / "lib"}


def test_an_interpreter_is_found_below_its_virtual_environment(tmp_path: Path) -> None:
    base = tmp_path / "python" / "bin"
    base.mkdir(parents=True)
    (base / "python3.12").touch()
    (base / "python").symlink_to("python3.12")
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(base / "python")
    (tmp_path / "venv" / "pyvenv.cfg").write_text(f"include-system-site-packages = false\nhome = {base}\n")

    prefixes = sandbox.prefixes_of(tmp_path / "venv" / "bin" / "python")

    assert prefixes == (tmp_path / "venv", tmp_path / "python")


def test_this_interpreters_prefixes_are_the_ones_it_names() -> None:
    assert {Path(sys.prefix), Path(sys.base_prefix)} <= set(sandbox.prefixes_of(Path(sys.executable)))


def test_certificates_that_the_environment_names_are_readable(tmp_path: Path) -> None:
    (tmp_path / "company.pem").touch()
    environ = {"SSL_CERT_FILE": str(tmp_path / "company.pem"), "SSL_CERT_DIR": "", "OTHER": "/etc/shadow"}

    readable = _readable(tmp_path, environ)

    assert [path for path in readable if path.is_relative_to(tmp_path)] == [
        tmp_path / "tools",
        tmp_path / "company.pem",
    ]


def _readable(tmp_path: Path, environ: dict[str, str]) -> tuple[Path, ...]:
    (tmp_path / "tools").mkdir()
    if isinstance(sandbox.detect(), Unavailable):
        pytest.skip("nothing here can confine a process")
    file, python = tmp_path / "tools" / "tool.py", Path(sys.executable)
    return sandbox.of_tool(
        Sandbox.FILES, file=file, python=python, temp=tmp_path / "temp", environ=environ
    ).readable


@pytest.mark.parametrize(
    ("wishes", "level"),
    [
        ((), Sandbox.PROCESS),
        ((Sandbox.OFF, None), Sandbox.OFF),
        ((Sandbox.PROCESS, Sandbox.OFF), Sandbox.PROCESS),
        ((Sandbox.FILES, None), Sandbox.FILES),
        ((Sandbox.FILES, Sandbox.OFF), Sandbox.FILES),
        ((Sandbox.FILES, Sandbox.FILES_AND_NETWORK), Sandbox.FILES_AND_NETWORK),
    ],
)
def test_the_strictest_wish_counts(wishes: tuple[Sandbox | None, ...], level: Sandbox) -> None:
    assert sandbox.stricter(*wishes) is level


@pytest.mark.parametrize(("version", "kind"), [(0, Unavailable), (1, Unavailable), (2, Landlock)])
def test_processes_are_separated_as_far_as_the_kernel_can(version: int, kind: type) -> None:
    allowed = sandbox.of_processes(("net_raw",), version)

    assert isinstance(allowed.kind, kind)
    assert allowed.to_json()["capabilities"] == ["net_raw"]


@pytest.mark.parametrize(
    ("version", "said"),
    [(0, "read the memory"), (1, "read the memory"), (2, "send signals"), (5, "send signals"), (6, "^$")],
)
def test_what_an_old_kernel_does_not_protect_is_said(version: int, said: str) -> None:
    assert re.search(said, sandbox.unprotected(version, filters=True))


def test_that_calls_cannot_be_filtered_is_said() -> None:
    assert sandbox.unprotected(6, filters=False).startswith("system calls can't be filtered")
    assert re.search("send signals.*; system calls can't be filtered", sandbox.unprotected(5, filters=False))


def test_the_error_where_nothing_can_confine_says_what_to_do(tmp_path: Path) -> None:
    missing = "the kernel has no Landlock, and bubblewrap is not installed"

    with pytest.raises(SandboxUnavailableError, match=f"'files'.*{missing}.*or set the sandbox to 'process'"):
        confinement(tmp_path, kind=Unavailable(missing))


# -- detecting -------------------------------------------------------------------------


def test_nothing_is_found_on_a_machine_with_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    found = sandbox.best_kind(0, filters=True)

    assert found == Unavailable("the kernel has no Landlock, and bubblewrap is not installed")


@pytest.mark.parametrize("works", [True, False])
def test_bubblewrap_is_used_if_it_can_create_namespaces(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, works: bool
) -> None:
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\n" + ("exit 0\n" if works else "echo No permissions >&2; exit 1\n"))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    found = sandbox.best_kind(0, filters=True)

    problem = f"the kernel has no Landlock, and {program} can't be used: No permissions"
    assert found == (Bubblewrap(program) if works else Unavailable(problem))


def test_landlock_is_not_used_on_a_machine_whose_calls_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    found = sandbox.best_kind(6, filters=seccomp.is_supported("s390x"))

    assert isinstance(found, Unavailable)
    assert "filters for system calls" in found.reason


# -- bubblewrap ------------------------------------------------------------------------


def test_landlock_needs_no_command(tmp_path: Path) -> None:
    assert sandbox.command(confinement(tmp_path)) == []


def test_bubblewrap_mounts_what_is_readable_before_what_is_writable(tmp_path: Path) -> None:
    (tmp_path / "temp").mkdir()

    command = sandbox.command(confinement(tmp_path, kind=Bubblewrap(Path("/usr/bin/bwrap"))))

    readable = command.index(str(tmp_path))
    assert command[0] == "/usr/bin/bwrap"
    assert command[readable - 1] == "--ro-bind"
    assert command.index("--bind") > readable
    assert command[-3:] == ["--remount-ro", "/", "--"]


@pytest.mark.parametrize(("level", "shared"), [(Sandbox.FILES, True), (Sandbox.FILES_AND_NETWORK, False)])
def test_bubblewrap_shares_the_network_only_if_it_is_allowed(
    tmp_path: Path, level: Sandbox, shared: bool
) -> None:
    command = sandbox.command(confinement(tmp_path, level, kind=Bubblewrap(Path("/usr/bin/bwrap"))))

    assert ("--share-net" in command) is shared
