"""`python -m vm.hyperv.standin [options of powershell.exe] -File SCRIPT -Name value ...`: see the package."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VARIABLE = "DOWNLINK_STANDIN"
"""Environment variable that names the stand-in's directory."""

HANG_SECONDS = 3600


def run(root: Path, words: Sequence[str], given: str) -> tuple[int, str, str]:
    """Play one call of powershell.exe.

    Args:
        root: the stand-in's directory.
        words: the command line after the program.
        given: standard input.

    Returns:
        exit code, standard output, standard error.
    """
    from vm.hyperv.standin.actions import ACTIONS, Host
    from vm.hyperv.standin.faults import Faults
    from vm.hyperv.standin.store import Refusal, Store
    from vm.powershell.binding import BindingError, bind
    from vm.powershell.declaration import parse_declaration

    lower = [word.casefold() for word in words]
    if "-file" not in lower[:-1]:
        return 1, "", "the stand-in runs files only: -File SCRIPT"
    position = lower.index("-file")
    path = Path(words[position + 1])
    if not path.is_file():
        message = f"The argument '{path}' to the -File parameter does not exist."
        return 0xFFFD0000, "", message
    try:
        bound = bind(parse_declaration(path.read_text(encoding="ascii"), path.name), words[position + 2 :])
    except BindingError as error:
        return 1, "", f"{path} : {error.message}"
    values: dict[str, Any] = dict(bound)
    if given.strip():
        values["secret"] = json.loads(given)
    place = Store(root)
    with place.opened() as state:
        faults = Faults(state, path.stem)
        if faults.strike("garbage") is not None:
            return 0, "WARNING: a profile printed this\n", ""
        hangs = faults.strike("hang") is not None
        try:
            if not hangs:
                faults.refuse()
                answer: dict[str, Any] = {
                    "ok": True,
                    "result": ACTIONS[path.stem](Host(place, state, faults), values),
                }
        except Refusal as refusal:
            answer = {
                "ok": False,
                "error": {"code": refusal.code, "message": str(refusal), "hresult": -2146233087},
            }
    if hangs:
        time.sleep(HANG_SECONDS)
    return int(not answer["ok"]), json.dumps(answer) + "\n", ""


def main() -> int:
    root = os.environ.get(VARIABLE)
    if not root:
        sys.stderr.write(f"set {VARIABLE} to a directory for the stand-in\n")
        return 1
    given = "" if sys.stdin.isatty() else sys.stdin.read()
    code, out, errors = run(Path(root), sys.argv[1:], given)
    sys.stdout.write(out)
    sys.stderr.write(errors)
    # A byte is all that a POSIX host keeps.
    return code if os.name == "nt" or code < 256 else 1


if __name__ == "__main__":
    sys.exit(main())
