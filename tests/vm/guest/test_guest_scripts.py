"""Our PowerShell files in the emulated guest: found, checked, bound, answered; nothing else of PowerShell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vm.emulated.guest.commands import powershell
from vm.emulated.guest.scripts.call import Emulation, ScriptCall, ScriptRefusal, emulations, script
from vm.powershell.script import Script, ScriptError, answer, arguments

TEXT = """#Requires -Version 5.1
<#
.SYNOPSIS
    Says what it was told.
#>
[CmdletBinding()]
param(
    [Parameter(Mandatory = $true)] [string] $Name,
    [ValidateSet('one', 'two')] [string] $Kind = 'one',
    [int] $Count = 3,
    [switch] $Fail
)
'not run'
"""


@script("Test-Echo")
def echo(call: ScriptCall) -> object:
    if call.switch("Fail"):
        raise ScriptRefusal("asked-to", "it was asked to fail", hresult=0x80070005)
    if call.text("Name") == "secret":
        return call.secret()
    if call.text("Name") == "run":
        outcome = call.run("echo from <nul inside& dir C:\\nowhere")
        return [outcome.exit_code, outcome.stdout.splitlines()[0], outcome.stderr.strip()]
    return {
        "name": call.text("Name"),
        "kind": call.text("Kind"),
        "count": call.number("Count"),
        "path": call.path,
    }


@pytest.fixture
def scripts(prompt: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A prompt whose guest has Test-Echo.ps1, and whose project has an empty directory of scripts."""
    monkeypatch.setattr(powershell, "emulations", lambda: {"test-echo": echo})
    (tmp_path / "ours").mkdir()
    monkeypatch.setattr(powershell, "SCRIPT_DIRECTORIES", (tmp_path / "missing", tmp_path / "ours"))
    prompt.path("Test-Echo.ps1").write_text(TEXT, encoding="ascii")
    return prompt


def run(prompt: Any, *words: str, stdin: bytes = b"") -> Any:
    line = "powershell.exe -NoProfile -NonInteractive -ExecutionPolicy Bypass -File C:\\Work\\Test-Echo.ps1 "
    return prompt(line + " ".join(words), stdin)


def test_a_script_answers_with_one_line_of_json(scripts: Any) -> None:
    result = run(scripts, "-Name", '"grün & <x>"', "-Count", "7")
    assert (result.code, result.err) == (0, "")
    assert result.out == (
        '{"ok":true,"result":{"name":"grün \\u0026 \\u003cx\\u003e","kind":"one","count":7,'
        '"path":"C:\\\\Work\\\\Test-Echo.ps1"}}\r\n'
    )


def test_the_command_line_of_the_contract_is_understood(scripts: Any) -> None:
    words = arguments("C:\\Work\\Test-Echo.ps1", {"Name": "a", "Count": 2, "Fail": False})
    result = scripts(" ".join(words))
    assert answer(Script(Path("Test-Echo.ps1")), result.code, result.out, result.err)["count"] == 2
    result = scripts(" ".join(arguments("C:\\Work\\Test-Echo.ps1", {"Name": "a", "Fail": True})))
    with pytest.raises(ScriptError) as error:
        answer(Script(Path("Test-Echo.ps1")), result.code, result.out, result.err)
    assert (error.value.code, error.value.message) == ("asked-to", "it was asked to fail")
    assert json.loads(result.out)["error"]["hresult"] == 0x80070005 - (1 << 32)
    assert result.code == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-Nmae", "x"], "A parameter cannot be found that matches parameter name 'Nmae'."),
        (["-Count", "1"], "missing mandatory parameters: Name."),
        (["-Name", "x", "-Count", "many"], 'Cannot convert value "many" to type "System.Int32"'),
        (["-Name", "x", "-Kind", "three"], 'does not belong to the set "one,two"'),
    ],
)
def test_parameters_that_do_not_fit_end_with_1_and_powershells_sentence(
    scripts: Any, words: list[str], said: str
) -> None:
    result = run(scripts, *words)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("C:\\Work\\Test-Echo.ps1 : ")
    assert said in result.err


def test_a_secret_comes_on_standard_input(scripts: Any) -> None:
    result = run(scripts, "-Name", "secret", stdin=b'\xef\xbb\xbf{"password": "x"}')
    assert json.loads(result.out)["result"] == {"password": "x"}
    result = run(scripts, "-Name", "secret", stdin=b"x")
    assert json.loads(result.out)["error"]["code"] == "secret-missing"


def test_a_script_runs_inbox_commands(scripts: Any) -> None:
    assert json.loads(run(scripts, "-Name", "run").out)["result"] == [1, "from  inside", "File Not Found"]


def test_a_file_that_differs_from_the_projects_script_is_refused(scripts: Any, tmp_path: Path) -> None:
    ours = tmp_path / "ours" / "test-echo.PS1"
    ours.write_text(TEXT, encoding="ascii")
    assert run(scripts, "-Name", "x").code == 0
    ours.write_text(TEXT + "# changed\n", encoding="ascii")
    result = run(scripts, "-Name", "x")
    assert (result.code, result.out) == (powershell.EXIT_NOT_AVAILABLE, "")
    assert "'C:\\Work\\Test-Echo.ps1' is not this project's 'test-echo.PS1'" in result.err


def test_a_script_without_an_emulation_is_refused_in_one_sentence(scripts: Any) -> None:
    scripts.path("Other.ps1").write_text(TEXT, encoding="ascii")
    result = scripts("powershell -File Other.ps1 -Name x")
    assert result.code == powershell.EXIT_NOT_AVAILABLE
    assert result.err == "powershell: the script 'Other.ps1' is not available on the emulated machine.\r\n"


def test_a_file_that_cannot_be_a_script_is_refused_by_powershell_itself(scripts: Any) -> None:
    missing = scripts("powershell -nop -ep bypass -f C:\\Work\\Missing.ps1")
    assert missing.code == powershell.EXIT_BAD_COMMAND_LINE
    assert "The argument 'C:\\Work\\Missing.ps1' to the -File parameter does not exist." in missing.err
    scripts.path("text.txt").write_text("x")
    assert "does not have a '.ps1' extension" in scripts("powershell -File text.txt").err
    assert scripts("powershell -File").code == powershell.EXIT_BAD_COMMAND_LINE


def test_the_execution_policy_counts(scripts: Any) -> None:
    refused = scripts("powershell -ExecutionPolicy Restricted -File Test-Echo.ps1 -Name x")
    assert refused.code == 1
    assert "running scripts is disabled on this system" in refused.err
    assert scripts("powershell -File Test-Echo.ps1 -Name x").code == 0


@pytest.mark.parametrize(
    "line",
    [
        "powershell",
        'powershell -NoProfile -Command "exit 0"',
        "powershell -enc ZQ==",
        "powershell -",
        "powershell exit",
    ],
)
def test_everything_but_files_stays_refused(scripts: Any, line: str) -> None:
    result = scripts(line, b"exit 0\n")
    assert result.code == powershell.EXIT_NOT_AVAILABLE
    assert "commands of PowerShell are not available on the emulated machine" in result.err


def test_every_emulation_of_the_package_is_found_once() -> None:
    for name, emulation in emulations().items():
        assert isinstance(emulation, Emulation)
        assert name == emulation.name.casefold()
