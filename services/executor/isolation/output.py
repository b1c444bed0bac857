"""Reads what a process prints, line by line, at a limited rate."""

import asyncio
import contextvars
import os
import select
import time
from collections import deque
from collections.abc import Callable

READ_BYTES = 65_536
MAX_LINE_BYTES = 65_536
"""A longer line is cut.  It is cut once more before it is stored, after secrets have been masked."""

KEPT_LINES = 20


class Pipe:
    """One stream of one process.  What is not read stays in the pipe and blocks the writer.

    It is read when it is drained, and after `follow` whenever something is written.
    """

    def __init__(self, stream: str, bytes_per_second: int, emit: Callable[[float, str, str], None]) -> None:
        read_end, self._write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read_end, False)
        self._fd = read_end
        self._stream = stream
        self._bytes_per_second = bytes_per_second
        self._emit = emit
        self.rest = b""
        self._cutting = False
        self._credit = float(bytes_per_second)
        self._counted_at = 0.0
        self._pause: asyncio.TimerHandle | None = None
        self._is_followed = False

    def take_write_end(self) -> int:
        """The other end, which the caller has to close."""
        descriptor, self._write_end = self._write_end, -1
        return descriptor

    def fileno(self) -> int:
        """The end that is read here."""
        return self._fd

    def follow(self) -> None:
        """From now on, read whenever something is written."""
        if not self._is_followed:
            self._is_followed = True
            self._loop = asyncio.get_running_loop()
            self._counted_at = time.monotonic()
            # In an empty context, as in `Connection`.
            contextvars.Context().run(self._loop.add_reader, self._fd, self._read)

    def _read(self) -> None:
        size = self._take()
        if size == 0:
            self._loop.remove_reader(self._fd)
            self._is_followed = False
            return
        self._spend(size)

    def _take(self) -> int:
        """Read once; return the number of bytes, 0 if nobody can write any more, -1 if there are none."""
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return -1
        if data:
            self._split(data)
        return len(data)

    def _spend(self, size: int) -> None:
        """Stop reading for a while if more was printed than the limit per second allows."""
        now = time.monotonic()
        earned = (now - self._counted_at) * self._bytes_per_second
        self._counted_at = now
        self._credit = min(self._credit + earned, float(self._bytes_per_second)) - size
        if self._credit < 0 and self._pause is None:
            self._loop.remove_reader(self._fd)
            self._pause = self._loop.call_later(-self._credit / self._bytes_per_second, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._fd, self._read)

    def drain(self) -> None:
        """Read what is in the pipe now, at most a pipe's capacity."""
        for _ in range(2):
            if self._take() < READ_BYTES:
                break

    def end_line(self) -> None:
        """Treat what was printed without a newline as a line."""
        if self.rest:
            self._line(self.rest)
        self.rest, self._cutting = b"", False

    def _split(self, data: bytes) -> None:
        lines = data.split(b"\n")
        lines[0] = self.rest + lines[0]
        self.rest = lines.pop()
        for line in lines:
            self._line(line)
            self._cutting = False
        if len(self.rest) > MAX_LINE_BYTES:
            self._line(self.rest)
            self.rest, self._cutting = b"", True

    def _line(self, line: bytes) -> None:
        if self._cutting:
            return
        # A progress bar redraws itself with carriage returns; only its last state is kept.
        line = line.rstrip(b"\r").rpartition(b"\r")[2]
        if len(line) > MAX_LINE_BYTES:
            text = (
                line[:MAX_LINE_BYTES].decode("utf-8", "replace")
                + f" ... (line cut at {MAX_LINE_BYTES} bytes)"
            )
        else:
            text = line.decode("utf-8", "replace")
        self._emit(time.time(), self._stream, text)

    def close(self) -> None:
        """Read no more."""
        if self._pause is not None:
            self._pause.cancel()
        if self._is_followed:
            self._loop.remove_reader(self._fd)
        os.close(self._fd)
        if self._write_end >= 0:
            os.close(self._write_end)


class Output:
    """Both streams of a process, its stacks, and the last lines that it printed."""

    def __init__(self, bytes_per_second: int, emit: Callable[[float, str, str], None]) -> None:
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._emit = emit
        self.stacks_fd = os.memfd_create("stacks", os.MFD_CLOEXEC)
        self.pipes: list[Pipe] = []
        try:
            for stream in ("stdout", "stderr"):
                self.pipes.append(Pipe(stream, bytes_per_second, self._keep))
        except OSError:
            self.close()
            raise
        self._poll = select.poll()
        for pipe in self.pipes:
            self._poll.register(pipe.fileno(), select.POLLIN)

    def follow(self) -> None:
        """From now on, pass on what is printed when it is printed, not only when it is drained."""
        for pipe in self.pipes:
            pipe.follow()

    def _keep(self, at: float, stream: str, text: str) -> None:
        self.last_lines.append(text)
        self._emit(at, stream, text)

    def take_ends(self) -> list[int]:
        """The ends for the process: stdout, stderr, stacks."""
        stacks = os.dup(self.stacks_fd)
        return [*(pipe.take_write_end() for pipe in self.pipes), stacks]

    def drain(self) -> None:
        """Pass on what was printed until now."""
        if self._poll.poll(0):
            for pipe in self.pipes:
                pipe.drain()
        for pipe in self.pipes:
            if pipe.rest:
                pipe.end_line()

    def stacks(self) -> str:
        """The stacks that the process wrote before it was ended."""
        size = os.fstat(self.stacks_fd).st_size
        return os.pread(self.stacks_fd, min(size, 262_144), 0).decode("utf-8", "replace")

    def close(self) -> None:
        """Read no more; a process that still writes gets SIGPIPE."""
        for pipe in self.pipes:
            pipe.close()
        self.pipes.clear()
        os.close(self.stacks_fd)
