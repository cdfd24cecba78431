"""`verifier`: Driver Verifier's command line; 0 done, 1 wrong, 2 done and in effect after the next boot."""

from __future__ import annotations

import re
import time
from dataclasses import replace

from vm.emulated.guest import verifier as settings_of
from vm.emulated.guest.commands import services
from vm.emulated.guest.commands.session import Invocation
from vm.emulated.guest.verifier import (
    FLAGS,
    RULE_CLASS_FLAGS,
    STANDARD_CLASSES,
    STANDARD_FLAGS,
    BootMode,
    Settings,
)

_RESTART_NEEDED = 2
_IMAGE = re.compile(r"[\w.\- ]+\.sys", re.IGNORECASE)
_REBOOT = "\nThe system must be restarted for the changes to take effect."


class _UsageError(Exception):
    """The arguments do not fit together."""


def verifier(call: Invocation) -> int:
    """`verifier /query | /querysettings | /standard|/flags F|/ruleclasses N... /driver X.sys... | /all | /bootmode M | /reset`."""
    words = [("/" + word[1:]).casefold() if word[:1] in "/-" else word for word in call.arguments]
    try:
        if not words:
            raise _UsageError("The manager of Driver Verifier needs a desktop.")
        match words[0]:
            case "/query":
                return _query(call)
            case "/querysettings":
                return _show(call, settings_of.configured(call.guest.registry))
            case "/reset":
                return _change(call, Settings())
            case "/volatile" | "/dif":
                raise _UsageError(f"{words[0]} is not available on the emulated machine.")
        return _change(call, _wanted(words, settings_of.configured(call.guest.registry)))
    except _UsageError as error:
        call.out(f"\nInvalid command line: {error}\nType 'verifier /?' for the list of options.")
        return 1


def _wanted(words: list[str], before: Settings) -> Settings:
    """The settings that a command line asks for."""
    result, chosen, drivers = before, False, False
    rest = list(words)
    while rest:
        word = rest.pop(0)
        match word:
            case "/standard":
                result, chosen = replace(result, flags=STANDARD_FLAGS, classes=STANDARD_CLASSES), True
            case "/flags":
                result, chosen = replace(result, flags=_flags(rest.pop(0) if rest else ""), classes=()), True
            case "/ruleclasses" | "/rc":
                classes = tuple(_class(rest.pop(0)) for _ in range(_count(rest)))
                if not classes:
                    raise _UsageError("/ruleclasses without a class")
                if 37 in classes and 5 not in classes:
                    raise _UsageError("rule class 37 needs rule class 5")
                flags = 0
                for number in classes:
                    flags |= RULE_CLASS_FLAGS[number]
                result, chosen = replace(result, flags=flags, classes=classes), True
            case "/driver":
                names = tuple(rest.pop(0) for _ in range(_count(rest)))
                wrong = next((name for name in names if not _IMAGE.fullmatch(name)), None)
                if not names or wrong is not None:
                    raise _UsageError(f"'{wrong or ''}' is not the name of a driver's file")
                result, drivers = replace(result, drivers=names), True
            case "/all":
                result, drivers = replace(result, drivers=("*",)), True
            case "/bootmode":
                mode = rest.pop(0).casefold() if rest else ""
                if mode not in {each.value for each in BootMode}:
                    raise _UsageError(f"'{mode}' is no boot mode")
                result = replace(result, mode=BootMode(mode))
                if not words[2:]:
                    return result
            case _:
                raise _UsageError(f"'{word}' is unknown")
    if not chosen or not (drivers or before.drivers):
        raise _UsageError("options and drivers go together")
    return result


def _count(rest: list[str]) -> int:
    """How many words come before the next option."""
    return next((index for index, word in enumerate(rest) if word.startswith("/")), len(rest))


def _class(text: str) -> int:
    if not text.isdecimal() or int(text) not in RULE_CLASS_FLAGS:
        raise _UsageError(f"'{text}' is no rule class")
    return int(text)


def _flags(text: str) -> int:
    try:
        number = int(text, 0)
    except ValueError as error:
        raise _UsageError(f"'{text}' is no number") from error
    known = 0
    for bit, _, _ in FLAGS:
        known |= bit
    if number & ~known:
        raise _UsageError(f"{number & ~known:#x} is no flag")
    return number


def _change(call: Invocation, wanted: Settings) -> int:
    registry = call.guest.registry
    before = settings_of.configured(registry)
    if wanted == before:
        call.out("\nNo settings were changed.")
        return 0
    settings_of.configure(registry, wanted)
    if wanted == Settings():
        call.out("\nAll Driver Verifier settings were reset.")
    else:
        _show(call, wanted)
    if wanted == settings_of.in_effect(registry):
        return 0
    call.out(_REBOOT)
    return _RESTART_NEEDED


def _show(call: Invocation, settings: Settings) -> int:
    call.out(f"\nVerifier Flags: {settings.flags:#010x}\n")
    for title, standard in (("Standard Flags:", True), ("Additional Flags:", False)):
        call.out(f"  {title}\n")
        for bit, name, is_standard in FLAGS:
            if is_standard is standard:
                call.out(f"    [{'X' if settings.flags & bit else ' '}] {bit:#010x} {name}")
        call.out()
    call.out("  Rule Classes:\n")
    call.out(f"    {' '.join(map(str, settings.classes)) or 'None'}\n")
    call.out(f"Boot Mode:\n\n  {settings.mode.value}\n")
    call.out("Rules:\n\n  All rules are using default settings\n")
    call.out("Verified Drivers:\n")
    for driver in settings.drivers or ("None",):
        call.out(f"  {driver}")
    return 0


def _query(call: Invocation) -> int:
    active = settings_of.in_effect(call.guest.registry)
    if not active.drivers:
        call.out("\nNo drivers are currently verified.")
        return 0
    call.out(time.strftime("%m/%d/%Y, %I:%M:%S %p", time.gmtime(call.guest.clock.now())))
    call.out(f"Level: {active.flags:08X}")
    for name in ("RaiseIrqls", "AcquireSpinLocks", "SynchronizeExecutions", "AllocationsAttempted"):
        call.out(f"{name}: 0")
    call.out("\nVerified drivers:\n")
    for image in _loaded_images(call):
        if active.covers(image):
            call.out(f"Name: {image}, loads: 1, unloads: 0")
            for name in ("CurrentPagedPoolAllocations", "CurrentNonPagedPoolAllocations"):
                call.out(f"{name}: 0")
            call.out()
    return 0


def _loaded_images(call: Invocation) -> list[str]:
    images = []
    for loaded in call.guest.computer().filters():
        service = services.read(call.guest.registry, loaded.name)
        path = service.image_path if service is not None else ""
        images.append(path.replace("/", "\\").rpartition("\\")[2].lower() or f"{loaded.name.lower()}.sys")
    return images
