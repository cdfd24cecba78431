"""`bcdedit`: shows the boot entry and sets test signing."""

from __future__ import annotations

from vm.emulated.guest import boot
from vm.emulated.guest.commands.session import Invocation


def bcdedit(call: Invocation) -> int:
    """`bcdedit [/enum [{current}|all|active]]`, `bcdedit /set [{current}] testsigning on|off`."""
    words = [word.casefold() for word in call.arguments]
    if not words or words[0] == "/enum":
        return _enumerate(call, words[1:])
    if words[0] in ("/set", "/deletevalue"):
        rest = [word for word in words[1:] if word not in ("{current}", "{default}")]
        if "testsigning" in rest and boot.secure_boot_on(call.guest.registry):
            call.out("An error has occurred setting the element data.")
            call.out("The value is protected by Secure Boot policy and cannot be modified or deleted.")
            return 1
        if words[0] == "/deletevalue" and rest == ["testsigning"]:
            boot.set_testsigning(call.guest.registry, on=False)
        elif words[0] == "/set" and len(rest) == 2 and rest[0] == "testsigning":
            if rest[1] not in ("on", "off", "yes", "no", "true", "false", "1", "0"):
                call.out("The value specified is not valid for this element.")
                call.out('Run "bcdedit /?" for command line assistance.\nThe parameter is incorrect.')
                return 1
            boot.set_testsigning(call.guest.registry, on=rest[1] in ("on", "yes", "true", "1"))
        else:
            call.out("The set command specified is not valid.")
            call.out('Run "bcdedit /?" for command line assistance.\nThe parameter is incorrect.')
            return 1
        call.out("The operation completed successfully.")
        return 0
    call.out("The command specified is not valid.")
    call.out('Run "bcdedit /?" for command line assistance.')
    return 1


def _enumerate(call: Invocation, words: list[str]) -> int:
    if words and words[0] not in ("{current}", "{default}", "all", "active", "osloader"):
        call.out("The enum command specified is not valid.")
        return 1
    configured = boot.testsigning_configured(call.guest.registry)
    entries = [
        ("identifier", "{current}"),
        ("device", "partition=C:"),
        ("path", "\\Windows\\system32\\winload.efi"),
        ("description", "Windows Server"),
        ("locale", "en-US"),
        ("inherit", "{bootloadersettings}"),
        ("isolatedcontext", "Yes"),
        ("allowedinmemorysettings", "0x15000075"),
        ("osdevice", "partition=C:"),
        ("systemroot", "\\Windows"),
        ("nx", "OptOut"),
    ]
    if configured is not None:
        entries.insert(7, ("testsigning", "Yes" if configured else "No"))
    call.out()
    call.out("Windows Boot Loader\n-------------------")
    for name, value in entries:
        call.out(f"{name:<23} {value}")
    return 0
