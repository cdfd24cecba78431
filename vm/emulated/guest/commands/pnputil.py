"""`pnputil`: add driver packages to the store and install them, list them, remove them.

Exit codes: 0; 259 nothing to install; 3010 a restart is needed; 1641 a restart has begun; else the error's code, of
SetupAPI with its own facility (0xE0000nnn). Sources: windows-lab C.3; documentation of PnPUtil's command syntax and
return values. The texts are for people and follow the display language; scripts find `oemNN.inf` in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from vm.emulated.guest.commands.driver_store import (
    ERROR_GENERAL_SYNTAX,
    ERROR_NO_CATALOG_FOR_OEM_INF,
    ERROR_WRONG_INF_STYLE,
    DriverStore,
    StorePackage,
)
from vm.emulated.guest.commands.package_installer import PackageInstaller
from vm.emulated.guest.commands.package_trust import MESSAGES
from vm.emulated.guest.commands.session import Invocation
from vm.emulated.guest.commands.setup_log import SetupFailure, SetupLog
from vm.emulated.guest.power import PowerAction, ShutdownPendingError
from vm.emulated.guest.status import message_of_win32, win32_of_errno

ERROR_INVALID_PARAMETER = 87
ERROR_NO_MORE_ITEMS = 259
ERROR_SUCCESS_REBOOT_INITIATED = 1641
ERROR_SUCCESS_REBOOT_REQUIRED = 3010
ERROR_NOT_AN_INSTALLED_OEM_INF = 0xE000023C
ERROR_INF_IN_USE_BY_DEVICES = 0xE000023D

_MESSAGES: Mapping[int, str] = MappingProxyType(
    {
        **MESSAGES,
        ERROR_GENERAL_SYNTAX: "A general syntax error was encountered in an INF file.",
        ERROR_WRONG_INF_STYLE: "The style of the INF is different than what was requested.",
        ERROR_NO_CATALOG_FOR_OEM_INF: "The third-party INF does not contain digital signature information.",
        ERROR_NOT_AN_INSTALLED_OEM_INF: "The specified file is not an installed OEM INF.",
        ERROR_INF_IN_USE_BY_DEVICES: "One or more devices are presently installed using the specified INF.",
    }
)
_LABELS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "en": (
            *("Published Name", "Original Name", "Provider Name", "Class Name", "Class GUID"),
            *("Driver Version", "Signer Name"),
        ),
        "de": (
            *("Veröffentlichter Name", "Originalname", "Anbietername", "Klassenname", "Klassen-GUID"),
            *("Treiberversion", "Name des Signaturgebers"),
        ),
    }
)
_WIDTH = 24
_USAGE = """PNPUTIL [/add-driver <...> | /delete-driver <...> | /enum-drivers | /?]

Commands of the emulated machine:

  /add-driver <filename.inf> [/install] [/reboot]
  /delete-driver <oem#.inf> [/uninstall] [/force] [/reboot]
  /enum-drivers"""


def pnputil(call: Invocation) -> int:
    """Dispatch to a verb."""
    call.out("Microsoft PnP Utility\n")
    words = [f"/{word[1:].casefold()}" if word[:1] in ("/", "-") else word for word in call.arguments]
    verb = _VERBS.get(words[0]) if words else None
    if verb is None:
        call.out(_USAGE)
        return 0 if not words or words[0] == "/?" else ERROR_INVALID_PARAMETER
    log = SetupLog(call.guest)
    try:
        return verb(call, words[1:], DriverStore(call.guest, log), log)
    except SetupFailure as failure:
        what = "add" if verb is _add else "delete"
        call.out(f"Failed to {what} driver package: {message_of(failure.code)}")
        return failure.code
    except OSError as error:
        # The host's disk stands for the guest's.
        code = win32_of_errno(error.errno)
        call.out(f"Failed: {message_of_win32(code)}")
        return code


def message_of(code: int) -> str:
    """The system's text for a code of SetupAPI, of trust or of Win32."""
    return _MESSAGES.get(code) or message_of_win32(code)


