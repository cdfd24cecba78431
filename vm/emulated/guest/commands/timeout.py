"""Tools that wait: `ping -n` (how scripts sleep where input is redirected) and `timeout`, which refuses to."""

from __future__ import annotations

from vm.emulated.guest.commands.session import Invocation

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def timeout(call: Invocation) -> int:
    """`timeout` under WinRM, where input never is a console."""
    call.err("ERROR: Input redirection is not supported, exiting the process immediately.")
    return 1


def ping(call: Invocation) -> int:
    """`ping [-n count] 127.0.0.1`: one reply at once, then one a second; there is no other network."""
    count, hosts = 4, []
    words = iter(call.arguments)
    for word in words:
        if word.casefold() in ("-n", "/n"):
            text = next(words, "")
            if not text.isdecimal() or int(text) == 0:
                call.out("Bad value for option -n, valid range is from 1 to 4294967295.")
                return 1
            count = int(text)
        elif word.casefold() in ("-w", "/w", "-l", "/l"):
            next(words, None)
        else:
            hosts.append(word)
    if len(hosts) != 1:
        call.out("Usage: ping [-n count] [-w timeout] target_name")
        return 1
    host = hosts[0].casefold()
    if host not in _LOOPBACK and host != call.guest.settings.computer_name.casefold():
        call.out(f"Ping request could not find host {hosts[0]}. Please check the name and try again.")
        return 1
    call.out("\nPinging 127.0.0.1 with 32 bytes of data:")
    for index in range(count):
        if index and call.session.cancellation.event.wait(1.0):
            call.session.cancellation.check()
        call.out("Reply from 127.0.0.1: bytes=32 time<1ms TTL=128")
    call.out(
        f"\nPing statistics for 127.0.0.1:\n    Packets: Sent = {count}, Received = {count}, Lost = 0 (0% loss),"
    )
    return 0
