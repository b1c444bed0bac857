"""Tries everything that confinement forbids, from inside a confined process.

Run by path, `python sandbox_attempts.py REQUEST`; prints a JSON object of what
came of each attempt: "done", or the name of the error.  Standard library only.
The arguments are harmless where an attempt succeeds, because the same attempts
are made without confinement, to prove that it is confinement which stops them.
"""
# What is tried here are system calls, by their names.
# ruff: noqa: PTH101, PTH102, PTH104, PTH106, PTH108, PTH109, PTH119, PTH123, PTH208, PTH211

import ctypes
import errno
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

Attempt = Callable[[Any], object]
libc = ctypes.CDLL(None, use_errno=True)
NULL = ctypes.c_void_p()
ARM = os.uname().machine == "aarch64"
CLONE_NEWUSER, CLONE_NEWUTS, CLONE_NEWNS = 0x10000000, 0x04000000, 0x00020000
PTRACE_SEIZE, FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x4206, 0x80086601, 0x40086602
ADDR_NO_RANDOMIZE = 0x0040000


def call(function: str, *arguments: Any) -> int:
    """Call the C library; raise OSError if the call fails."""
    result: int = getattr(libc, function)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), function)
    return result


def syscall(number: int, *arguments: Any) -> int:
    """A system call that the C library may lack."""
    return call("syscall", ctypes.c_long(number), *arguments)


def opened(path: str, flags: int = os.O_RDONLY) -> None:
    """Open and close a file; for reading, read a little as well."""
    descriptor = os.open(path, flags, 0o600)
    if flags == os.O_RDONLY and not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.read(descriptor, 1)
    os.close(descriptor)


def linked_read(t: Any) -> None:
    os.symlink(t.secret, t.temp + "/pointer")
    opened(t.temp + "/pointer")


def reopened(t: Any) -> None:
    opened(f"/proc/self/fd/{os.open(t.secret, os.O_PATH)}")


def relative_read(t: Any) -> None:
    here = os.getcwd()
    os.chdir(t.outside)
    try:
        opened(os.path.basename(t.secret))
    finally:
        os.chdir(here)


def renamed_in(t: Any) -> None:
    os.rename(t.secret, t.temp + "/stolen")
    os.rename(t.temp + "/stolen", t.secret)


def renamed_out(t: Any) -> None:
    opened(t.temp + "/mine", os.O_WRONLY | os.O_CREAT)
    os.rename(t.temp + "/mine", t.outside + "/mine")


def temp_moved(t: Any) -> None:
    os.rename(t.temp, t.outside + "/moved")
    os.rename(t.outside + "/moved", t.temp)


def created_in_shared_memory(t: Any) -> None:
    name = f"/dev/shm/fullsend-attempt-{os.getpid()}"
    opened(name, os.O_RDWR | os.O_CREAT)
    os.unlink(name)


def changed_through_descriptor(change: Callable[[int], object]) -> Attempt:
    def attempt(t: Any) -> None:
        descriptor = os.open(t.readable, os.O_RDONLY)
        try:
            change(descriptor)
        finally:
            os.close(descriptor)

    return attempt


def same_flags(descriptor: int) -> None:
    flags = bytearray(8)
    fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, flags)
    fcntl.ioctl(descriptor, FS_IOC_SETFLAGS, flags)


