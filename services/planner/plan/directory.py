"""The directory of a plan: create a plan, open it, execute it, look at it.

    <plan_id>/
        manifest.json      the manifest as executed: every case in full, with its seed
        registry.sqlite    the runs and results, see `services.planner.plan.registry`
        lock               held by the one process that executes the plan
        artifacts/         the artifacts of runs on the `local` backend
        report/            the report that was written last

The directory can be moved and copied while no process executes the plan: no file in it
contains its path.
"""

import asyncio
import contextlib
import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Final, Self

from pydantic import ValidationError

from services.planner.backends import Backend
from services.planner.cancellation import CancellationToken
from services.planner.cases import all_cases
from services.planner.cost import UNPRICED, Tariff
from services.planner.models import Budget, RunManifest
from services.planner.plan.registry import Registry
from services.planner.plan.runner import LockedPlan, is_left
from services.planner.plan.session import exclusive_lock
from services.planner.plan.status import PlanStatus, plan_status
from services.planner.scheduling.dispatcher import SILENT, Listener
from services.planner.scheduling.early_stop import Stopper
from services.planner.tasks import Now, RunExecutionResult, TaskResult, utc_now
from shared.errors import ExecutorException, PlanError

PLANS: Final = Path(".fullsend/plans")
"""The default directory of plans."""

