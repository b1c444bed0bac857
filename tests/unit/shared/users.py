"""Other processes that use an embedded server."""

import subprocess
import sys
from pathlib import Path

import redis

USER = """
import sys
from pathlib import Path
from shared.embedded import EmbeddedServer
held = EmbeddedServer.acquire(Path(sys.argv[1]))
print(held.url, flush=True)
sys.stdin.readline()
held.release()
print("left", flush=True)
"""


class User:
    """Another process that uses the directory's server until it is told to leave."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        self.url = self._line()

    def leave(self) -> None:
        """Let it release the server, and wait for that."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self._line() == "left"
        self.close()

    def kill(self) -> None:
        self.process.kill()
        self.close()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def pid_of(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.info("server")["process_id"])


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # it is gone, or goes while it is read
        return False
    return state not in "ZX"
