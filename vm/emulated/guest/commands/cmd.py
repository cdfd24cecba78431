"""`cmd /c` and `call`: an interpreter inside the interpreter."""

from __future__ import annotations

import re

from vm.emulated.guest.commands.session import Invocation

_SWITCHES = re.compile(r"\s*/(?P<switch>[a-zA-Z])(?::\w+)?(?=$|[\s/\"])\s*|\s*/(?P<run>[ckCK])")


def cmd(call: Invocation) -> int:
    """`cmd [/s] [/d] [/q] /c line`: runs the line in a new session; without /c it reads lines from its input."""
    # The interpreter finds this command in the catalog; importing it at the top would be a circle.
    from vm.emulated.guest.commands.interpreter import Streams, run_line

    streams = Streams(call.stdin, call.stdout, call.stderr)
    rest = call.tail
    strip_always = False
    while found := _SWITCHES.match(rest):
        switch = (found["switch"] or found["run"]).casefold()
        rest = rest[found.end() :]
        if switch == "s":
            strip_always = True
        if switch in "ck":
            return run_line(_unquoted(rest, strip_always), call.session.child(), streams)
    session = call.session.child()
    for line in session.decode(call.read_all()).splitlines():
        run_line(line, session, streams)
    return session.error_level


def call(call: Invocation) -> int:
    """`call command`: runs the command in this session after a second round of expansion."""
    from vm.emulated.guest.commands.interpreter import Streams, run_line

    return run_line(call.tail.strip(), call.session, Streams(call.stdin, call.stdout, call.stderr))


def _unquoted(line: str, strip_always: bool) -> str:
    """cmd.exe's rule (`cmd /?`): an outer pair of quotes goes, unless it surrounds one program name only."""
    text = line.strip()
    if not text.startswith('"'):
        return line
    plain = text.count('"') == 2 and not strip_always and not re.search(r"[&<>()@^|]", text)
    if plain and " " in text[1 : text.rindex('"')]:
        return line
    if plain and text.endswith('"') and " " not in text:
        return line
    last = text.rindex('"')
    return text[1:last] + text[last + 1 :]
