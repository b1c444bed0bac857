"""A plan on disk: what is to be run, what has been, and how it goes on.

    <plan_id>/
        manifest.json      as executed: every case written out, with its seed
        registry.sqlite    what became of each, see `services.planner.plan.registry`
        lock               held by the one process that executes the plan
        artifacts/         of runs on the `local` backend
        report/            as written last

The directory can be moved and copied while nobody executes the plan: nothing in it
names its own place.
"""

import asyncio
import contextlib
import errno
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from services.planner.backends import Backend
from services.planner.cancellation import CancellationToken
from services.planner.cases import all_cases
from services.planner.models import RunManifest
from services.planner.plan.registry import Now, Registry, utc_now
from services.planner.plan.runner import LockedPlan, is_left
from services.planner.plan.session import exclusive_lock
from services.planner.plan.status import PlanStatus, plan_status
from services.planner.scheduling.dispatcher import SILENT, Listener
from services.planner.scheduling.early_stop import Stopper
from services.planner.tasks import RunExecutionResult, TaskResult
from shared.errors import ExecutorException, PlanError

PLANS: Final = Path(".fullsend/plans")
"""Where plans are unless somebody says otherwise."""

_MANIFEST: Final = "manifest.json"
_REGISTRY: Final = "registry.sqlite"
_LOCK: Final = "lock"
_NOT_IN_A_NAME: Final = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Plan:
    """The plan in a directory.

    Attributes:
        directory: of the plan; absolute.
        manifest: as executed.
        now: tells the time.
    """

    directory: Path
    manifest: RunManifest
    now: Now = utc_now

    @classmethod
    def create(cls, manifest: RunManifest, directory: Path | None = None, now: Now = utc_now) -> "Plan":
        """Write a plan down, with all its cases and their seeds; nothing is run.

        A crash leaves the whole plan or none.

        Args:
            manifest: the plan.
            directory: of the plan; None for one of its own below `PLANS`.
            now: tells the time.

        Raises:
            PlanError: the directory is not empty or can't be made, or the manifest has no cases, too
                many, or texts that no file can hold.
        """
        cases = all_cases(manifest)
        if not cases:
            raise ExecutorException("RunManifest.cases cannot be empty")
        name = _new_name(manifest, now())
        directory = (directory or PLANS / name).absolute()
        whole = manifest.model_copy(update={"cases": cases, "sweep": None})
        facts = {
            "name": name,
            "tool": whole.tool,
            "workflow_id": whole.workflow_id,
            "created_at": now().isoformat(),
        }
        with _made_whole(directory) as draft:
            (draft / _MANIFEST).write_text(_text_of(whole))
            Registry.create(draft / _REGISTRY, cases, facts)
        return cls(directory, whole, now)

    @classmethod
    def open(cls, directory: Path, now: Now = utc_now) -> "Plan":
        """A plan that was written down before.  Raises `PlanError`: there is none, or it can't be read."""
        directory = directory.absolute()
        try:
            text = (directory / _MANIFEST).read_text()
            return cls(directory, RunManifest.model_validate_json(text), now)
        except FileNotFoundError:
            raise PlanError(f"there is no plan in {directory}") from None
        except (OSError, UnicodeError, ValidationError) as exc:
            raise PlanError(f"{directory / _MANIFEST} can't be read: {exc}") from None

    @property
    def plan_id(self) -> str:
        """The name of its directory."""
        return self.directory.name

    @property
    def place(self) -> str:
        """What the commands find it by from here: its id where plans usually are, else its directory."""
        if self.directory.parent == PLANS.absolute():
            return self.plan_id
        here = Path.cwd()
        return str(
            self.directory.relative_to(here) if self.directory.is_relative_to(here) else self.directory
        )

    @cached_property
    def name(self) -> str:
        """What it was called at first, and no other plan is; the same wherever its directory goes."""
        name = self.registry.fact("name")
        assert name is not None, "it is written with the registry"
        return name

    @property
    def artifacts(self) -> Path:
        """Where the `local` backend keeps what the runs produce."""
        return self.directory / "artifacts"

    @property
    def report_directory(self) -> Path:
        """Where its report is written."""
        return self.directory / "report"

    @cached_property
    def registry(self) -> Registry:
        """Of its runs."""
        return Registry(self.directory / _REGISTRY, str(self.artifacts), self.now)

    # -- looking at it ----------------------------------------------------------------

    def results(self) -> list[TaskResult]:
        """One for each case, in the order of the cases; `pending` where there is none yet."""
        return self.registry.results()

    def settled(self, *, failed: bool = True) -> list[TaskResult]:
        """Results of cases that `resume` does not run again."""
        return [one for one in self.results() if not is_left(one, failed)]

    def status(self) -> PlanStatus:
        """How far it is."""
        return plan_status(self.registry)

    def cancel(self, reason: str = "cancelled") -> bool:
        """Have whoever executes it end it; False when nobody does.  Doesn't wait for the end."""
        return self.registry.request_cancel(reason) is not None

    # -- executing it -----------------------------------------------------------------

    async def run(
        self,
        backend: Backend,
        token: CancellationToken | None = None,
        listener: Listener = SILENT,
        stoppers: Sequence[Stopper] = (),
        *,
        criteria: Stopper | None = None,
    ) -> RunExecutionResult:
        """Execute it for the first time, on an open backend.  See `resume`.

        Raises:
            PlanError: it has been taken up before, or somebody else is executing it.
        """
        with self.lock() as locked:
            if await asyncio.to_thread(self.registry.last_session) is not None:
                raise PlanError(f"{self.plan_id} has been taken up before; resume it, or make another plan")
            return await locked.resume(backend, token, listener, stoppers, criteria=criteria)

    async def resume(
        self,
        backend: Backend,
        token: CancellationToken | None = None,
        listener: Listener = SILENT,
        stoppers: Sequence[Stopper] = (),
        *,
        failed: bool = True,
        criteria: Stopper | None = None,
    ) -> RunExecutionResult:
        """As `LockedPlan.resume`.  Raises `PlanError` too when somebody else is executing it."""
        with self.lock() as locked:
            return await locked.resume(backend, token, listener, stoppers, failed=failed, criteria=criteria)

    @contextlib.contextmanager
    def lock(self) -> Iterator[LockedPlan]:
        """Keep everybody else from executing it; needed around backends that can be open only once.

        Raises:
            PlanError: somebody else is executing it; says who.
        """
        with exclusive_lock(self.directory / _LOCK):
            yield LockedPlan(self.manifest, self.registry)


