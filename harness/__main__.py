"""What `inv` runs: invoke, with an interruption that is quiet from the first moment on.

Until a task begins there is nothing to clean up, so an interruption ends the process at once; from then on
`harness.interrupts` has the signals.
"""

from __future__ import annotations

import os
import signal
from types import FrameType


def _leave(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)


if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, _leave)

from invoke.main import program  # noqa: E402 - importing takes the time in which Ctrl-C must be quiet already

program.run()
