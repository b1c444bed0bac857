"""A proxy in front of a server, which loses answers."""

import asyncio


class Lossy:
    """A proxy in front of a server that can drop the answer to a script, together with the connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self._loses_next = False
        self.lost = 0
        self.url = ""

    async def start(self) -> None:
        """Start; `url` is the address of the proxy from now on."""
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}/0"

    def lose_next(self) -> None:
        """Drop the answer to the next script, which the server executes."""
        self._loses_next = True

    async def stop(self) -> None:
        """Stop."""
        assert self._listener is not None
        self._listener.close()
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        task.add_done_callback(self._pipes.discard)
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            await self._talk(reader, writer, from_server, to_server)
        except asyncio.CancelledError:
            pass
        finally:
            writer.close()
            to_server.close()

    async def _talk(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        from_server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        """Pass bytes on until one side closes, or an answer was dropped.  Answers may come in pieces."""
        is_script = asyncio.Event()
        pipes = (
            asyncio.create_task(self._ask(reader, to_server, is_script)),
            asyncio.create_task(self._answer(from_server, writer, is_script)),
        )
        try:
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pipe in pipes:
                pipe.cancel()
            await asyncio.gather(*pipes, return_exceptions=True)

    async def _ask(
        self, reader: asyncio.StreamReader, to_server: asyncio.StreamWriter, is_script: asyncio.Event
    ) -> None:
        while asked := await reader.read(1 << 20):
            if b"EVAL" in asked:  # EVALSHA, or EVAL for a script that the server has not got
                is_script.set()
            else:
                is_script.clear()
            to_server.write(asked)

    async def _answer(
        self, from_server: asyncio.StreamReader, writer: asyncio.StreamWriter, is_script: asyncio.Event
    ) -> None:
        while answer := await from_server.read(1 << 20):
            if self._loses_next and is_script.is_set() and not answer.startswith(b"-NOSCRIPT"):
                self._loses_next = False
                self.lost += 1
                return
            writer.write(answer)
