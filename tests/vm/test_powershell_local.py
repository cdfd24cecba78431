"""Our PowerShell files as child processes of this host, with a program that stands for powershell.exe."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from vm.deadline import Deadline
from vm.errors import DeadlineExceededError
from vm.powershell.local import LocalPowerShell
from vm.powershell.script import Script, ScriptError

SCRIPT = Script(Path("Get-Thing.ps1"))


def program(tmp_path: Path, body: str) -> LocalPowerShell:
    file = tmp_path / "program.py"
    file.write_text(f"import json, os, subprocess, sys, time\n{body}\n", encoding="utf-8")
    return LocalPowerShell([sys.executable, str(file)], machine="hv")


def soon() -> Deadline:
    return Deadline.after(seconds=20)


def test_parameters_are_words_and_the_secret_is_standard_input(tmp_path: Path) -> None:
    echo = "print(json.dumps({'ok': True, 'result': [sys.argv[1:], sys.stdin.read()]}))"
    words, given = program(tmp_path, echo).run(
        SCRIPT, {"Name": "a b", "Count": 3, "Fast": True, "Slow": False}, soon(), secret={"password": "wört"}
    )
    assert words[-6:] == ["Get-Thing.ps1", "-Name", "a b", "-Count", "3", "-Fast"]
    assert given == '{"password": "w\\u00f6rt"}' and "password" not in str(words)


def test_a_script_that_outlives_its_deadline_goes_with_its_children(tmp_path: Path) -> None:
    body = (
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\ntime.sleep(600)"
    )
    with pytest.raises(DeadlineExceededError, match="'Get-Thing' did not end in time and was killed"):
        program(tmp_path, body).run(SCRIPT, {}, Deadline.after(seconds=1.5))
    child = int((tmp_path / "pid").read_text())
    ends = Deadline.after(seconds=5)
    while Path(f"/proc/{child}/stat").exists() and " Z " not in Path(f"/proc/{child}/stat").read_text():
        ends.check("the child to be gone")
        time.sleep(0.02)


def test_much_output_over_several_waits_arrives_whole(tmp_path: Path) -> None:
    body = (
        "time.sleep(1.2)\nprint('x' * 300_000)\nprint(json.dumps({'ok': True, 'result': sys.stdin.read()}))"
    )
    assert program(tmp_path, body).run(SCRIPT, {}, soon(), secret={"a": "b"}) == '{"a": "b"}'


def test_a_refusal_keeps_its_code(tmp_path: Path) -> None:
    body = "print(json.dumps({'ok': False, 'error': {'code': 'vm-not-found', 'message': 'no'}})); sys.exit(1)"
    with pytest.raises(ScriptError, match="no") as caught:
        program(tmp_path, body).run(SCRIPT, {}, soon())
    assert caught.value.code == "vm-not-found"


@pytest.mark.skipif(os.name == "nt", reason="says what is missing elsewhere than on Windows")
def test_elsewhere_than_on_windows_it_says_so() -> None:
    with pytest.raises(ScriptError) as caught:
        LocalPowerShell().run(SCRIPT, {}, soon())
    assert caught.value.code == "not-windows"


def test_a_program_that_is_not_there_is_told() -> None:
    with pytest.raises(ScriptError, match="'/none/powershell' cannot be started") as caught:
        LocalPowerShell(["/none/powershell"]).run(SCRIPT, {}, soon())
    assert caught.value.code == "powershell-missing"
