"""Putting a guest back that has no checkpoint: what the harness brought goes, and what does not go is told.

Looked at before anything is changed: which certificates were trusted, which driver was installed, whether `C:\\Downlink`
was there. Afterwards what this run has brought is removed, and nothing else: a certificate that was trusted before stays,
and so does an older driver that a deployment did not get to.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from harness.deployment import certificate, leftovers, pnputil, services
from harness.deployment.plan import GUEST_ROOT, REMOVE_OLDER, TASK_PREFIX, Plan, StepResult, UnloadError
from harness.package import Package
from harness.remote.guest import Guest
from harness.remote.repeating import repeated
from vm.deadline import Deadline
from vm.errors import DownlinkError, GuestError
from vm.waiting import wait_until

REACH_SECONDS = 60.0
"""How long a guest that was lost may take to answer again, so that it can be cleaned."""

IN_USE_SECONDS = 10.0
"""How long a process of the run that was ended may hold a file of it."""

OURS = frozenset(
    (
        *("package", "lib", "suites", "results", "scripts", "listen", "bench"),
        *(".package-files", ".suite-files", ".listen-files"),
        *("package-files.json", "suite-files.json", "listen-files.json", "System.evtx", "Application.evtx"),
    )
)
"""What the harness keeps in `C:\\Downlink`; in one that was there before the run, nothing else is removed."""


@dataclass(frozen=True, slots=True)
class Before:
    """What a guest was like before a run.

    Attributes:
        thumbprint: SHA-1 of the package's certificate in hex.
        trusted: stores that had it already.
        driver: the driver that was installed under the same names, in words; empty if there was none.
        root: `C:\\Downlink` was there.
    """

    thumbprint: str
    trusted: tuple[str, ...]
    driver: str
    root: bool

    def values(self) -> dict[str, Any]:
        """What the journal keeps, so that another process can clean up."""
        return asdict(self)

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> Self:
        """What such an event tells."""
        return cls(
            str(event["thumbprint"]), tuple(event["trusted"]), str(event["driver"]), bool(event["root"])
        )


def look(guest: Guest, package: Package, plan: Plan, deadline: Deadline) -> Before:
    """See what the guest is like; changes nothing.

    Raises:
        GuestError: it does not say.
    """
    thumbprint = certificate.thumbprint(package, package.entry("certificate").name)
    return Before(
        thumbprint,
        tuple(
            store
            for store in certificate.STORES
            if certificate.is_trusted(guest, store, thumbprint, deadline)
        ),
        _installed(guest, plan, deadline),
        _exists(guest, deadline),
    )


def end_tasks(guest: Guest, deadline: Deadline) -> list[str]:
    """End and delete the suites that earlier runs have left as tasks; returns their names.

    Raises:
        GuestError: a task does not go.
    """
    tasks = _tasks(guest, deadline)
    for task in tasks:
        # One that does not run cannot be ended: only its removal counts.
        guest.run(["schtasks", "/end", "/tn", task], deadline=deadline, check=False)
        guest.run(["schtasks", "/delete", "/tn", task, "/f"], deadline=deadline)
    return tasks


@dataclass(slots=True)
class Cleanup:
    """What has to be put back in a guest.

    Args:
        before: what it was like.
        plan: the driver's names.
        replaced: the older driver is gone, so what is installed now is of this run.
    """

    before: Before
    plan: Plan
    replaced: bool = False
    stuck: UnloadError | None = None
    """Why the driver cannot be unloaded; it is never tried again."""
    left: list[str] = field(default_factory=list)
    """What could not be put back, one sentence each."""

    def on_step(self, step: StepResult) -> None:
        """Note what a deployment has done."""
        self.replaced = self.replaced or step.name == REMOVE_OLDER

    def see(self, error: BaseException) -> None:
        """Note what an error means for the driver."""
        if isinstance(error, UnloadError):
            self.stuck = error

    def clean(self, guest: Guest, deadline: Deadline) -> list[str]:
        """Remove what the run has brought; returns what could not be put back, one sentence each."""
        self.left = []
        try:
            guest.reconnect()
            guest.wait_for_boot(None, deadline.sooner(seconds=REACH_SECONDS))
        except DownlinkError as error:
            self._everything(f"the guest does not answer: {error.message}")
            return self.left
        try:
            with self._noting("the suite's scheduled task may still run"):
                repeated(guest, lambda: end_tasks(guest, deadline))
            self._clean_driver(guest, deadline)
            for store in certificate.STORES:
                if store not in self.before.trusted:
                    with self._noting(f"the certificate {self._certificate} is still trusted in {store}"):
                        self._distrust(guest, store, deadline)
            with self._noting(f"the directory '{GUEST_ROOT}' is still there"):
                repeated(guest, lambda: self._clean_root(guest, deadline))
        except KeyboardInterrupt:
            self._everything("the clean-up was interrupted")
            raise
        return self.left

    @property
    def _certificate(self) -> str:
        return f"{self.before.thumbprint[:16]}…"

    def _everything(self, why: str) -> None:
        """Nothing is known of the guest any more: say what may be in it."""
        self.left.append(f"the driver '{self.plan.service}' may still be installed: {why}")
        if len(self.before.trusted) < len(certificate.STORES):
            self.left.append(f"the certificate {self._certificate} may still be trusted: {why}")
        self.left.append(f"the directory '{GUEST_ROOT}' and the suite's task may still be there: {why}")

    def _distrust(self, guest: Guest, store: str, deadline: Deadline) -> None:
        repeated(guest, lambda: certificate.distrust(guest, store, self.before.thumbprint, deadline))

    def _clean_driver(self, guest: Guest, deadline: Deadline) -> None:
        older, service = self.before.driver, self.plan.service
        if self.stuck is not None:
            self.left.append(f"the driver '{service}' is still in the guest: {self.stuck.message}")
        elif self.replaced or not older:
            try:
                repeated(guest, lambda: leftovers.remove_all(guest, self.plan, deadline))
            except DownlinkError as error:
                self.see(error)
                self.left.append(f"the driver '{service}' is still installed: {error.message}")
        if not older:
            return
        if self.replaced:
            self.left.append(
                f"the driver '{service}' that was installed before ({older}) was removed and is not put back"
            )
            return
        now = ""
        with suppress(DownlinkError):
            now = _installed(guest, self.plan, deadline)
        if now != older:
            self.left.append(
                f"the driver '{service}' that was installed before ({older}) was removed in part"
                f" (now: {now or 'nothing of it'})"
            )

    def _clean_root(self, guest: Guest, deadline: Deadline) -> None:
        limit = deadline.sooner(seconds=IN_USE_SECONDS)
        if not self.before.root:
            _remove(guest, str(GUEST_ROOT), limit)
            return
        found = _names(guest, deadline)
        ours = {name.casefold() for name in OURS}
        foreign = [name for name in found if name.casefold() not in ours]
        if not foreign:
            _remove(guest, str(GUEST_ROOT), limit)
            return
        for name in found:
            if name.casefold() in ours:
                _remove(guest, str(GUEST_ROOT / name), limit)
        names = ", ".join(f"'{name}'" for name in foreign[:5])
        self.left.append(f"the directory '{GUEST_ROOT}' keeps what is not the harness's: {names}")

    @contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        """Within, an error becomes a sentence, and the next thing is tried."""
        try:
            yield
        except DownlinkError as error:
            self.left.append(f"{what}: {error.message}")


def _installed(guest: Guest, plan: Plan, deadline: Deadline) -> str:
    """The driver that is installed under the plan's names, in words; empty if there is none."""
    running = services.runs(guest, plan, deadline)
    image = services.image_path(guest, plan, deadline) if running is not None else None
    packages = pnputil.stored(guest, plan, deadline)
    said = [*packages]
    if running is not None:
        said.append(f"'{image}'" if image else "without an image")
        said.append("loaded" if running else "not loaded")
    return ", ".join(said)


