"""Remote procedures of Modal's protocol: those that nobody has written here answer UNIMPLEMENTED."""

import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_grpc

Metadata = Mapping[str, Any]
CONTAINER = "x-container"
"""The metadata in which a container's own port says which container it is."""


def procedure(answer: Callable[[Any, Any, Metadata], Any]) -> Callable[..., Awaitable[None]]:
    """Make a procedure with one request and one answer from a method; None is an empty answer."""

    async def handler(self: "Procedures", stream: Any) -> None:
        request = await stream.recv_message()
        self.called[answer.__name__] += 1
        found = answer(self, request, stream.metadata)
        if inspect.isawaitable(found):
            found = await found
        await stream.send_message(Empty() if found is None else found)

    return handler


def not_found(what: str) -> GRPCError:
    """Return the error for something that is not there."""
    return GRPCError(Status.NOT_FOUND, what)


def _unimplemented(name: str) -> Callable[..., Awaitable[None]]:
    async def handler(self: "Procedures", stream: Any) -> None:
        self.called[f"unimplemented {name}"] += 1
        raise GRPCError(Status.UNIMPLEMENTED, name)

    return handler


_NAMES = api_grpc.ModalClientBase.__abstractmethods__
_Unimplemented: Any = type(
    "_Unimplemented", (api_grpc.ModalClientBase,), {name: _unimplemented(name) for name in _NAMES}
)


class Procedures(_Unimplemented):  # type: ignore[misc]
    """What all parts of the server share.

    Attributes:
        called: how often each procedure was called.
    """

    def __init__(self) -> None:
        self.called: Counter[str] = Counter()
        self._last_number = 0

    def new_id(self, kind: str) -> str:
        """Return a new object id; `kind` is its prefix."""
        self._last_number += 1
        return f"{kind}-{self._last_number}"
