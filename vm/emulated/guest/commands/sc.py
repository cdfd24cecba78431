"""`sc`: create, configure, query, start, stop and delete services, of which only drivers can run here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from vm.emulated.guest.commands import services
from vm.emulated.guest.commands.services import Service
from vm.emulated.guest.commands.session import Invocation
from vm.emulated.guest.status import message_of_win32, win32_of_ntstatus
from vm.emulated.registry import RegistryValue

_ERROR_INVALID_SERVICE_CONTROL = 1052
_ERROR_SERVICE_ALREADY_RUNNING = 1056
_ERROR_SERVICE_DISABLED = 1058
_ERROR_SERVICE_DOES_NOT_EXIST = 1060
_ERROR_SERVICE_NOT_ACTIVE = 1062
_ERROR_SERVICE_MARKED_FOR_DELETE = 1072
_ERROR_SERVICE_EXISTS = 1073
_ERROR_INVALID_NAME = 123
_ERROR_BAD_SYNTAX = 1639

_TYPES = {"kernel": 1, "filesys": 2, "own": 16, "share": 32, "rec": 8, "adapt": 4}
_STARTS = {"boot": 0, "system": 1, "auto": 2, "demand": 3, "disabled": 4, "delayed-auto": 2}
_ERRORS = {"ignore": 0, "normal": 1, "severe": 2, "critical": 3}
_OPTION = re.compile(r"([A-Za-z]+)=(.*)", re.DOTALL)

_USAGE = """DESCRIPTION:
        SC is a command line program used for communicating with the
        Service Control Manager and services.
