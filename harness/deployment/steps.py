"""Steps of a deployment: each has a name, says what it did, and may be repeated at will.

That they may is used here: a step in which the connection is lost is carried out once more, provided that the guest is
still in the same boot. If it is not, the guest went down, and that is what the error says.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from harness.deployment.plan import RESTORE, StepResult
from harness.remote.guest import Guest
from harness.remote.repeating import UNKNOWN_FATE
from vm.deadline import Deadline
from vm.errors import DownlinkError, GuestError

BOOT_SECONDS = 60.0
"""How long a guest that was lost in a step may take to answer again."""

OnStep = Callable[[StepResult], None]


@dataclass(slots=True)
class Step:
    """What a step says of itself while it is carried out."""

    detail: str = ""
    changed: bool = False
    repeated: bool = False
    """True the second time: what the step is for may have been done already."""


@dataclass(slots=True)
class Steps:
    """The steps that have been carried out.

    Args:
        guest: the guest of the deployment.
        deadline: for all steps together.
        on_step: told of each step when it is done.
        mend: what helps a machine whose guest does not come back.
    """

    guest: Guest
    deadline: Deadline
    on_step: OnStep
    mend: str = RESTORE
    results: list[StepResult] = field(default_factory=list)
    _boot: str = ""

    def __post_init__(self) -> None:
        self._boot = self.guest.boot_identity(self.deadline)

    def do(self, name: str, action: Callable[[Step], None]) -> None:
        """Carry out one step; nobody is told of one that fails.

        Raises:
            GuestError: as `action`; or the guest went down in the step.
        """
        started = time.monotonic()
        step = Step()
        try:
            action(step)
        except UNKNOWN_FATE as error:
            self._see_that_it_is_up(name, error)
            step = Step(repeated=True)
            try:
                action(step)
            except UNKNOWN_FATE as again:
                self._see_that_it_is_up(name, again)
                raise
        result = StepResult(name, step.detail, step.changed, time.monotonic() - started)
        self.results.append(result)
        self.on_step(result)

    def _see_that_it_is_up(self, name: str, error: GuestError) -> None:
        """Connect again; raises if the guest does not come back, or in another boot."""
        guest = self.guest
        guest.reconnect()
        try:
            now = guest.wait_for_boot(None, self.deadline.sooner(seconds=BOOT_SECONDS))
        except DownlinkError as silence:
            raise GuestError(
                f"the guest went down during the step '{name}' and did not come back",
                hint=f"look at the machine; {self.mend}",
                machine=guest.machine,
                causes=[error, silence],
            ) from error
        if now != self._boot:
            raise GuestError(
                f"the guest went down during the step '{name}' and has restarted",
                hint="if it was a bugcheck, its dump is in C:\\Windows\\Minidump: ./inv vm.shell",
                machine=guest.machine,
                causes=[error],
            ) from error
        guest.log.write(f"the step '{name}' once more: {error.message}")