FILES: dict[str, Attempt] = {
    "read a secret": lambda t: opened(t.secret),
    "read a secret by a link": linked_read,
    "read a secret by a relative path": relative_read,
    "read a secret by reopening its place": reopened,
    "read a secret by /proc/self/root": lambda t: opened("/proc/self/root" + t.secret),
    "read the service's .env": lambda t: opened(t.outside + "/.env"),
    "read /etc/shadow": lambda t: opened("/etc/shadow"),
    "read /etc/passwd": lambda t: opened("/etc/passwd"),
    "read the keys of certificates": lambda t: opened("/etc/ssl/private"),
    "list the outside": lambda t: os.listdir(t.outside),
    "list the home": lambda t: os.listdir(t.home),
    "list /": lambda t: os.listdir("/"),
    "list /tmp": lambda t: os.listdir("/tmp"),
    "create": lambda t: opened(t.outside + "/new", os.O_WRONLY | os.O_CREAT),
    "create in the tools folder": lambda t: opened(t.readable + ".new", os.O_WRONLY | os.O_CREAT),
    "create in /dev/shm": created_in_shared_memory,
    "append": lambda t: opened(t.secret, os.O_WRONLY | os.O_APPEND),
    "append to a tool": lambda t: opened(t.readable, os.O_WRONLY | os.O_APPEND),
    "make a folder": lambda t: os.mkdir(t.outside + "/made"),
    "make a pipe": lambda t: os.mkfifo(t.outside + "/pipe"),
    "make a symbolic link": lambda t: os.symlink("/etc", t.outside + "/link"),
    "link a secret into the temp directory": lambda t: os.link(t.secret, t.temp + "/linked"),
    "rename in": renamed_in,
    "rename out": renamed_out,
    "move the temp directory itself": temp_moved,
    "make a disk": lambda t: os.mknod(t.temp + "/disk", stat.S_IFBLK | 0o600, os.makedev(7, 0)),
    "make a terminal": lambda t: os.mknod(t.temp + "/tty", stat.S_IFCHR | 0o600, os.makedev(1, 1)),
    "change a mode": lambda t: os.chmod(t.secret, 0o777),
    "change an owner": lambda t: os.chown(t.secret, os.getuid(), os.getgid()),
    "change times": lambda t: os.utime(t.secret, (0, 0)),
    "set an attribute": lambda t: os.setxattr(t.secret, "user.attempt", b"1"),
    "change a tool's mode": changed_through_descriptor(lambda place: os.fchmod(place, 0o777)),
    "change a tool's owner": changed_through_descriptor(lambda place: os.fchown(place, os.getuid(), -1)),
    "change a tool's times": changed_through_descriptor(lambda place: os.utime(place, (0, 0))),
    "change a tool's flags": changed_through_descriptor(same_flags),
    "watch the outside": lambda t: call(
        "inotify_add_watch", call("inotify_init1", 0), t.outside.encode(), ctypes.c_uint(0x100)
    ),
    "open by handle": lambda t: call("open_by_handle_at", -1, ctypes.create_string_buffer(64), 0),
    "run a shell": lambda t: subprocess.run(["/bin/sh", "-c", "exit 0"], check=True),
    "open the kernel's log": lambda t: opened("/dev/kmsg", os.O_WRONLY),
    "open a terminal": lambda t: os.openpty(),
    "open the kernel's memory": lambda t: opened("/proc/kcore"),
    "open a kernel setting for writing": lambda t: opened("/proc/sys/kernel/hostname", os.O_WRONLY),
    "open the system request key": lambda t: opened("/proc/sysrq-trigger", os.O_WRONLY),
    "truncate": lambda t: os.truncate(t.secret, 0),
    "truncate a tool": lambda t: os.truncate(t.readable, 0),
    "truncate a tool while opening": lambda t: opened(t.readable, os.O_RDONLY | os.O_TRUNC),
    "remove": lambda t: os.unlink(t.secret),
    "remove a tool": lambda t: os.unlink(t.readable),
    "remove a folder": lambda t: os.rmdir(t.outside + "/folder"),
}


def of_process(place: str, flags: int = os.O_RDONLY) -> dict[str, Attempt]:
    """The same for the parent and for an unrelated process."""
    return {
        f"open {place} of the parent": lambda t: opened(f"/proc/{t.parent}/{place}", flags),
        f"open {place} of a neighbour": lambda t: opened(f"/proc/{t.neighbour}/{place}", flags),
    }


