"""What a tool says while it runs: sent at once, or gathered for a moment when there is a lot of it."""

from __future__ import annotations

import _thread
import json
import math
import os
import time
from typing import Any, Callable

from ..common import convert, protocol
from . import importer
from .channel import Channel

GATHER_SECONDS = 0.05
MAX_GATHERED_METRICS = 500


class Reports:
    """The toolkit's other half.  Lives as long as the process; `begin` and `finish` frame one run."""

    def __init__(self, channel: Channel, limit_bytes: int) -> None:
        self.wire = channel
        self.limit_bytes = limit_bytes
        self.run: dict[str, Any] | None = None
        self.has_thread = False
        self._lock = _thread.allocate_lock()
        self._progress: bytes | None = None
        self._metrics: list[bytes] = []
        self._sent_at = 0.0
        self._armed = False
        self._alarm = _thread.allocate_lock()
        self._files = 0

    def begin(self, run: dict[str, Any]) -> None:
        """From here on, what is said belongs to `run`."""
        self.run = run
        self._files = 0

    def finish(self) -> None:
        """Send what is still held back; nothing more is said for this run."""
        with self._lock:
            self._flush()
            self.run = None

    def detach(self) -> None:
        """This is a process that the tool forked: it has no say."""
        self.run = None
        self._lock = _thread.allocate_lock()

    # -- what the toolkit calls --------------------------------------------------------

    def progress(self, done: float, total: float | None, message: str) -> None:
        """Only the latest of several within a moment is sent."""
        total = None if total is None else _number(total, "total")
        params = {"done": _number(done, "done"), "total": total, "message": str(message)[:1000]}
        self._hold(protocol.encode_value(params), None)

    def metric(self, name: str, value: float, tags: dict[str, Any]) -> None:
        """Several within a moment are sent together; none is lost while the process lives."""
        params = {"name": str(name), "value": _number(value, "value")}
        encoded = protocol.encode_value(params)[:-1] + b',"tags":' + convert.to_json(tags, "tags") + b"}"
        self._hold(None, encoded)

    def partial(self, item: Any) -> None:
        """Sent at once: it must outlive whatever happens to the process next."""
        encoded = convert.to_json(item, "item")
        if len(encoded) > self.limit_bytes:
            raise convert.Unserializable(too_large("a partial item", len(encoded), self.limit_bytes))
        self._notify(b"partial", b'{"item":' + encoded + b"}")

    def artifact(self, name: str, content: Any, media_type: str | None) -> str | None:
        """Capture the content as it is now, and wait until it is kept; its reference."""
        number, path = self._new_file()
        try:
            if isinstance(content, (bytes, bytearray, memoryview)):
                with open(path, "wb") as file:
                    file.write(content)
            else:
                import shutil

                shutil.copyfile(os.fspath(content), path)
            size = os.path.getsize(path)
            said = {"name": str(name), "number": number, "size": size, "sha256": _sha256(path)}
            reference: str | None = self.wire.ask("keep", {**said, "media_type": media_type})
        finally:
            if os.path.exists(path):
                os.unlink(path)
        return reference

    def fetch(self, reference: str) -> str:
        """Have an artifact that this call was given put into a file of its own; the file's path."""
        number, path = self._new_file()
        self.wire.ask("fetch", {"reference": str(reference), "number": number})
        return path

    def _new_file(self) -> tuple[int, str]:
        if self.run is None:
            raise RuntimeError("an artifact belongs to a run, and none is under way in this process")
        with self._lock:
            self._files += 1
            number = self._files
        os.makedirs(self.run["artifacts"], exist_ok=True)
        return number, os.path.join(self.run["artifacts"], str(number))

    def once(self, key: str, function: Callable[[], Any]) -> Any:
        """The recorded result of an earlier attempt, or the result of calling `function` now."""
        if self.run is None:
            return function()
        known = self.wire.ask("recall", {"key": str(key)})
        if known is not None:
            return known["value"]
        value = function()
        encoded = convert.to_json(value, f"the result of once({key!r})")
        if len(encoded) > self.limit_bytes:
            raise convert.Unserializable(
                too_large(f"the result of once({key!r})", len(encoded), self.limit_bytes)
            )
        self.wire.ask("record", {"key": str(key), "value": json.loads(encoded)})
        return value

    # -- gathering ---------------------------------------------------------------------

    def _hold(self, progress: bytes | None, metric: bytes | None) -> None:
        if self.run is None:
            return
        with self._lock:
            if progress is not None:
                self._progress = progress
            if metric is not None:
                self._metrics.append(metric)
            full = len(self._metrics) >= MAX_GATHERED_METRICS
            if full or time.monotonic() - self._sent_at >= GATHER_SECONDS:
                self._flush()
            elif not self._armed:
                self._arm()

    def _flush(self) -> None:
        metrics, self._metrics = self._metrics, []
        progress, self._progress = self._progress, None
        if metrics:
            self._notify(b"metrics", b'{"metrics":[' + b",".join(metrics) + b"]}")
        if progress is not None:
            self._notify(b"progress", progress)
        if metrics or progress is not None:
            self._sent_at = time.monotonic()

    def _arm(self) -> None:
        """Have the last report of a burst sent even if the tool says nothing more.

        A bare thread of `_thread`, so that a tool which looks at its threads sees its own.
        """
        self._armed = True
        if self.has_thread:
            self._alarm.release()
        else:
            self.has_thread = True
            self._alarm.acquire()
            _thread.start_new_thread(self._flush_later, ())

    def _flush_later(self) -> None:
        while True:
            time.sleep(GATHER_SECONDS)
            with self._lock:
                self._armed = False
                try:
                    self._flush()
                except OSError:
                    return
            self._alarm.acquire()

    def _notify(self, method: bytes, params: bytes) -> None:
        if self.run is not None:
            self.wire.send(b'{"jsonrpc":"2.0","method":"' + method + b'","params":' + params + b"}")


def too_large(what: str, size_bytes: int, limit_bytes: int) -> str:
    """The sentence for something that is over the limit of one message."""
    return f"{what} is {size_bytes} bytes of JSON, and {limit_bytes} are allowed; save it as an artifact"


def _number(value: Any, name: str) -> float:
    number = value if type(value) is int and abs(value) < 2**53 else float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} is {value!r}; a finite number is needed")
    return number


def _sha256(path: str) -> str:
    digest = importer.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1_048_576), b""):
            digest.update(block)
    return str(digest.hexdigest())
