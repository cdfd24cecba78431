"""`systeminfo`, `hostname` and `whoami`: who and what the guest is."""

from __future__ import annotations

import csv
import io
import time

from vm.emulated.guest.boot import PRODUCT_NAME, WINDOWS_VERSION
from vm.emulated.guest.commands.session import Invocation

_PRIVILEGES = (
    ("SeLoadDriverPrivilege", "Load and unload device drivers"),
    ("SeBackupPrivilege", "Back up files and directories"),
    ("SeRestorePrivilege", "Restore files and directories"),
    ("SeShutdownPrivilege", "Shut down the system"),
    ("SeDebugPrivilege", "Debug programs"),
    ("SeChangeNotifyPrivilege", "Bypass traverse checking"),
    ("SeImpersonatePrivilege", "Impersonate a client after authentication"),
)
_GROUPS = (
    ("Everyone", "Well-known group", "S-1-1-0", "Mandatory group, Enabled by default, Enabled group"),
    (
        "BUILTIN\\Administrators",
        "Alias",
        "S-1-5-32-544",
        "Mandatory group, Enabled by default, Enabled group, Group owner",
    ),
    (
        "NT AUTHORITY\\NETWORK",
        "Well-known group",
        "S-1-5-2",
        "Mandatory group, Enabled by default, Enabled group",
    ),
    ("Mandatory Label\\High Mandatory Level", "Label", "S-1-16-12288", ""),
)


def hostname(call: Invocation) -> int:
    """`hostname`."""
    call.out(call.guest.settings.computer_name)
    return 0


def systeminfo(call: Invocation) -> int:
    """`systeminfo [/fo list|csv] [/nh]`."""
    words = [word.casefold() for word in call.arguments]
    layout = words[words.index("/fo") + 1] if "/fo" in words[:-1] else "list"
    boot = time.localtime(call.guest.computer().boot_time)
    facts = [
        ("Host Name", call.guest.settings.computer_name),
        ("OS Name", f"Microsoft {PRODUCT_NAME}"),
        ("OS Version", f"{WINDOWS_VERSION.rsplit('.', 1)[0]} N/A Build {WINDOWS_VERSION.split('.')[2]}"),
        ("OS Manufacturer", "Microsoft Corporation"),
        ("OS Configuration", "Standalone Server"),
        ("System Boot Time", time.strftime("%m/%d/%Y, %I:%M:%S %p", boot)),
        ("System Manufacturer", "Downlink"),
        ("System Model", "Emulated machine"),
        ("System Type", "x64-based PC"),
        ("Windows Directory", "C:\\Windows"),
        ("System Locale", "en-us;English (United States)"),
        ("Domain", "WORKGROUP"),
    ]
    if layout == "csv":
        text = io.StringIO()
        writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
        if "/nh" not in words:
            writer.writerow([name for name, _ in facts])
        writer.writerow([value for _, value in facts])
        call.out(text.getvalue().removesuffix("\n"))
        return 0
    call.out()
    for name, value in facts:
        call.out(f"{name + ':':<27}{value}")
    return 0


def whoami(call: Invocation) -> int:
    """`whoami [/priv | /groups | /user | /all]`: an elevated administrator over the network."""
    settings = call.guest.settings
    account = f"{settings.computer_name}\\{settings.username}".lower()
    words = {
        word.casefold()
        for word in call.arguments
        if word.casefold() not in ("/fo", "list", "table", "csv", "/nh")
    }
    if not words:
        call.out(account)
        return 0
    if not words <= {"/priv", "/groups", "/user", "/all"}:
        call.err(f"ERROR: Invalid argument/option - '{sorted(words)[0]}'.\nType \"WHOAMI /?\" for usage.")
        return 1
    if words & {"/user", "/all"}:
        call.out("\nUSER INFORMATION\n----------------\n")
        call.out(f"{'User Name':<30} SID\n{'=' * 30} {'=' * 44}")
        call.out(f"{account:<30} S-1-5-21-1004336348-1177238915-682003330-1000")
    if words & {"/groups", "/all"}:
        call.out("\nGROUP INFORMATION\n-----------------\n")
        call.out(f"{'Group Name':<40} {'Type':<16} {'SID':<14} Attributes")
        call.out(f"{'=' * 40} {'=' * 16} {'=' * 14} {'=' * 50}")
        for name, kind, sid, attributes in _GROUPS:
            call.out(f"{name:<40} {kind:<16} {sid:<14} {attributes}".rstrip())
    if words & {"/priv", "/all"}:
        call.out("\nPRIVILEGES INFORMATION\n----------------------\n")
        call.out(f"{'Privilege Name':<29} {'Description':<45} State")
        call.out(f"{'=' * 29} {'=' * 45} =======")
        for name, description in _PRIVILEGES:
            call.out(f"{name:<29} {description:<45} Enabled")
    return 0
