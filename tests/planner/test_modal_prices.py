"""Modal's prices: asked by its own client, of a server on loopback, or else of the table."""

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.planner.cost.modal_prices import TABLE, container_tariff, rates, rates_of
from shared.errors import PlanError

TOLD = {
    "cpu_hour_cost": "0.0720",
    "cpu_hour_cost_sandbox": "9",
    "mem_gib_hour_cost": "0.036",
    "mem_gib_hour_cost_sandbox": "9",
    "gpu_hour_cost_t4": "0.36",
    "gpu_hour_cost_a100_80gb": "3.6",
}
"""Names as Modal has them since July 2026, with other prices than the table's."""


@contextlib.asynccontextmanager
async def modal_prices() -> AsyncIterator[str]:
    """Serve prices to whoever has the token; yields the server's URL."""
    import grpclib.server
    from modal_proto import api_grpc, api_pb2

    async def refuse(self: Any, stream: Any) -> None:
        raise grpclib.GRPCError(grpclib.Status.UNIMPLEMENTED)

    names = api_grpc.ModalClientBase.__abstractmethods__
    unimplemented: Any = type("unimplemented", (api_grpc.ModalClientBase,), dict.fromkeys(names, refuse))

    class Prices(unimplemented):  # type: ignore[misc]
        async def ClientHello(self, stream: Any) -> None:
            await stream.recv_message()
            await stream.send_message(api_pb2.ClientHelloResponse())

        async def WorkspaceNameLookup(self, stream: Any) -> None:
            await stream.recv_message()
            await stream.send_message(api_pb2.WorkspaceNameLookupResponse(workspace_name="w", username="u"))

        async def WorkspaceBillingRates(self, stream: Any) -> None:
            await stream.recv_message()
            if stream.metadata["x-modal-token-secret"] != "as-known":
                raise grpclib.GRPCError(grpclib.Status.UNAUTHENTICATED, "this token is not known")
            await stream.send_message(api_pb2.WorkspaceBillingRatesResponse(rates=TOLD))

    server, listening = grpclib.server.Server([Prices()]), socket.create_server(("127.0.0.1", 0))
    await server.start(sock=listening)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()
        listening.close()


ASK = """
import asyncio, json
from services.planner.cost.modal_prices import rates
found = asyncio.run(rates())
print(json.dumps([found.core, found.gib, found.source]))
"""


async def asked(url: str, folder: Path, token: str) -> Any:
    """The price of a core and of a GiB, and their source, as a process with this token gets them.

    Modal's client keeps the token that a process has used first, so each gets a process of its own.
    """
    variables = {"MODAL_SERVER_URL": url, "MODAL_CONFIG_PATH": str(folder / "none.toml")}
    if token:
        variables |= {"MODAL_TOKEN_ID": "ak-known", "MODAL_TOKEN_SECRET": token}
    others = {name: value for name, value in os.environ.items() if not name.startswith("MODAL_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ASK, env=others | variables, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return json.loads(out)


def test_prices_are_told_for_an_hour_and_those_of_sandboxes_are_left_out() -> None:
    found = rates_of(TOLD)

    assert found.core == pytest.approx(0.00002)
    assert found.gib == pytest.approx(0.00001)
    assert found.gpus == {"t4": pytest.approx(0.0001), "a100_80gb": pytest.approx(0.001)}
    assert found.of_gpu("A100-80GB") == pytest.approx(0.001)
    assert (found.currency, found.source[:15]) == ("USD", "Modal, asked on")


async def test_without_its_client_the_prices_are_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modal", None)

    found = await rates()

    assert (found.core, found.gpus) == (TABLE.core, TABLE.gpus)
    assert found.source == (
        "the table of Modal's prices of 2026-07 in this package (the package `modal` is not installed)"
    )


async def test_modal_is_asked_if_there_is_a_token_and_the_source_says_why_it_does_not_tell(
    tmp_path: Path,
) -> None:
    async with modal_prices() as url:
        tokens = ("as-known", "as-wrong", "")
        known, wrong, none = await asyncio.gather(*(asked(url, tmp_path, one) for one in tokens))

    assert known[:2] == [pytest.approx(0.00002), pytest.approx(0.00001)]
    assert known[2].startswith("Modal, asked on 20")
    for found, reason in ((wrong, "this token is not known"), (none, "Token missing")):
        assert found[:2] == [TABLE.core, TABLE.gib]
        assert found[2].startswith(f"{TABLE.source} (Modal did not tell its own: {reason})")


def test_a_run_holds_its_part_of_a_container() -> None:
    whole, part = container_tariff(TABLE, 2, 4_096, "H100:2"), container_tariff(TABLE, 2, 4_096, "H100:2", 4)
    least = container_tariff(TABLE, 0.01, 1_024)

    assert whole.per_second == pytest.approx(2 * TABLE.core + 4 * TABLE.gib + 2 * TABLE.gpus["h100"])
    assert part.per_second == pytest.approx((whole.per_second or 0) / 4)
    assert least.per_second == pytest.approx(0.125 * TABLE.core + TABLE.gib)
    assert whole.overhead(3) == pytest.approx(3 * 65 * (whole.per_second or 0))
    with pytest.raises(PlanError, match="no price for the GPU 'X9'"):
        container_tariff(TABLE, 1, 1_024, "X9")
