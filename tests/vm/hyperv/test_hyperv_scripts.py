"""The PowerShell files of Hyper-V machines as far as they can be judged without PowerShell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vm.hyperv import host
from vm.hyperv.host import SCRIPTS
from vm.hyperv.standin.actions import ACTIONS
from vm.powershell.declaration import parse_declaration

FILES = sorted(SCRIPTS.glob("*.ps1"))
_FUNCTION = re.compile(r"^function ([A-Za-z]+-[A-Za-z]+) \{$.*?^\}$", re.MULTILINE | re.DOTALL)


def test_every_script_has_its_stand_in_and_no_stand_in_is_left_over() -> None:
    assert {path.stem for path in FILES} == set(ACTIONS)


def test_what_scripts_share_is_the_same_text_in_all_of_them() -> None:
    seen: dict[str, tuple[str, str]] = {}
    for path in FILES:
        for found in _FUNCTION.finditer(path.read_text(encoding="ascii")):
            first, text = seen.setdefault(found[1], (path.name, found[0]))
            assert found[0] == text, f"'{found[1]}' in '{path.name}' is another one than in '{first}'"
    assert {"Write-Answer", "Get-Refusal", "Assert-HyperV", "Get-OwnMachine", "Invoke-InGuest"} <= set(seen)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_script_that_changes_a_machine_asks_for_its_mark(path: Path) -> None:
    names = {p.name for p in parse_declaration(path.read_text(encoding="ascii")).parameters}
    if "Name" in names and path.stem not in ("Get-Machine", "New-Switch", "Remove-Switch"):
        assert "Mark" in names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_errors_of_a_script_have_codes_that_python_can_tell_apart(path: Path) -> None:
    for thrown in re.findall(r"throw \(?['\"]([^'\"]*)", path.read_text(encoding="ascii")):
        assert re.match(r"^[a-z0-9]+(-[a-z0-9]+)+: ", thrown), f"{path.name}: {thrown}"


def test_every_refusal_of_a_script_has_a_mend() -> None:
    """A code is thrown as "code: message"; what to do about it is said where the error is made."""
    thrown: set[str] = set()
    for path in SCRIPTS.glob("*.ps1"):
        thrown |= set(re.findall(r"throw \(?[\"']([a-z-]+):", path.read_text(encoding="ascii")))
    assert len(thrown) > 30
    # The harness gives the secret itself: without one the script was called by hand.
    assert thrown - set(host._HINTS) == {"secret-missing"}
