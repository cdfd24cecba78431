"""`w32tm`: the state of time synchronisation, and its refusal of big jumps (windows-lab.md D.2)."""

from __future__ import annotations

import time

from vm.emulated.guest.commands.session import Invocation

MAXIMUM_CORRECTION_SECONDS = 54000
"""MaxPosPhaseCorrection and MaxNegPhaseCorrection of a machine outside a domain: 15 hours."""
_E_INVALIDARG = 0x80070057
_TOO_BIG = 1


def w32tm(call: Invocation) -> int:
    """`w32tm /query /status | /source`, `w32tm /resync [/force]`, `w32tm /stripchart` is not there."""
    words = [word.casefold().replace("-", "/", 1) for word in call.arguments]
    match words:
        case ["/query", "/status", *_]:
            return _status(call)
        case ["/query", "/source", *_]:
            call.out("VM IC Time Synchronization Provider")
            return 0
        case ["/resync", *rest] if set(rest) <= {"/force", "/nowait", "/rediscover", "/soft"}:
            return _resync(call)
    unknown = words[0] if words else ""
    call.out(f"The following arguments were unexpected:\n {unknown}".rstrip())
    return _E_INVALIDARG


def _status(call: Invocation) -> int:
    now = time.gmtime(call.guest.clock.now())
    call.out("Leap Indicator: 0(no warning)")
    call.out("Stratum: 4 (secondary reference - syncd by (S)NTP)")
    call.out("Precision: -23 (119.209ns per tick)")
    call.out("Root Delay: 0.0000000s\nRoot Dispersion: 10.0000000s")
    call.out("ReferenceId: 0x564D5450 (source IP:  86.77.84.80)")
    call.out(f"Last Successful Sync Time: {time.strftime('%m/%d/%Y %I:%M:%S %p', now)}")
    call.out("Source: VM IC Time Synchronization Provider\nPoll Interval: 6 (64s)")
    return 0


def _resync(call: Invocation) -> int:
    call.out("Sending resync command to local computer")
    clock = call.guest.clock
    if abs(clock.offset) > MAXIMUM_CORRECTION_SECONDS:
        call.out("The computer did not resync because the required time change was too big.")
        return _TOO_BIG
    clock.step(-clock.offset)
    call.out("The command completed successfully.")
    return 0
