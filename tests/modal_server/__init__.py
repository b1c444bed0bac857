"""A Modal server for tests: the real client and the real container runtime work against it on loopback.

It answers the remote procedures of `modal_proto`, which the client's wheel ships.  Functions run in
real processes (`python -m modal._container_entrypoint`), volumes are directories, everything else is in
memory.  It is for one machine and one test process: it authenticates one token, and forgets all when it
stops.
"""

from tests.modal_server.modal_server import TOKEN, ModalServer, RunningServer

__all__ = ["TOKEN", "ModalServer", "RunningServer"]
