"""The app on Modal that calls tools: what it consists of, and how it is deployed, looked at and removed."""

import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import modal

from services.planner.backends.modal_connection import translated
from services.planner.backends.modal_options import FUNCTION, QUEUE, SLOTS_VARIABLE, ModalOptions
from shared.errors import PlanError

SOURCE: Final = "/fullsend"
PARTS: Final = ("services", "shared", "pyproject.toml", "README.md", "LICENSE")
"""What of a checkout an installation needs."""

CallTool = Callable[[bytes, str, float, str], Awaitable[bytes]]


def image_of(checkout: Path, variables: Mapping[str, str]) -> modal.Image:
    """Return the image of the containers: our pinned requirements, and our source.

    Args:
        checkout: of this project.
        variables: of the environment.

    Raises:
        PlanError: it is no checkout.
    """
    missing = [one for one in ("requirements.txt", *PARTS) if not (checkout / one).exists()]
    if missing:
        raise PlanError(
            f"{checkout} is no checkout of this project, which the image is made from: it has no {missing[0]}"
        )
    python = ".".join(map(str, sys.version_info[:2]))
    image = modal.Image.debian_slim(python_version=python)
    image = image.pip_install_from_requirements(str(checkout / "requirements.txt"))
    for part in PARTS:
        place = checkout / part
        if place.is_dir():
            image = image.add_local_dir(place, f"{SOURCE}/{part}", copy=True, ignore=["**/__pycache__"])
        else:
            image = image.add_local_file(place, f"{SOURCE}/{part}", copy=True)
    install = f"python -m pip install --no-deps --no-build-isolation {SOURCE}"
    return image.run_commands(install).env(dict(variables))


def app_of(options: ModalOptions, image: modal.Image, call_tool: CallTool) -> modal.App:
    """Return the app, which is not deployed yet.

    Each call says what its container gets.  So the function has neither GPU nor secrets, which a call could
    not take from it.

    Args:
        options: what its containers get.
        image: of the containers.
        call_tool: the function; the containers import its module.
    """
    app = modal.App(options.app, include_source=False)
    app.function(
        image=image.env({SLOTS_VARIABLE: str(options.slots)}),
        name=FUNCTION,
        timeout=round(options.timeout),
        memory=options.memory,
        cpu=options.cpu,
        max_containers=options.max_containers,
        retries=0,
    )(modal.concurrent(max_inputs=options.slots)(call_tool))
    return app


async def deploy(options: ModalOptions, image: modal.Image, call_tool: CallTool) -> None:
    """Make the volume and the queue, and deploy the app.

    Raises:
        PlanError: Modal takes no token, or refuses something.
    """
    with translated(f"deploy {options.app}"):
        await modal.Volume.from_name(options.volume, create_if_missing=True, version=2).hydrate.aio()
        await modal.Queue.from_name(QUEUE, create_if_missing=True).hydrate.aio()
        await app_of(options, image, call_tool).deploy.aio()


@dataclass(frozen=True, slots=True)
class Deployment:
    """What there is of a deployment.

    Attributes:
        app: its name.
        is_deployed: whether there is such an app with its function.
        running: calls that run now.
        ended, failed: calls that have ended in the last hour, and those of them that Modal calls failed: a
            tool that fails is none, since its container says so in a result.
        volume: its name.
        has_volume: whether there is such a volume.
    """

    app: str
    is_deployed: bool
    running: int
    ended: int
    failed: int
    volume: str
    has_volume: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return lines for the user."""
        state = (
            "is deployed" if self.is_deployed else "is not deployed; deploy it with `fullsend modal deploy`"
        )
        ended = f"in the last hour, {self.ended} ended, {self.failed} of them by a fault"
        calls = f"calls: {self.running} run; {ended}"
        has_volume = "" if self.has_volume else "; there is no such volume"
        return [
            f"app {self.app} {state}",
            *([calls] if self.is_deployed else []),
            f"volume {self.volume}{has_volume}",
        ]


async def look(options: ModalOptions) -> Deployment:
    """Return what there is.  Raises `PlanError` if Modal takes no token."""
    with translated("be asked"):
        function: Any = modal.Function.from_name(options.app, FUNCTION)
        has_app = await _exists(function)
        has_volume = await _exists(modal.Volume.from_name(options.volume))
        stats = await function.stats.aio(all_variants=True) if has_app else None
    failed = stats.input_failure_count + stats.input_timeout_count if stats else 0
    return Deployment(
        app=options.app,
        is_deployed=has_app,
        running=stats.input_running_at_end_count if stats else 0,
        ended=failed + stats.input_success_count if stats else 0,
        failed=failed,
        volume=options.volume,
        has_volume=has_volume,
    )


async def remove(options: ModalOptions, *, with_volume: bool) -> list[str]:
    """Stop the app, and delete the queue; return what was removed.

    Args:
        options: name the app and the volume.
        with_volume: whether to delete the volume too, with all code and artifacts on it.

    Raises:
        PlanError: Modal takes no token, or refuses something.
    """
    removed = []
    with translated(f"remove {options.app}"):
        if await _exists(modal.Function.from_name(options.app, FUNCTION)):
            app = await modal.App.lookup.aio(options.app)
            await app.stop.aio()
            removed.append(f"app {options.app}")
        if await _exists(modal.Queue.from_name(QUEUE)):
            await modal.Queue.objects.delete.aio(QUEUE)
            removed.append(f"queue {QUEUE}")
        if with_volume and await _exists(modal.Volume.from_name(options.volume)):
            await modal.Volume.objects.delete.aio(options.volume)
            removed.append(f"volume {options.volume}")
    return removed


async def _exists(found: Any) -> bool:
    try:
        await found.hydrate.aio()
    except modal.exception.NotFoundError:
        return False
    return True
