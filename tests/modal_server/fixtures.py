"""A server with our app deployed, as most tests need it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import modal
import pytest

from services.cli.cloud import modal_app
from services.cli.cloud.modal_function import call_tool
from services.planner.backends.modal_options import ModalOptions
from tests.modal_server.modal_server import TOKEN, RunningServer

CHECKOUT = Path(__file__).parents[2]
MODAL_OPTIONS = ModalOptions(slots=4, max_parallel=8)
"""Two containers, each with four calls at once."""


@contextlib.contextmanager
def serve_modal(folder: Path) -> Iterator[RunningServer]:
    """Run a server with our app inside the block; the environment of this process leads to it."""
    with pytest.MonkeyPatch.context() as patch, RunningServer(folder) as server:
        patch.setenv("MODAL_SERVER_URL", server.modal.url)
        patch.setenv("MODAL_TOKEN_ID", TOKEN[0])
        patch.setenv("MODAL_TOKEN_SECRET", TOKEN[1])
        patch.setenv("MODAL_CONFIG_PATH", str(folder / "none.toml"))
        image = modal_app.image_of(CHECKOUT, {})
        server.call(modal_app.deploy(MODAL_OPTIONS, image, call_tool))
        yield server
        modal.Client.from_env().close()
