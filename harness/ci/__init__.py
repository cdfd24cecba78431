"""What the harness tells a CI system: annotations, summaries and outputs of steps. Does nothing outside of one."""

from __future__ import annotations

import sys

from vm.errors import DownlinkError


def render(error: DownlinkError) -> str:
    """The error as the command shows it at its end; inside a CI system it becomes an annotation, too."""
    # Everything else about CI is imported where there is a system to tell.
    from harness.ci import systems

    system = systems.detect()
    if system is None:
        return error.render()
    from harness.ci import report

    sys.stdout.write(system.annotation(report.of_error(error)) + "\n")
    return system.defuse(error.render())
