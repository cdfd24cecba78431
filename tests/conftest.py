"""What every test needs, wherever the tests are started from."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Take Ctrl-C as usual: a shell starts background jobs with SIGINT ignored, and what they start inherits that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
