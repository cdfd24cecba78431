"""`where`: where a program would be found."""

from __future__ import annotations

from vm.emulated.guest.commands.files import matching
from vm.emulated.guest.commands.session import Invocation
from vm.emulated.guest.python_image import interpreter


def where(call: Invocation) -> int:
    """`where [/q] names`: the paths; 1 if one of them is nowhere."""
    # The catalog holds this command; importing it at the top would be a circle.
    from vm.emulated.guest.commands.catalog import PROGRAMS, PYTHON, SYSTEM32

    missing = call.guest.chaos.program_missing
    quiet = "/q" in {word.casefold() for word in call.arguments}
    names = [word for word in call.arguments if not word.startswith("/")]
    code = 0 if names else 2
    for name in names:
        found = [str(path) for path in _here(call, name)]
        folded = name.casefold()
        for program in PROGRAMS:
            if folded in (program, program.rpartition(".")[0]) and not missing(program):
                found.append(f"{SYSTEM32}\\{program}")
        there = interpreter(call.guest.drive.root).exists() and not missing("python.exe")
        if folded in ("python", "python.exe") and there:
            found.append(f"{PYTHON}\\python.exe")
        if not found:
            code = 1
            if not quiet:
                call.err("INFO: Could not find files for the given pattern(s).")
        elif not quiet:
            for path in found:
                call.out(path)
    return code


def _here(call: Invocation, name: str) -> list[str]:
    if "\\" in name or "/" in name:
        return []
    found = matching(name, call.session)
    return [call.guest.drive.windows_path(path) for path in found if path.is_file()]