PROCESSES: dict[str, Attempt] = {
    **of_process("environ"),
    **of_process("cmdline"),
    **of_process("maps"),
    **of_process("mem"),
    **of_process("fd"),
    **of_process("task"),
    **of_process("oom_score_adj", os.O_WRONLY),
    "read a secret by the parent's root": lambda t: opened(f"/proc/{t.parent}/root{t.secret}"),
    "list the parent's folder": lambda t: os.listdir(f"/proc/{t.parent}/cwd"),
    "trace": lambda t: call("ptrace", PTRACE_SEIZE, t.neighbour, NULL, NULL),
    "read memory": lambda t: call(
        "process_vm_readv", t.neighbour, struct.pack("=QQ", 4096, 8), 1, struct.pack("=QQ", 4096, 8), 1, 0
    ),
    "take a descriptor": lambda t: syscall(438, os.pidfd_open(t.neighbour), 0, 0),
    "limit": lambda t: resource.prlimit(t.neighbour, resource.RLIMIT_CORE),
    "renice": lambda t: os.setpriority(os.PRIO_PROCESS, t.neighbour, 0),
    "pin to a processor": lambda t: os.sched_setaffinity(t.neighbour, range(os.cpu_count() or 1)),
    "enter namespaces": lambda t: call("setns", os.pidfd_open(t.neighbour), CLONE_NEWUTS),
    "become another user": lambda t: os.setuid(12345),
    "go first": lambda t: os.nice(-1),
    "make a user namespace": lambda t: call("unshare", CLONE_NEWUSER),
    "make a file system namespace": lambda t: call("unshare", CLONE_NEWNS),
    "fork into a user namespace": lambda t: forked_into(CLONE_NEWUSER),
    "mount": lambda t: call("mount", b"none", t.outside.encode(), b"no-such-kind", 0, NULL),
    "unmount": lambda t: call("umount2", t.outside.encode(), 0),
    "change the root": lambda t: os.chroot(t.temp),
    "clone a mount": lambda t: syscall(428, -1, b"/no/such/place", 0),
    "change the personality": lambda t: call("personality", ctypes.c_ulong(ADDR_NO_RANDOMIZE)),
    "use the kernel's keys": lambda t: syscall(219 if ARM else 250, 0, -3, 0),
    "load a module": lambda t: syscall(105 if ARM else 175, NULL, 0, b""),
    "load a program into the kernel": lambda t: syscall(280 if ARM else 321, 0, NULL, 0),
    "handle faults": lambda t: syscall(282 if ARM else 323, 0),
    "share memory": lambda t: call("shmget", 0, 0, 0),
    "open a message queue": lambda t: syscall(180 if ARM else 240, NULL, 0, 0, NULL),
}  # fmt: skip
SIGNALS: dict[str, Attempt] = {
    "signal the parent": lambda t: os.kill(t.parent, 0),
    "signal a neighbour": lambda t: os.kill(t.neighbour, 0),
    "signal the parent by descriptor": lambda t: signal.pidfd_send_signal(os.pidfd_open(t.parent), 0),
}
RESTRICTED_BY_SYSTEMS: dict[str, Attempt] = {
    "use io_uring": lambda t: syscall(425, 1, ctypes.create_string_buffer(120)),
    "count events": lambda t: syscall(241 if ARM else 298, NULL, 0, -1, -1, 0),
}


def forked_into(flags: int) -> None:
    """clone(2) without a stack of its own, which is fork with flags."""
    pid = syscall(220 if ARM else 56, ctypes.c_ulong(flags | signal.SIGCHLD), NULL, NULL, NULL, NULL)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def sent(family: int, kind: int, address: Any) -> None:
    with socket.socket(family, kind) as ours:
        ours.settimeout(5)
        ours.connect(address)
        ours.send(b"attempt")


def sent_from_a_pair(t: Any) -> None:
    ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, other:
        ours.sendto(b"attempt", t.unix_datagram)


def closed(family: int, kind: int, protocol: int = 0) -> None:
    socket.socket(family, kind, protocol).close()


def listening(t: Any) -> None:
    with socket.socket() as ours:
        ours.bind(("127.0.0.1", 0))
        ours.listen()