def _add(call: Invocation, words: list[str], store: DriverStore, log: SetupLog) -> int:
    names, options = _split(words)
    if len(names) != 1 or not options <= {"/install", "/reboot"}:
        return _bad_usage(call)
    call.out(f"Adding driver package:  {names[0].rpartition(chr(92))[2]}")
    command = f"pnputil /add-driver {' '.join(words)}"
    with log.section(f"Setup Import Driver Package - {names[0]}", command):
        package, existed = store.add(names[0], call.session.directory)
    call.out(f"Driver package added successfully.{' (Already exists in the system)' if existed else ''}")
    call.out(_line(call, 0, package.published))
    restart: bool | None = False
    if "/install" in options:
        with log.section(f"Install Driver Package - {names[0]}", command):
            restart = PackageInstaller(call.guest, store, log).install(package)
        if restart is None:
            call.out("Driver package is up-to-date or there is nothing to install.")
        else:
            call.out("Driver package installed.")
    call.out(f"\nTotal driver packages:  1\nAdded driver packages:  {int(not existed)}\n")
    return ERROR_NO_MORE_ITEMS if restart is None else _finish(call, restart, options)


def _delete(call: Invocation, words: list[str], store: DriverStore, log: SetupLog) -> int:
    names, options = _split(words)
    if len(names) != 1 or not options <= {"/uninstall", "/force", "/reboot"}:
        return _bad_usage(call)
    restart = False
    installer = PackageInstaller(call.guest, store, log)
    with log.section(f"Delete Driver Package - {names[0]}", f"pnputil /delete-driver {' '.join(words)}"):
        package = store.find(names[0])
        if package is None:
            raise SetupFailure(ERROR_NOT_AN_INSTALLED_OEM_INF, f"'{names[0]}' is not in the store.")
        if "/uninstall" in options:
            restart = installer.uninstall(package)
        elif installer.installed(package) and "/force" not in options:
            raise SetupFailure(ERROR_INF_IN_USE_BY_DEVICES, f"'{names[0]}' is installed.")
        store.remove(package, later=restart)
        log.note("sto", f"Deleted '{package.directory}'.")
    if "/uninstall" in options:
        call.out("Driver package uninstalled.")
    call.out("Driver package deleted successfully.")
    return _finish(call, restart, options)


def _enumerate(call: Invocation, words: list[str], store: DriverStore, log: SetupLog) -> int:
    if words:
        return _bad_usage(call)
    packages = store.packages()
    for package in packages:
        for index, value in enumerate(_shown(package)):
            call.out(_line(call, index, value))
        call.out()
    if not packages:
        call.out("No published driver packages were found on the system.")
    return 0


_VERBS: Mapping[str, Callable[[Invocation, list[str], DriverStore, SetupLog], int]] = {
    "/add-driver": _add,
    "/delete-driver": _delete,
    "/enum-drivers": _enumerate,
}


def _shown(package: StorePackage) -> tuple[str, ...]:
    return (
        package.published,
        package.original,
        package.provider,
        package.class_name,
        package.class_guid,
        package.driver_version.replace(",", " "),
        package.signer,
    )


def _line(call: Invocation, index: int, value: str) -> str:
    labels = _LABELS.get(call.guest.settings.language, _LABELS["en"])
    return f"{labels[index] + ':':<{_WIDTH}}{value}"


def _finish(call: Invocation, restart: bool, options: set[str]) -> int:
    if not restart:
        return 0
    if "/reboot" not in options:
        call.out("System reboot is needed to complete the operation.")
        return ERROR_SUCCESS_REBOOT_REQUIRED
    try:
        call.guest.power.schedule(
            PowerAction.RESTART, delay_seconds=0, after_delivery=call.session.after_delivery
        )
    except ShutdownPendingError:
        return ERROR_SUCCESS_REBOOT_REQUIRED
    call.out("System reboot has been initiated.")
    return ERROR_SUCCESS_REBOOT_INITIATED


def _split(words: list[str]) -> tuple[list[str], set[str]]:
    return [word for word in words if word[:1] != "/"], {word for word in words if word[:1] == "/"}


def _bad_usage(call: Invocation) -> int:
    call.out(_USAGE)
    return ERROR_INVALID_PARAMETER
