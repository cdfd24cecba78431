"""`fltmc`: load, unload, attach and detach filters and list them (facts FM1 to FM6, L1 to L4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vm.emulated.guest.commands.services import forget_if_marked
from vm.emulated.guest.commands.session import Invocation
from vm.emulated.guest.status import hresult_of_ntstatus, message_of_hresult

_USAGE = """
Valid commands:
    load        Loads a Filter driver
    unload      Unloads a Filter driver
    filters     Lists the Filters currently registered in the system
    instances   Lists the Instances for a Filter or Volume currently registered in the system
    volumes     Lists all volumes/RDRs in the system
    attach      Creates a Filter Instance on a Volume
    detach      Removes a Filter Instance from a Volume

    Use fltmc help [command] for help on a specific command"""
_HELP: Mapping[str, str] = {
    "load": "Loads a Filter driver\n\nUsage: fltmc load [FilterName]",
    "unload": "Unloads a Filter driver\n\nUsage: fltmc unload [FilterName]",
    "filters": "Lists the Filters currently registered in the system\n\nUsage: fltmc filters",
    "instances": "Lists the Instances for a Filter or Volume\n\nUsage: fltmc instances [-v Volume] [-f Filter]",
    "volumes": "Lists all volumes/RDRs in the system\n\nUsage: fltmc volumes",
    "attach": "Creates a Filter Instance on a Volume\n\nUsage: fltmc attach [Filter] [Volume] [[-i Instance] [-a Altitude]]",
    "detach": "Removes a Filter Instance from a Volume\n\nUsage: fltmc detach [Filter] [Volume] [Instance]",
}


def fltmc(call: Invocation) -> int:
    """Dispatch to a sub-command; without one, list the filters."""
    words = call.arguments or ["filters"]
    name = words[0].casefold()
    if name in ("help", "/?", "-?"):
        call.out(_HELP.get(words[1].casefold(), _USAGE) if len(words) > 1 else _USAGE)
        return 0
    command = _COMMANDS.get(name)
    if command is None:
        call.out(f"\nInvalid command: '{words[0]}'")
        call.out(_USAGE)
        return 1
    return command(call, words[1:])


def _load(call: Invocation, words: list[str]) -> int:
    if len(words) != 1:
        return _usage(call, "load")
    return _report(call, "Load", call.guest.computer().load_filter(words[0]))


def _unload(call: Invocation, words: list[str]) -> int:
    if len(words) != 1:
        return _usage(call, "unload")
    code = _report(call, "Unload", call.guest.computer().unload_filter(words[0]))
    if code == 0:
        forget_if_marked(call.guest, words[0])
    return code


def _attach(call: Invocation, words: list[str]) -> int:
    plain, options = _options(words, "-i", "-a")
    if plain is None or len(plain) != 2:
        return _usage(call, "attach")
    status = call.guest.computer().attach(plain[0], plain[1], options.get("-i"), options.get("-a"))
    return _report(call, "Attach", status)


def _detach(call: Invocation, words: list[str]) -> int:
    plain, options = _options(words, "-i")
    if plain is None or not 2 <= len(plain) <= 3:
        return _usage(call, "detach")
    instance = plain[2] if len(plain) == 3 else options.get("-i")
    return _report(call, "Detach", call.guest.computer().detach(plain[0], plain[1], instance))


def _filters(call: Invocation, words: list[str]) -> int:
    if words:
        return _usage(call, "filters")
    call.out()
    call.out("Filter Name                     Num Instances    Altitude    Frame")
    call.out("------------------------------  -------------  ------------  -----")
    for item in sorted(
        call.guest.computer().filters(), key=lambda item: _height(item.altitude), reverse=True
    ):
        call.out(f"{item.name:<30}  {item.instances:>9}{'':7}{item.altitude:<10}{'':5}{item.frame}")
    return 0


def _instances(call: Invocation, words: list[str]) -> int:
    plain, options = _options(words, "-f", "-v")
    if plain:
        return _usage(call, "instances")
    shown = call.guest.computer().instances()
    if "-f" in options:
        shown = [item for item in shown if item.filter.casefold() == options["-f"].casefold()]
    if "-v" in options:
        volume = options["-v"].rstrip("\\").casefold()
        names = {volume}
        for each in call.guest.computer().volumes():
            both = {(each.dos_name or each.device_name).casefold(), each.device_name.casefold()}
            if volume in both:
                names |= both
        shown = [item for item in shown if item.volume.casefold() in names]
    call.out()
    call.out(
        "Filter                Volume Name                              Altitude        Instance Name       Frame"
        "   SprtFtrs  VlStatus"
    )
    call.out(
        "--------------------  -------------------------------------  ------------  ----------------------  -----"
        "   --------  --------"
    )
    for item in shown:
        call.out(
            f"{item.filter:<20}  {item.volume:<37}  {item.altitude:^12}  {item.instance:<22}  {item.frame:^5}"
            "   0000000f"
        )
    return 0


def _volumes(call: Invocation, words: list[str]) -> int:
    if words:
        return _usage(call, "volumes")
    call.out()
    call.out(
        "Dos Name                        Volume Name                              FileSystem       Status"
    )
    call.out(
        "------------------------------  ---------------------------------------  ---------------  --------"
    )
    for each in call.guest.computer().volumes():
        call.out(f"{each.dos_name or '':<30}  {each.device_name:<39}  {each.file_system}")
    return 0


_COMMANDS: Mapping[str, Callable[[Invocation, list[str]], int]] = {
    "load": _load,
    "unload": _unload,
    "filters": _filters,
    "instances": _instances,
    "volumes": _volumes,
    "attach": _attach,
    "detach": _detach,
}


def _report(call: Invocation, verb: str, status: int) -> int:
    """Nothing on success; else the text of fact FM6 and exit code 1 (unsure there)."""
    hresult = hresult_of_ntstatus(status)
    if not hresult & 0x80000000:
        return 0
    call.out()
    call.out(f"{verb} failed with error: 0x{hresult:08x}")
    call.out(message_of_hresult(hresult))
    return 1


def _usage(call: Invocation, command: str) -> int:
    call.out(f"\n{_HELP[command]}")
    return 1


def _options(words: list[str], *names: str) -> tuple[list[str] | None, dict[str, str]]:
    """Plain words and the values of named options; None if an option is unknown or has no value."""
    plain: list[str] = []
    options: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            plain.append(word)
            continue
        value = next(rest, None)
        if word.casefold() not in names or value is None:
            return None, {}
        options[word.casefold()] = value
    return plain, options


def _height(altitude: str) -> tuple[int, str]:
    """Altitudes compare as decimal numbers of any precision (fact A1)."""
    whole, _, fraction = altitude.partition(".")
    return (int(whole) if whole.isdecimal() else 0, fraction.rstrip("0"))