USAGE:
        sc <server> [command] [service name] <option1> <option2>...

        Commands of the emulated machine:
          query, queryex, qc, start, stop, create, config, delete"""


def sc(call: Invocation) -> int:
    """Dispatch to a sub-command."""
    words = list(call.arguments)
    if words and words[0].startswith("\\\\"):
        words.pop(0)
    if not words:
        call.out(_USAGE)
        return _ERROR_BAD_SYNTAX
    command = _COMMANDS.get(words[0].casefold())
    if command is None:
        call.out(f"\n*** Unrecognized Command ***\n{_USAGE}")
        return _ERROR_BAD_SYNTAX
    services.sweep(call.guest)
    return command(call, words[1:])


def _create(call: Invocation, words: list[str]) -> int:
    options = _options(words[1:])
    if not words or options is None or "binpath" not in options:
        return _bad_syntax(call, "Creates a service entry in the registry and Service Database.", "create")
    name = words[0]
    registry = call.guest.registry
    if "\\" in name or "/" in name or len(name) > 256:
        return _failed(call, "CreateService", _ERROR_INVALID_NAME)
    existing = services.read(registry, name)
    if existing is not None:
        code = _ERROR_SERVICE_MARKED_FOR_DELETE if existing.marked_for_deletion else _ERROR_SERVICE_EXISTS
        return _failed(call, "CreateService", code)
    registry.create_key(services.key_of(name))
    options = {"type": "own", "start": "demand", "error": "normal", "displayname": name, **options}
    code = _store(call, name, options)
    if code != 0:
        registry.delete_key(services.key_of(name), recursive=True)
        return code
    created = services.read(registry, name)
    if created is not None:
        kind = "kernel mode driver" if created.type in (1, 2) else "user mode service"
        start = services.START_NAMES.get(created.start, "").replace("_", " ").lower()
        call.guest.events.service_installed(created.name, created.image_path, kind, start)
    call.out("[SC] CreateService SUCCESS")
    return 0


def _config(call: Invocation, words: list[str]) -> int:
    options = _options(words[1:])
    if not words or options is None:
        return _bad_syntax(call, "Modifies a service entry in the registry and Service Database.", "config")
    service = services.read(call.guest.registry, words[0])
    if service is None:
        return _failed(call, "OpenService", _ERROR_SERVICE_DOES_NOT_EXIST)
    if service.marked_for_deletion:
        return _failed(call, "ChangeServiceConfig", _ERROR_SERVICE_MARKED_FOR_DELETE)
    code = _store(call, service.name, options)
    if code == 0:
        call.out("[SC] ChangeServiceConfig SUCCESS")
    return code


def _delete(call: Invocation, words: list[str]) -> int:
    if len(words) != 1:
        return _bad_syntax(call, "Deletes a service entry from the registry.", "delete")
    service = services.read(call.guest.registry, words[0])
    if service is None:
        return _failed(call, "OpenService", _ERROR_SERVICE_DOES_NOT_EXIST)
    if service.marked_for_deletion:
        return _failed(call, "DeleteService", _ERROR_SERVICE_MARKED_FOR_DELETE)
    call.guest.registry.set_dword(services.key_of(service.name), "DeleteFlag", 1)
    services.forget_if_marked(call.guest, service.name)
    call.out("[SC] DeleteService SUCCESS")
    return 0


def _start(call: Invocation, words: list[str]) -> int:
    if not words:
        return _bad_syntax(call, "Starts a service running.", "start")
    service = services.read(call.guest.registry, words[0])
    if service is None:
        return _failed(call, "StartService: OpenService", _ERROR_SERVICE_DOES_NOT_EXIST)
    if service.marked_for_deletion:
        return _failed(call, "StartService", _ERROR_SERVICE_MARKED_FOR_DELETE)
    if service.start == 4:
        return _failed(call, "StartService", _ERROR_SERVICE_DISABLED)
    if services.is_running(call.guest, service.name):
        return _failed(call, "StartService", _ERROR_SERVICE_ALREADY_RUNNING)
    code = win32_of_ntstatus(call.guest.computer().load_filter(service.name))
    if code:
        call.guest.events.service_failed(service.display_name, code, message_of_win32(code))
        return _failed(call, "StartService", code)
    _state(call, service, running=True, extended=False)
    return 0


def _stop(call: Invocation, words: list[str]) -> int:
    if not words:
        return _bad_syntax(call, "Sends a STOP control request to a service.", "stop")
    service = services.read(call.guest.registry, words[0])
    if service is None:
        return _failed(call, "OpenService", _ERROR_SERVICE_DOES_NOT_EXIST)
    if not services.is_running(call.guest, service.name):
        return _failed(call, "ControlService", _ERROR_SERVICE_NOT_ACTIVE)
    status = call.guest.computer().stop_service(service.name)
    if status:
        code = win32_of_ntstatus(status)
        return _failed(call, "ControlService", code if code != 1 else _ERROR_INVALID_SERVICE_CONTROL)
    _state(call, service, running=False, extended=False)
    services.forget_if_marked(call.guest, service.name)
    return 0


def _query(call: Invocation, words: list[str], *, extended: bool = False) -> int:
    names = [word for word in words if "=" not in word]
    options = _options(words[len(names) :])
    registry = call.guest.registry
    if names:
        service = services.read(registry, names[0])
        if service is None:
            return _failed(call, "EnumQueryServicesStatus:OpenService", _ERROR_SERVICE_DOES_NOT_EXIST)
        _state(call, service, running=services.is_running(call.guest, service.name), extended=extended)
        return 0
    if options is None:
        return _bad_syntax(call, "Obtains and displays information about services.", "query")
    wanted = options.get("type", "service").casefold()
    every = options.get("state", "active").casefold()
    for service in services.all_services(registry):
        running = services.is_running(call.guest, service.name)
        is_driver = service.type in (1, 2, 4, 8)
        if wanted != "all" and (wanted in ("driver", "filesys", "kernel")) != is_driver:
            continue
        if every == "all" or running == (every == "active"):
            _state(call, service, running=running, extended=extended)
    return 0


def _query_configuration(call: Invocation, words: list[str]) -> int:
    if not words:
        return _bad_syntax(call, "Queries the configuration information for a service.", "qc")
    service = services.read(call.guest.registry, words[0])
    if service is None:
        return _failed(call, "OpenService", _ERROR_SERVICE_DOES_NOT_EXIST)
    call.out("[SC] QueryServiceConfig SUCCESS")
    call.out(f"\nSERVICE_NAME: {service.name}")
    call.out(f"        TYPE               : {service.type:<3x} {services.TYPE_NAMES.get(service.type, '')} ")
    call.out(
        f"        START_TYPE         : {service.start:<3}  {services.START_NAMES.get(service.start, '')}"
    )
    error = services.ERROR_NAMES.get(service.error_control, "")
    call.out(f"        ERROR_CONTROL      : {service.error_control:<3}  {error}")
    call.out(f"        BINARY_PATH_NAME   : {service.image_path}")
    call.out(f"        LOAD_ORDER_GROUP   : {service.group}")
    call.out("        TAG                : 0")
    call.out(f"        DISPLAY_NAME       : {service.display_name}")
    first, *others = service.dependencies or ("",)
    call.out(f"        DEPENDENCIES       : {first}")
    for other in others:
        call.out(f"                           : {other}")
    call.out("        SERVICE_START_NAME : ")
    return 0


_COMMANDS: Mapping[str, Callable[[Invocation, list[str]], int]] = {
    "create": _create,
    "config": _config,
    "delete": _delete,
    "start": _start,
    "stop": _stop,
    "query": _query,
    "queryex": lambda call, words: _query(call, words, extended=True),
    "qc": _query_configuration,
}


def _store(call: Invocation, name: str, options: Mapping[str, str]) -> int:
    """Write options to the service key, all or (on a bad one) none."""
    numbers: dict[str, int] = {}
    for option, value_name, table in (
        ("type", "Type", _TYPES),
        ("start", "Start", _STARTS),
        ("error", "ErrorControl", _ERRORS),
    ):
        if option in options:
            number = table.get(options[option].casefold())
            if number is None:
                return _bad_syntax(call, f"Invalid {option}= field", "create")
            numbers[value_name] = number
    known = {"type", "start", "error", "binpath", "group", "depend", "displayname", "tag", "obj", "password"}
    if not options.keys() <= known:
        return _bad_syntax(call, "Unknown option", "create")
    registry, key = call.guest.registry, services.key_of(name)
    for value_name, number in numbers.items():
        registry.set_dword(key, value_name, number)
    if "binpath" in options:
        image = options["binpath"]
        if call.guest.drive.owns_path(image) and registry.get_dword(key, "Type") in (1, 2):
            image = f"\\??\\{image}"
        registry.set_value(key, "ImagePath", RegistryValue.string(image, expand=True))
    for option, value_name in (("displayname", "DisplayName"), ("group", "Group")):
        if option in options:
            registry.set_string(key, value_name, options[option])
    if "depend" in options:
        depends = [part for part in options["depend"].split("/") if part]
        registry.set_multi_string(key, "DependOnService", depends)
    return 0


def _state(call: Invocation, service: Service, *, running: bool, extended: bool) -> None:
    call.out(f"\nSERVICE_NAME: {service.name}")
    if extended:
        call.out(f"DISPLAY_NAME: {service.display_name}")
    call.out(f"        TYPE               : {service.type:<2x} {services.TYPE_NAMES.get(service.type, '')} ")
    call.out(f"        STATE              : {'4  RUNNING' if running else '1  STOPPED'} ")
    if running:
        call.out("                                (STOPPABLE, NOT_PAUSABLE, IGNORES_SHUTDOWN)")
    never = 0 if running else 1077
    call.out(f"        WIN32_EXIT_CODE    : {never if not running else 0}  (0x{never:x})")
    call.out("        SERVICE_EXIT_CODE  : 0  (0x0)")
    call.out("        CHECKPOINT         : 0x0")
    call.out("        WAIT_HINT          : 0x0")
    if extended:
        call.out("        PID                : 0")
        call.out("        FLAGS              : ")


def _failed(call: Invocation, what: str, code: int) -> int:
    call.out(f"[SC] {what} FAILED {code}:\n\n{message_of_win32(code)}\n")
    return code


def _bad_syntax(call: Invocation, text: str, command: str) -> int:
    call.out(
        f"DESCRIPTION:\n        {text}\nUSAGE:\n        sc <server> {command} [service name] <option1> <option2>..."
    )
    return _ERROR_BAD_SYNTAX


def _options(words: list[str]) -> dict[str, str] | None:
    """`name= value` pairs, blank after the sign or not; None if a word is no option or has no value."""
    options: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        found = _OPTION.fullmatch(word)
        if not found:
            return None
        value = found[2] or next(rest, None)
        if value is None:
            return None
        options[found[1].casefold()] = value
    return options
