"""`powershell`: says that it is not there; an emulated machine cannot run scripts."""

from __future__ import annotations

from vm.emulated.guest.commands.session import Invocation

EXIT_NOT_AVAILABLE = 0xFFFF0000
"""What powershell.exe itself ends with when it cannot start (-65536)."""


def powershell(call: Invocation) -> int:
    """Every call is refused with one sentence on standard error."""
    call.err(
        "powershell: scripts and commands of PowerShell are not available on the emulated machine; "
        "use the inbox commands or python."
    )
    return EXIT_NOT_AVAILABLE
