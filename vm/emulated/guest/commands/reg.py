"""`reg`: add, query and delete keys and values of the guest's registry."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from vm.emulated.guest.commands import services
from vm.emulated.guest.commands.session import Invocation
from vm.emulated.registry import (
    REG_BINARY,
    REG_DWORD,
    REG_EXPAND_SZ,
    REG_MULTI_SZ,
    REG_NONE,
    REG_QWORD,
    REG_SZ,
    MissingKeyError,
    MissingValueError,
    Registry,
    RegistryPathError,
    RegistryValue,
    ValueTypeError,
    type_name,
)

_TYPES = {
    "reg_sz": REG_SZ,
    "reg_expand_sz": REG_EXPAND_SZ,
    "reg_multi_sz": REG_MULTI_SZ,
    "reg_dword": REG_DWORD,
    "reg_qword": REG_QWORD,
    "reg_binary": REG_BINARY,
    "reg_none": REG_NONE,
}
_NOT_FOUND = "ERROR: The system was unable to find the specified registry key or value."
_BAD_KEY = "ERROR: Invalid key name."


class _SyntaxError(Exception):
    """The arguments are not what the sub-command takes."""


def reg(call: Invocation) -> int:
    """Dispatch to a sub-command; exit code 1 for every error, as reg.exe does."""
    command = _COMMANDS.get(call.arguments[0].casefold()) if call.arguments else None
    services.sweep(call.guest)
    try:
        if command is None:
            raise _SyntaxError
        return command(call, call.arguments[1:])
    except _SyntaxError:
        verb = f"REG {call.arguments[0].upper()}" if command is not None else "REG"
        call.err(f'ERROR: Invalid syntax.\nType "{verb} /?" for usage.')
    except RegistryPathError:
        call.err(_BAD_KEY)
    except (MissingKeyError, MissingValueError):
        call.err(_NOT_FOUND)
    return 1


def _add(call: Invocation, words: list[str]) -> int:
    key, options = _arguments(words, {"/v", "/t", "/d", "/s"}, {"/ve", "/f"})
    registry = call.guest.registry
    if "/v" not in options and "/ve" not in options:
        if {"/t", "/d"} & options.keys():
            raise _SyntaxError
        registry.create_key(key)
        call.out("The operation completed successfully.")
        return 0
    name = options.get("/v", "")
    kind = _TYPES.get(options.get("/t", "REG_SZ").casefold())
    if kind is None:
        call.err("ERROR: Invalid syntax. Specify valid numeric or registry data type for '/t'.")
        return 1
    try:
        value = _value(kind, options.get("/d", ""), options.get("/s", "\\0"))
    except (ValueError, OverflowError):
        call.err("ERROR: Invalid syntax. Specify valid numeric value for '/d'.")
        return 1
    overwrites = registry.exists(key) and _has(registry, key, name)
    if (
        overwrites
        and "/f" not in options
        and not _confirmed(call, f"Value {name} exists, overwrite(Yes/No)? ")
    ):
        call.out("The operation was canceled by the user.")
        return 1
    registry.create_key(key)
    registry.set_value(key, name, value)
    call.out("The operation completed successfully.")
    return 0


def _query(call: Invocation, words: list[str]) -> int:
    recursive = "/s" in {word.casefold() for word in words[1:]}
    plain = [word for index, word in enumerate(words) if index == 0 or word.casefold() != "/s"]
    key, options = _arguments(plain, {"/v", "/t", "/f"}, {"/ve"})
    registry = call.guest.registry
    if not registry.exists(key):
        raise MissingKeyError(key)
    if "/v" in options or "/ve" in options:
        name = options.get("/v", "")
        found = 0
        for each in _tree(registry, key) if recursive else [key]:
            if _has(registry, each, name):
                found += 1
                spelled = next(old for old in registry.values(each) if old.casefold() == name.casefold())
                _show(call, each, {spelled: registry.get_value(each, name)})
        if recursive:
            call.out(f"\nEnd of search: {found} match(es) found.")
            return 0 if found else 1
        if not found:
            raise MissingValueError(key, name)
        call.out()
        return 0
    for each in _tree(registry, key) if recursive else [key]:
        values = registry.values(each)
        if values or recursive:
            _show(call, each, values)
    if not recursive:
        subkeys = registry.subkeys(key)
        call.out()
        for name in subkeys:
            call.out(f"{registry.canonical(key)}\\{name}")
    return 0


def _delete(call: Invocation, words: list[str]) -> int:
    key, options = _arguments(words, {"/v"}, {"/ve", "/va", "/f"})
    registry = call.guest.registry
    if not registry.exists(key):
        raise MissingKeyError(key)
    single = "/v" in options or "/ve" in options
    name = options.get("/v", "")
    if single and not _has(registry, key, name):
        raise MissingValueError(key, name)
    if "/f" not in options:
        what = f"the registry value {name}" if single else f"the registry key {registry.canonical(key)}"
        if not _confirmed(call, f"Permanently delete {what} (Yes/No)? "):
            call.out("The operation was canceled by the user.")
            return 1
    if single:
        registry.delete_value(key, name)
    elif "/va" in options:
        for each in registry.values(key):
            registry.delete_value(key, each)
    else:
        registry.delete_key(key, recursive=True)
    call.out("The operation completed successfully.")
    return 0


_COMMANDS: Mapping[str, Callable[[Invocation, list[str]], int]] = {
    "add": _add,
    "query": _query,
    "delete": _delete,
}


def _arguments(words: list[str], valued: set[str], flags: set[str]) -> tuple[str, dict[str, str]]:
    if not words or words[0].startswith("/"):
        raise _SyntaxError
    options: dict[str, str] = {}
    rest = iter(words[1:])
    for word in rest:
        option = word.casefold()
        if option in valued:
            value = next(rest, None)
            if value is None:
                raise _SyntaxError
            options[option] = value
        elif option in flags or option in ("/reg:64", "/reg:32"):
            options[option] = ""
        else:
            raise _SyntaxError
    return words[0], options


def _value(kind: int, text: str, separator: str) -> RegistryValue:
    if kind in (REG_SZ, REG_EXPAND_SZ):
        return RegistryValue.string(text, expand=kind == REG_EXPAND_SZ)
    if kind == REG_MULTI_SZ:
        return RegistryValue.multi_string([part for part in text.split(separator) if part])
    if kind in (REG_DWORD, REG_QWORD):
        number = int(text, 16 if re.match(r"0x", text, re.IGNORECASE) else 10) if text else 0
        return RegistryValue.dword(number) if kind == REG_DWORD else RegistryValue.qword(number)
    return RegistryValue(kind, bytes.fromhex(text))


def _has(registry: Registry, key: str, name: str) -> bool:
    try:
        registry.get_value(key, name)
    except MissingValueError:
        return False
    return True


def _tree(registry: Registry, key: str) -> list[str]:
    keys = [key]
    for name in registry.subkeys(key):
        keys += _tree(registry, f"{key}\\{name}")
    return keys


def _show(call: Invocation, key: str, values: Mapping[str, RegistryValue]) -> None:
    call.out(f"\n{call.guest.registry.canonical(key)}")
    for name, value in values.items():
        call.out(f"    {name or '(Default)'}    {type_name(value.type)}    {_shown(value)}")


def _shown(value: RegistryValue) -> str:
    try:
        if value.type in (REG_SZ, REG_EXPAND_SZ):
            return value.as_string()
        if value.type == REG_MULTI_SZ:
            return "\\0".join(value.as_multi_string())
        if value.type == REG_DWORD:
            return f"0x{value.as_dword():x}"
    except ValueTypeError:
        return value.data.hex().upper()
    if value.type == REG_QWORD:
        return f"0x{int.from_bytes(value.data, 'little'):x}"
    return value.data.hex().upper()


def _confirmed(call: Invocation, question: str) -> bool:
    call.stdout.write(call.session.encode(question))
    answer = b""
    while not answer.endswith(b"\n") and (byte := call.stdin.read(1)):
        answer += byte
    return call.session.decode(answer).strip().casefold() in ("y", "yes")