NETWORK: dict[str, Attempt] = {
    "connect by TCP": lambda t: sent(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", t.tcp)),
    "send by UDP": lambda t: sent(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", t.udp)),
    "open a socket of IPv6": lambda t: closed(socket.AF_INET6, socket.SOCK_STREAM),
    "listen": listening,
    "ask for routes": lambda t: closed(socket.AF_NETLINK, socket.SOCK_RAW),
}
OTHER_SOCKETS: dict[str, Attempt] = {
    "connect to a socket's path": lambda t: sent(socket.AF_UNIX, socket.SOCK_STREAM, t.unix),
    "send to a socket's path": lambda t: sent(socket.AF_UNIX, socket.SOCK_DGRAM, t.unix_datagram),
    "send to a socket's path from a pair": sent_from_a_pair,
    "connect to an abstract socket": lambda t: sent(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + t.abstract),
    "send a ping": lambda t: closed(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    "read the wire": lambda t: closed(socket.AF_PACKET, socket.SOCK_RAW),
    "ask for others' sockets": lambda t: closed(socket.AF_NETLINK, socket.SOCK_RAW, 4),
    "reach the machine's host": lambda t: closed(40, socket.SOCK_STREAM),
}


GROUPS = {
    "files": FILES,
    "processes": PROCESSES,
    "signals": SIGNALS,
    "restricted by systems": RESTRICTED_BY_SYSTEMS,
    "network": NETWORK,
    "other sockets": OTHER_SOCKETS,
}


# -- making the attempts ---------------------------------------------------------------


def outcome(attempt: Attempt, target: Any) -> str:
    """The outcome: "done", the name of an error number, or another exception in full."""
    try:
        attempt(target)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))
    except Exception as error:
        return repr(error)
    return "done"


def forked_outcome(attempt: Attempt, target: Any) -> str:
    """The same in a new process, so that a success does not affect the next attempt."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, outcome(attempt, target).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    status = os.waitpid(pid, 0)[1]
    return said if os.WIFEXITED(status) else signal.Signals(os.WTERMSIG(status)).name


def every_refused_call(seccomp: Any) -> dict[str, str]:
    """Each call of the filter's table with invalid arguments."""
    column = seccomp.MACHINES[os.uname().machine][0]
    calls = {**seccomp.ALWAYS, **seccomp.METADATA}
    numbers = {name: pair[column] for name, pair in calls.items() if pair[column] is not None}
    senseless = [ctypes.c_long(-1)] * 6
    return {name: outcome(lambda t: syscall(t, *senseless), number) for name, number in numbers.items()}


def foreign_calls() -> dict[str, str]:
    """System calls as another machine or a newer C library makes them."""

    def int_0x80(_: Any) -> int:
        with mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
            page.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20; int 0x80; ret: getpid of i386
            return int(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))())

    if ARM:
        return {}
    return {
        "x32": outcome(lambda t: syscall(0x40000000 | 41, socket.AF_UNIX, socket.SOCK_STREAM, 0), None),
        "i386": forked_outcome(int_0x80, None),
        "clone3": outcome(lambda t: syscall(435, NULL, 0), None),
    }


def confined(request: dict[str, Any]) -> Any:
    """Load the executor's modules as `child/__main__.py` does, and apply the confinement."""
    package = types.ModuleType("_fullsend")
    package.__path__ = [request["package"]]
    sys.modules["_fullsend"] = package
    confine = __import__("_fullsend.confine").confine
    if request["uid"] is not None:
        os.setgroups([])
        os.setgid(request["uid"])
        os.setuid(request["uid"])
    if request["spec"] is not None:
        confine.apply(request["spec"])
    return confine.seccomp


def start_over(request: dict[str, Any]) -> None:
    """Continue in a new program: the interpreter, or a copy of it in memory."""
    arguments = ["python", "-S", "-s", __file__, json.dumps({**request, "spec": None, "route": "direct"})]
    if request["route"] == "exec":
        os.execv(sys.executable, arguments)
    copy = os.memfd_create("python")
    with open(os.path.realpath(sys.executable), "rb") as file:
        os.write(copy, file.read())
    os.execve(copy, arguments, {"PYTHONHOME": sys.base_prefix})


def target_of(request: dict[str, Any]) -> Any:
    """The targets of the attempts."""
    return types.SimpleNamespace(**request["target"], parent=os.getppid())


def main() -> None:
    """Do what the request says, and print the outcome."""
    request = json.loads(sys.argv[1])
    target = target_of(request)
    seccomp = confined(request)
    if request["route"] in ("exec", "memory"):
        start_over(request)
    trying = outcome if request["route"] == "direct" else forked_outcome
    came = {
        group: {name: trying(attempt, target) for name, attempt in GROUPS[group].items()}
        for group in request["groups"]
    }
    if request["sweep"]:
        came["every refused call"] = every_refused_call(seccomp)
        came["foreign calls"] = foreign_calls()
    print(json.dumps(came))


if __name__ == "__main__":
    main()
