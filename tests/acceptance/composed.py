"""A composed stack for tests: what an operator would type, and what a neighbour would hear."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared import keys

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 60.0
GRACE_SECONDS = 1


def docker(*words: str) -> str:
    """What `docker` prints; it must succeed."""
    return succeed(["docker", *words])


def succeed(command: list[str], **options: Any) -> str:
    """What a command prints; it must succeed."""
    done = attempt(command, **options)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


def attempt(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """What a command came to."""
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def eventually(fact: Callable[[], Any], what: str) -> Any:
    """The first true answer of `fact`; fails after a generous while."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (answer := fact()):
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.1)
    return answer


@dataclass(frozen=True, slots=True)
class Stack:
    """One Redis and some executors."""

    command: tuple[str, ...]
    project: str
    env_file: Path

    def compose(self, *words: str) -> str:
        """What compose prints.  Settings of the shell or of a `.env` file don't reach the stack."""
        environ = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME") or k.startswith("DOCKER_")}
        environ["SHUTDOWN_GRACE"] = str(GRACE_SECONDS)
        options = ["-p", self.project, "--env-file", str(self.env_file)]
        return succeed([*self.command, *options, *words], cwd=ROOT, env=environ)

    def containers(self, service: str) -> list[str]:
        """The ids of a service's running containers."""
        labels = f"com.docker.compose.project={self.project}", f"com.docker.compose.service={service}"
        filters = [word for label in labels for word in ("--filter", f"label={label}")]
        return docker("ps", "-q", *filters).split()

    def image(self) -> str:
        """The image that was built; empty before that."""
        return docker("images", "-q", "--filter", f"reference={self.project}*executor")

    def remove(self) -> None:
        """Leave nothing of it."""
        self.compose("down", "--volumes", "--remove-orphans")
        if image := self.image():
            docker("rmi", image)

    def scale(self, executors: int) -> list[str]:
        """Have that many executors, all of them listening; their ids."""
        self.compose("up", "-d", "--no-build", "--scale", f"executor={executors}")
        self.await_listeners(executors)
        return self.containers("executor")

    def await_listeners(self, executors: int) -> None:
        """Wait until that many executors hear triggers."""
        ready = f"{keys.EXECUTE_NOW}\n{executors}"
        eventually(
            lambda: self.redis("PUBSUB", "NUMSUB", keys.EXECUTE_NOW) == ready, f"{executors} listeners"
        )

    def redis(self, *words: str) -> str:
        """What `redis-cli` prints, in the container of Redis."""
        return docker("exec", *self.containers("redis"), "redis-cli", *words)

    def write(self, experiment_id: str, params: dict[str, Any], tool: str = "example_tool") -> None:
        """Write an experiment as a shell would."""
        key = keys.experiment(experiment_id)
        self.redis("HSET", key, "tool", tool, "params", json.dumps(params), "state", "ready")

    def trigger(self, experiment_id: str) -> None:
        """PUBLISH, once."""
        self.redis("PUBLISH", keys.EXECUTE_NOW, json.dumps({"experiment_id": experiment_id}))

    def record(self, run_id: str) -> dict[str, str]:
        """The record of a run."""
        words = self.redis("HGETALL", keys.run(run_id)).splitlines()
        return dict(zip(words[::2], words[1::2], strict=True))

    def records(self, experiment_id: str) -> list[str]:
        """The keys of all its records."""
        return self.redis("KEYS", keys.run(f"{experiment_id}:*")).split()


class Neighbour:
    """A `redis-cli` that hears everything the executors publish."""

    def __init__(self, redis_container: str) -> None:
        self._heard: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._subscribed = threading.Semaphore(0)
        channels = keys.METRICS, keys.RESULTS
        command = ["docker", "exec", redis_container, "redis-cli", "SUBSCRIBE", *channels]
        self._client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        for _ in channels:
            assert self._subscribed.acquire(timeout=PATIENCE_SECONDS)

    def first(self, count: int = 1, **members: Any) -> list[dict[str, Any]]:
        """The first `count` messages that have these members."""

        def found() -> list[dict[str, Any]]:
            return [one for one in self._heard if members.items() <= one.items()]

        with self._changed:
            came = self._changed.wait_for(lambda: len(found()) >= count, PATIENCE_SECONDS)
            assert came, f"{count} messages with {members} did not come, only {self._heard}"
            return found()[:count]

    def close(self) -> None:
        """Stop listening."""
        self._client.kill()
        self._reader.join()
        self._client.communicate()

    def _read(self) -> None:
        assert self._client.stdout is not None
        for line in self._client.stdout:
            if line.strip() == "subscribe":
                self._subscribed.release()
            if line.startswith("{"):
                with self._changed:
                    self._heard.append(json.loads(line))
                    self._changed.notify_all()