def plans_in(directory: Path = PLANS) -> Iterator[Path]:
    """The directories of the plans in a directory, the newest name last in each workflow."""
    for place in sorted(directory.glob(f"*/{_MANIFEST}")):
        if not place.parent.name.startswith("."):
            yield place.parent


def registry_in(directory: Path) -> Registry:
    """The registry of the plan in a directory, without a look at the plan itself."""
    return Registry(directory / _REGISTRY)


@contextlib.contextmanager
def _made_whole(directory: Path) -> Iterator[Path]:
    """A directory to be filled, which has that place and name after the block.

    Raises:
        PlanError: it can't be made there.
    """
    draft: Path | None = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".new-", dir=directory.parent))
        draft.chmod(0o755)
        yield draft
        draft.rename(directory)
    except OSError as exc:
        raise PlanError(_why_not(directory, exc)) from exc
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def _why_not(directory: Path, exc: OSError) -> str:
    if directory.is_dir() and exc.errno in (errno.ENOTEMPTY, errno.EEXIST):
        return f"{directory} is not empty; `fullsend plan resume` goes on with a plan that is there"
    for place in (directory, *directory.parents):
        if place.exists() and not place.is_dir():
            return f"{directory} can't be made: {place} is no directory; choose another `--directory`"
    return f"{directory} can't be made: {exc.strerror}; choose another `--directory`"


def _text_of(manifest: RunManifest) -> str:
    """The content of its file.  Raises `PlanError` for what has no form in UTF-8."""
    try:
        return manifest.model_dump_json(indent=2, exclude_defaults=True) + "\n"
    except ValueError as exc:  # pydantic's own is one
        raise PlanError(f"the manifest can't be written down: {exc}") from None


def _new_name(manifest: RunManifest, at: datetime) -> str:
    """Says what the plan is and when it was made, and belongs to no other."""
    name = _NOT_IN_A_NAME.sub("-", manifest.workflow_id.lower())[:40].strip("-") or "plan"
    return f"{name}-{at:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