def _exists(guest: Guest, deadline: Deadline, path: str = str(GUEST_ROOT)) -> bool:
    said = guest.run(f'if exist "{path}" echo there', deadline=deadline, check=False, repeatable=True)
    return "there" in said.stdout.split()


def _names(guest: Guest, deadline: Deadline) -> list[str]:
    said = guest.run(["dir", "/b", "/a", str(GUEST_ROOT)], deadline=deadline, check=False, repeatable=True)
    return [line.strip() for line in said.stdout.splitlines() if line.strip()]


def _remove(guest: Guest, path: str, deadline: Deadline) -> None:
    """Remove a file or a directory; what an ended process still holds is waited for.

    The exit codes of `rd` and `del` do not tell whether everything went, so it is looked whether it did.

    Raises:
        DownlinkError: it is still there; with what the command said last.
    """

    def gone() -> str | None:
        if not _exists(guest, deadline, path):
            return None
        line = f'rd /s /q "{path}" || del /f /q "{path}"'
        said = guest.run(line, deadline=deadline, check=False)
        if not _exists(guest, deadline, path):
            return None
        words = said.output.strip().splitlines()
        return words[-1].strip() if words else "it is still there"

    wait_until(gone, f"'{path}' to be removed", deadline, machine=guest.machine)


def _tasks(guest: Guest, deadline: Deadline) -> list[str]:
    """Full names of the tasks that are suites of ours. Without a header nothing of the answer is localised but states."""
    said = guest.run(
        ["schtasks", "/query", "/fo", "csv", "/nh"], deadline=deadline, check=False, repeatable=True
    )
    if said.exit_code:
        raise GuestError(
            f"the guest does not list its scheduled tasks: {said.output.strip()[-200:]}",
            exit_code=said.exit_code,
            machine=guest.machine,
        )
    # The name is the first value, or the second where the computer's name comes first.
    cells = [cell for row in csv.reader(io.StringIO(said.stdout)) for cell in row[:2]]
    return sorted({cell for cell in cells if cell.casefold().startswith(TASK_PREFIX.casefold())})
