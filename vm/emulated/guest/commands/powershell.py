"""`powershell -File`: our own scripts, emulated per file; everything else says that PowerShell is not there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from vm.emulated.guest.commands.session import Invocation
from vm.emulated.guest.drive import WindowsPathError
from vm.emulated.guest.scripts.call import Emulation, ScriptCall, ScriptRefusal, emulations
from vm.errors import DownlinkError
from vm.powershell.binding import BindingError, bind
from vm.powershell.declaration import DeclarationError, parse_declaration

EXIT_NOT_AVAILABLE = 0xFFFF0000
"""What powershell.exe itself ends with when it cannot start (-65536)."""
EXIT_BAD_COMMAND_LINE = 0xFFFD0000
"""What it ends with when -File names nothing it can run (-196608)."""
EXIT_FAILED = 1
"""What it ends with after a terminating error, an unbound parameter among them."""

_VM = Path(__file__).resolve().parents[3]
SCRIPT_DIRECTORIES = (_VM / "windows" / "scripts", _VM / "hyperv" / "scripts")
"""Where this project keeps its `.ps1` files."""

_SWITCHES = ("noprofile", "noninteractive", "nologo", "sta", "mta", "noexit")
_WITH_VALUE = ("executionpolicy", "inputformat", "outputformat", "windowstyle", "version", "psconsolefile")
_ALIASES: Mapping[str, str] = {"ep": "executionpolicy", "ec": "encodedcommand", "e": "encodedcommand"}
_NAMES = (*_SWITCHES, *_WITH_VALUE, "file", "command", "encodedcommand")
_POLICIES = ("bypass", "unrestricted", "remotesigned", "default", "undefined")


def powershell(call: Invocation) -> int:
    """`powershell [-NoProfile] [-NonInteractive] [-ExecutionPolicy P] -File script.ps1 [parameters]`."""
    policy = "remotesigned"
    words = list(call.arguments)
    while words:
        word = words.pop(0)
        name = _option(word)
        if name in _SWITCHES:
            continue
        if name in _WITH_VALUE:
            value = words.pop(0) if words else ""
            if name == "executionpolicy":
                policy = value.casefold()
            continue
        if name == "file":
            return _file(call, words, policy)
        break
    call.err(
        "powershell: commands of PowerShell are not available on the emulated machine, only this project's scripts "
        "with -File; use the inbox commands or python."
    )
    return EXIT_NOT_AVAILABLE


def find_script(name: str) -> Path | None:
    """This project's script of that file name (without case); None if there is none."""
    for directory in SCRIPT_DIRECTORIES:
        if directory.is_dir():
            for file in directory.iterdir():
                if file.name.casefold() == name.casefold():
                    return file
    return None


def _option(word: str) -> str:
    """The full name of an option of powershell.exe, which takes any beginning that is unique enough; "" if none."""
    if word[:1] not in ("-", "/"):
        return ""
    text = word[1:].casefold()
    if text in _ALIASES:
        return _ALIASES[text]
    return next((name for name in _NAMES if text and name.startswith(text)), "")


def _file(call: Invocation, words: list[str], policy: str) -> int:
    if not words:
        call.err("The -File parameter requires a file path.")
        return EXIT_BAD_COMMAND_LINE
    named = words.pop(0)
    try:
        host = call.guest.drive.existing(named, directory=call.session.directory)
        path = call.guest.drive.windows_path(host)
        text = _decoded(host.read_bytes())
    except (WindowsPathError, OSError):
        call.err(
            f"The argument '{named}' to the -File parameter does not exist. Provide the path to an existing '.ps1' "
            "file as an argument to the -File parameter."
        )
        return EXIT_BAD_COMMAND_LINE
    if host.suffix.casefold() != ".ps1":
        call.err(
            f"Processing -File '{named}' failed because the file does not have a '.ps1' extension. Specify a valid "
            "PowerShell script file name, and then try again."
        )
        return EXIT_BAD_COMMAND_LINE
    if policy not in _POLICIES:
        call.err(
            f"File {path} cannot be loaded because running scripts is disabled on this system. For more information, "
            "see about_Execution_Policies at https:/go.microsoft.com/fwlink/?LinkID=135170."
        )
        return EXIT_FAILED
    emulation = emulations().get(host.stem.casefold())
    if emulation is None:
        call.err(f"powershell: the script '{host.name}' is not available on the emulated machine.")
        return EXIT_NOT_AVAILABLE
    ours = find_script(host.name)
    if ours is not None and _digest(ours) != _digest(host):
        call.err(
            f"powershell: '{path}' is not this project's '{ours.name}', which is all that the emulated machine can run."
        )
        return EXIT_NOT_AVAILABLE
    return _run(call, emulation, path, text, words)


def _run(call: Invocation, emulation: Emulation, path: str, text: str, words: list[str]) -> int:
    try:
        parameters = bind(parse_declaration(text, path), words)
    except (BindingError, DeclarationError) as error:
        call.err(f"{path} : {error.message}")
        call.err("    + CategoryInfo          : InvalidArgument: (:) [" + path.rpartition("\\")[2] + "], ")
        call.err(f"    + FullyQualifiedErrorId : {type(error).__name__},{path.rpartition(chr(92))[2]}")
        return EXIT_FAILED
    try:
        answer: dict[str, object] = {
            "ok": True,
            "result": emulation(ScriptCall(emulation.name, path, parameters, call)),
        }
    except ScriptRefusal as refusal:
        answer = _error(refusal.code, refusal.message, refusal.hresult)
    except DownlinkError as error:
        answer = _error("", error.message, 0x80131500)
    except WindowsPathError as error:
        answer = _error("", str(error), 0x80070000 | error.code)
    # ConvertTo-Json leaves letters beyond ASCII as they are and escapes these four.
    line = json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&'":
        line = line.replace(character, f"\\u{ord(character):04x}")
    call.out(line)
    return 0 if answer["ok"] else EXIT_FAILED


def _error(code: str, message: str, hresult: int) -> dict[str, object]:
    # HRESULT is a signed number to .NET.
    signed = hresult - (1 << 32) if hresult & 0x80000000 else hresult
    return {"ok": False, "error": {"code": code, "message": message, "hresult": signed}}


def _decoded(data: bytes) -> str:
    """The text of a script: with a byte order mark what it says, else UTF-8 (our files are ASCII)."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    return data.decode("utf-8-sig", "replace")


def _digest(file: Path) -> bytes:
    return hashlib.sha256(file.read_bytes()).digest()
