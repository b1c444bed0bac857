"""Sends what the toolkit reports and requests; gathers reports for a moment if there are many."""

from __future__ import annotations

import _thread
import math
import os
import sys
import time
from typing import Any, Callable

from ..common import protocol, serialize
from .channel import Channel

GATHER_SECONDS = 0.05
MAX_GATHERED_METRICS = 500
MAX_GATHERED_BYTES = 1_000_000
# The executor cuts it once more, after it has masked secrets.
MAX_PROGRESS_CHARACTERS = 100_000


class Reporter:
    """What the toolkit calls.  Lives as long as the process; `begin` and `finish` enclose one run."""

    def __init__(self, channel: Channel, limit_bytes: int) -> None:
        self.channel = channel
        self.limit_bytes = limit_bytes
        self.run: dict[str, Any] | None = None
        self.has_thread = False
        self._lock = _thread.allocate_lock()
        self._progress: bytes | None = None
        self._metrics: list[bytes] = []
        self._metrics_bytes = 0
        self._sent_at = 0.0
        self._armed = False
        self._alarm = _thread.allocate_lock()
        self._files = 0
        self._said: set[str] = set()

    def begin(self, run: dict[str, Any]) -> None:
        """From now on, reports belong to `run`."""
        self.run = run
        self._files = 0
        self._said.clear()

    def finish(self) -> None:
        """Send what was gathered; the run reports nothing more."""
        with self._lock:
            self._flush()
            self.run = None

    def detach(self) -> None:
        """In a process that the tool forked: report nothing."""
        self.run = None
        self._lock = _thread.allocate_lock()

    # -- what the toolkit calls --------------------------------------------------------

    def progress(self, done: float, total: float | None, message: str) -> None:
        """Report progress; of several reports within a moment, only the last is sent."""
        number, whole = _number(done), None if total is None else _number(total)
        if not math.isfinite(number):
            self._say(f"progress: done is {number!r}, which is not reported")
            return
        params = {
            "done": number,
            "total": None if whole is None or not math.isfinite(whole) else whole,
            "message": str(message)[:MAX_PROGRESS_CHARACTERS],
        }
        self._hold(protocol.encode_value(params), None)

    def metric(self, name: str, value: float, tags: dict[str, Any]) -> None:
        """Report a metric; several within a moment are sent together."""
        number = _number(value)
        params: dict[str, Any] = {"name": str(name), "value": number}
        if not math.isfinite(number):
            params.update(value=None, not_finite=repr(number))
        encoded = protocol.encode_value(params)[:-1] + b',"tags":' + serialize.to_json(tags, "tags") + b"}"
        if len(encoded) > self.limit_bytes:
            raise serialize.Unserializable(too_large("a metric", len(encoded), self.limit_bytes))
        self._hold(None, encoded)

    def _say(self, text: str) -> None:
        """Write a line to the run's log, once in a run."""
        if self.run is not None and text not in self._said:
            self._said.add(text)
            print(text, file=sys.__stderr__)

    def partial(self, item: Any) -> None:
        """Send an item at once, so that it is kept whatever happens next, also if the run succeeds."""
        self._send_item(item, b',"explicit":true}')

    def yielded(self, item: Any) -> None:
        """Send an item of a generator at once; it is a part of the result, if there is one."""
        self._send_item(item, b"}")

    def _send_item(self, item: Any, ending: bytes) -> None:
        encoded = serialize.to_json(item, "item")
        if len(encoded) > self.limit_bytes:
            raise serialize.Unserializable(too_large("a partial item", len(encoded), self.limit_bytes))
        self._notify(b"partial", b'{"item":' + encoded + ending)

    def artifact(self, name: str, content: Any, media_type: str | None) -> str | None:
        """Copy the content as it is now, wait until it is kept, and return its reference."""
        number, path = self._new_file()
        try:
            if isinstance(content, (bytes, bytearray, memoryview)):
                with open(path, "wb") as file:
                    file.write(content)
            else:
                import shutil

                shutil.copyfile(os.fspath(content), path)
            size = os.path.getsize(path)
            said = {"name": str(name), "number": number, "size": size, "media_type": media_type}
            reference: str | None = self.channel.ask("keep", said)
        finally:
            if os.path.exists(path):
                os.unlink(path)
        return reference

    def fetch(self, reference: str) -> str:
        """Have an artifact that this call was given written to a file; return its path."""
        number, path = self._new_file()
        self.channel.ask("fetch", {"reference": str(reference), "number": number})
        return path

    def _new_file(self) -> tuple[int, str]:
        if self.run is None:
            raise RuntimeError("an artifact belongs to a run, but no run is under way in this process")
        with self._lock:
            self._files += 1
            number = self._files
        os.makedirs(self.run["artifacts"], exist_ok=True)
        return number, os.path.join(self.run["artifacts"], str(number))

    def once(self, key: str, function: Callable[[], Any]) -> Any:
        """The recorded result of an earlier attempt, or the result of calling `function` now."""
        if self.run is None:
            return function()
        known = self.channel.ask("recall", {"key": str(key)})
        if known is not None:
            return known["value"]
        value = function()
        encoded = serialize.to_json(value, f"the result of once({key!r})")
        if len(encoded) > self.limit_bytes:
            raise serialize.Unserializable(
                too_large(f"the result of once({key!r})", len(encoded), self.limit_bytes)
            )
        self.channel.ask("record", {"key": str(key), "value": protocol.decode(encoded.decode())})
        return value

    # -- gathering ---------------------------------------------------------------------

    def _hold(self, progress: bytes | None, metric: bytes | None) -> None:
        if self.run is None:
            return
        with self._lock:
            if progress is not None:
                self._progress = progress
            if metric is not None:
                if self._metrics_bytes + len(metric) > MAX_GATHERED_BYTES:
                    self._flush()
                self._metrics.append(metric)
                self._metrics_bytes += len(metric)
            full = len(self._metrics) >= MAX_GATHERED_METRICS
            if full or time.monotonic() - self._sent_at >= GATHER_SECONDS:
                self._flush()
            elif not self._armed:
                self._arm()

    def _flush(self) -> None:
        metrics, self._metrics, self._metrics_bytes = self._metrics, [], 0
        progress, self._progress = self._progress, None
        if metrics:
            self._notify(b"metrics", b'{"metrics":[' + b",".join(metrics) + b"]}")
        if progress is not None:
            self._notify(b"progress", progress)
        if metrics or progress is not None:
            self._sent_at = time.monotonic()

    def _arm(self) -> None:
        """Send what was gathered soon, even if the tool reports nothing more.

        In a thread of `_thread`, so that `threading` shows a tool only its own threads.
        """
        self._armed = True
        self.start_thread()
        self._alarm.release()

    def start_thread(self) -> None:
        """Start the thread that sends what was gathered, if there is none.

        To be called before the kernel limits the number of threads.
        """
        if not self.has_thread:
            self.has_thread = True
            self._alarm.acquire()
            _thread.start_new_thread(self._flush_later, ())

    def _flush_later(self) -> None:
        while True:
            self._alarm.acquire()
            time.sleep(GATHER_SECONDS)
            with self._lock:
                self._armed = False
                try:
                    self._flush()
                except OSError:
                    return

    def _notify(self, method: bytes, params: bytes) -> None:
        if self.run is not None:
            self.channel.send(b'{"jsonrpc":"2.0","method":"' + method + b'","params":' + params + b"}")


def too_large(what: str, size_bytes: int, limit_bytes: int) -> str:
    """The sentence for a value that exceeds the limit of one message."""
    return f"{what} is {size_bytes} bytes of JSON, and {limit_bytes} are allowed; save it as an artifact"


def _number(value: Any) -> float:
    """`value` as a number of JSON, or as one that is not finite."""
    if type(value) is int and abs(value) < 2**53:
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