_MANIFEST: Final = "manifest.json"
_REGISTRY: Final = "registry.sqlite"
_LOCK: Final = "lock"
_NOT_IN_A_NAME: Final = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Plan:
    """The plan in a directory.

    Attributes:
        directory: the absolute path.
        manifest: the manifest as executed: every case in full, with its seed.
        now: the clock.
    """

    directory: Path
    manifest: RunManifest
    now: Now = utc_now

    @classmethod
    def create(cls, manifest: RunManifest, directory: Path | None = None, now: Now = utc_now) -> "Plan":
        """Write a plan with all its cases and their seeds to a directory; runs nothing.

        A crash leaves the whole plan or nothing.

        Args:
            manifest: the plan.
            directory: where to; None for a new directory in `PLANS`.
            now: the clock.

        Raises:
            ExecutorException: the manifest has no cases.
            PlanError: the directory is not empty or can't be created, or the manifest has too many
                cases, or texts that UTF-8 can't hold.
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
        """Open the plan in a directory.

        Raises:
            PlanError: there is no plan, or it can't be read.
        """
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
        """What the commands of this directory call it: its id if it is in `PLANS`, else its path."""
        if self.directory.parent == PLANS.absolute():
            return self.plan_id
        here = Path.cwd()
        return str(
            self.directory.relative_to(here) if self.directory.is_relative_to(here) else self.directory
        )

    @cached_property
    def name(self) -> str:
        """The name that it got when it was created; unique, and kept when the directory is moved."""
        name = self.registry.fact("name")
        assert name is not None, "the registry is created with it"
        return name

    @property
    def artifacts(self) -> Path:
        """The directory in which the `local` backend stores artifacts."""
        return self.directory / "artifacts"

    @property
    def report_directory(self) -> Path:
        """The directory of its report."""
        return self.directory / "report"

    @cached_property
    def registry(self) -> Registry:
        """The registry of its runs."""
        return Registry(self.directory / _REGISTRY, str(self.artifacts), self.now)

    # -- reading ----------------------------------------------------------------------

    def results(self) -> list[TaskResult]:
        """Return a result for each case, in their order; cases that have not ended are `pending`."""
        return self.registry.results()

    def settled(self, *, failed: bool = True) -> list[TaskResult]:
        """Return the results of the cases that `resume` does not run again."""
        return [one for one in self.results() if not is_left(one, failed)]

    def status(self) -> PlanStatus:
        """Return the progress of the plan."""
        return plan_status(self.registry)

    def cancel(self, reason: str = "cancelled") -> bool:
        """Stop the plan in whatever process executes it; returns at once, False if none does."""
        return self.registry.request_cancel(reason) is not None

    def with_budget(self, budget: Budget) -> Self:
        """Write another budget to the plan's manifest, and return the plan with it.

        Raises:
            PlanError: the manifest can't be written.
        """
        changed = replace(self, manifest=self.manifest.model_copy(update={"budget": budget}))
        path, draft = self.directory / _MANIFEST, self.directory / f".{_MANIFEST}.{os.getpid()}"
        try:
            draft.write_text(_text_of(changed.manifest))
            draft.replace(path)
        except OSError as exc:
            raise PlanError(f"{path} can't be written: {exc.strerror}") from exc
        return changed

    # -- executing --------------------------------------------------------------------

    async def run(
        self,
        backend: Backend,
        token: CancellationToken | None = None,
        listener: Listener = SILENT,
        stoppers: Sequence[Stopper] = (),
        *,
        criteria: Stopper | None = None,
        tariff: Tariff = UNPRICED,
    ) -> RunExecutionResult:
        """Execute the plan for the first time; the arguments are those of `LockedPlan.resume`.

        Raises:
            PlanError: the plan was executed before, or another process executes it.
        """
        with self.lock() as locked:
            if await asyncio.to_thread(self.registry.last_session) is not None:
                raise PlanError(f"{self.plan_id} has been executed before; resume it, or create another plan")
            return await locked.resume(backend, token, listener, stoppers, criteria=criteria, tariff=tariff)

    async def resume(
        self,
        backend: Backend,
        token: CancellationToken | None = None,
        listener: Listener = SILENT,
        stoppers: Sequence[Stopper] = (),
        *,
        failed: bool = True,
        criteria: Stopper | None = None,
        tariff: Tariff = UNPRICED,
    ) -> RunExecutionResult:
        """Lock the plan, and call `LockedPlan.resume`."""
        with self.lock() as locked:
            return await locked.resume(
                backend, token, listener, stoppers, failed=failed, criteria=criteria, tariff=tariff
            )

    @contextlib.contextmanager
    def lock(self) -> Iterator[LockedPlan]:
        """Keep other processes from executing the plan, inside the block.

        Take the lock before you open a backend that can be open only once for a plan.

        Raises:
            PlanError: another process executes the plan; names it.
        """
        with exclusive_lock(self.directory / _LOCK):
            yield LockedPlan(self.manifest, self.registry)


def plans_in(directory: Path = PLANS) -> Iterator[Path]:
    """Yield the directories of the plans in a directory, sorted by name: by workflow, the oldest first."""
    for place in sorted(directory.glob(f"*/{_MANIFEST}")):
        if not place.parent.name.startswith("."):
            yield place.parent


def registry_in(directory: Path) -> Registry:
    """Return the registry of the plan in a directory, without reading the manifest."""
    return Registry(directory / _REGISTRY)


@contextlib.contextmanager
def _made_whole(directory: Path) -> Iterator[Path]:
    """Yield a temporary directory, which is renamed to `directory` after the block.

    Raises:
        PlanError: the directory can't be created.
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
        return f"{directory} is not empty; `fullsend plan resume` continues a plan that is there"
    for place in (directory, *directory.parents):
        if place.exists() and not place.is_dir():
            return f"{directory} can't be created: {place} is not a directory; choose another `--directory`"
    return f"{directory} can't be created: {exc.strerror}; choose another `--directory`"


def _text_of(manifest: RunManifest) -> str:
    """Return the text of the manifest's file.  Raises `PlanError` if UTF-8 can't hold it."""
    try:
        return manifest.model_dump_json(indent=2, exclude_defaults=True) + "\n"
    except ValueError as exc:  # pydantic's own is one
        raise PlanError(f"the manifest can't be written: {exc}") from None


def _new_name(manifest: RunManifest, at: datetime) -> str:
    """Return a unique name of workflow and time of creation."""
    name = _NOT_IN_A_NAME.sub("-", manifest.workflow_id.lower())[:40].strip("-") or "plan"
    return f"{name}-{at:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
