"""`shutdown`: restart or stop the guest, at once or later, or take it back."""

from __future__ import annotations

from vm.emulated.guest.commands.session import Invocation
from vm.emulated.guest.power import PowerAction, ShutdownPendingError
from vm.emulated.guest.status import message_of_win32

_DEFAULT_DELAY_SECONDS = 30
_MAXIMUM_DELAY_SECONDS = 315360000
_ERROR_NO_SHUTDOWN_IN_PROGRESS = 1116
_ERROR_SHUTDOWN_IS_SCHEDULED = 1190
_WITH_VALUE = ("/t", "/c", "/d", "/m")


def shutdown(call: Invocation) -> int:
    """`shutdown /r|/s [/t seconds] [/f] [/c text] [/d reason]`, `shutdown /a`."""
    options: dict[str, str] = {}
    words = iter(call.arguments)
    for word in words:
        option = "/" + word[1:].casefold() if word[:1] in "/-" else word
        if option not in ("/r", "/s", "/a", "/f", "/p", "/g", "/hybrid", *_WITH_VALUE):
            call.out(
                f"{word}: invalid option\n\nUsage: shutdown [/r | /s | /a] [/f] [/t xxx] [/d reason] [/c text]"
            )
            return 1
        options[option] = next(words, "") if option in _WITH_VALUE else ""
    power = call.guest.power
    if "/a" in options:
        if power.abort():
            return 0
        return _failed(call, _ERROR_NO_SHUTDOWN_IN_PROGRESS)
    restart = bool({"/r", "/g"} & options.keys())
    if not restart and not {"/s", "/p"} & options.keys():
        call.out("Usage: shutdown [/r | /s | /a] [/f] [/t xxx] [/d reason] [/c text]")
        return 1
    text = options.get("/t", "0" if "/p" in options else str(_DEFAULT_DELAY_SECONDS))
    if not text.isdecimal() or int(text) > _MAXIMUM_DELAY_SECONDS:
        call.out(f"The value of /t is not a number of seconds: {text}")
        return 1
    try:
        power.schedule(
            PowerAction.RESTART if restart else PowerAction.SHUTDOWN,
            delay_seconds=float(text),
            after_delivery=call.session.after_delivery,
        )
    except ShutdownPendingError:
        return _failed(call, _ERROR_SHUTDOWN_IS_SCHEDULED)
    return 0


def _failed(call: Invocation, code: int) -> int:
    call.err(f"{message_of_win32(code)}({code})")
    return code
