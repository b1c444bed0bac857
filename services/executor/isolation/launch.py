"""Starts the process of a fork server; the first one ahead of time, while the service itself is imported.

It takes as long to start as the service takes to import a third of what it needs, and needs
nothing of it.  So this imports little.
"""

import os
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

CHILD_FILE = Path(__file__).parent / "child" / "__main__.py"
MARK = "FULLSEND_NEST"
"""In the environment of everything below a fork server, so that it can be found without its parents."""

_OPTIONS = ("-I", "-S", "-X", "utf8")
_ahead: list["Launched"] = []


class Launched:
    """A fork server that is starting, and our end of what it speaks on; `mark` is its own."""

    def __init__(self, python: Path, environ: Mapping[str, str], prefix: Sequence[str]) -> None:
        self.wanted = (python, dict(environ), tuple(prefix))
        self.mark = os.urandom(8).hex()
        self.sock, theirs = socket.socketpair()
        with theirs:
            try:
                self.process = self._start(theirs.fileno())
            except OSError:
                self.sock.close()
                raise

    def _start(self, descriptor: int) -> subprocess.Popen[bytes]:
        python, environ, prefix = self.wanted
        return subprocess.Popen(
            [*prefix, str(python), *_OPTIONS, str(CHILD_FILE), str(descriptor)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=None,
            cwd=tempfile.gettempdir(),
            # What is looked up when it is first needed would be looked up by every fork anew.
            env={**environ, MARK: self.mark, "LD_BIND_NOW": "1"},
            pass_fds=[descriptor],
            start_new_session=True,
        )


def ahead(python: Path, environ: Mapping[str, str]) -> None:
    """Start a fork server that `launch` will be asked for; it ends with this process if it never is."""
    _ahead.append(Launched(python, environ, ()))


def launch(python: Path, environ: Mapping[str, str], prefix: Sequence[str] = ()) -> Launched:
    """A fork server under `python`, started now unless it was ahead; `prefix` is what confines it.

    Raises:
        OSError: it can't be started.
    """
    for one in _ahead:
        if one.wanted == (python, dict(environ), tuple(prefix)):
            _ahead.remove(one)
            return one
    return Launched(python, environ, prefix)
