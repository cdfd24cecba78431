"""Our PowerShell files in a guest: sent once by content, called with typed values, answers and secrets."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from harness.log import Log
from harness.remote.guest import Guest
from harness.remote.scripts import SOURCES, GuestScripts
from tests.harness.transport_lab import WAYS, Lab
from vm.deadline import Deadline
from vm.emulated.guest.commands import powershell
from vm.emulated.guest.scripts.call import Emulation, ScriptCall, ScriptRefusal
from vm.powershell.script import Script, ScriptError

READ = Script(SOURCES / "Read-File.ps1")

GREET = """#Requires -Version 5.1
<#
.SYNOPSIS
Greets.
.PARAMETER Name
Whom.
.PARAMETER Loudly
How.
#>
[CmdletBinding()]
param(
    [Parameter(Mandatory = $true)]
    [string]$Name,

    [switch]$Loudly
)
exit 0
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "lab")
    yield made
    made.stop()


@pytest.fixture
def greet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """A script that says what it was called with, and refuses to greet nobody."""

    def answer(call: ScriptCall) -> object:
        if call.text("Name") == "nobody":
            raise ScriptRefusal("nobody-there", "there is nobody to greet")
        found: dict[str, object] = {"name": call.text("Name"), "loudly": call.switch("Loudly")}
        if call.text("Name") == "secret":
            found["secret"] = dict(call.secret())["password"]
        return found

    known: Mapping[str, Emulation] = {
        **powershell.emulations(),
        "greet-guest": Emulation("Greet-Guest", answer),
    }
    monkeypatch.setattr(powershell, "emulations", lambda: known)
    path = tmp_path / "Greet-Guest.ps1"
    path.write_text(GREET, encoding="ascii")
    return Script(path)


def soon() -> Deadline:
    return Deadline.after(seconds=30)


@pytest.mark.parametrize("way", WAYS)
def test_a_script_is_sent_once_and_its_result_comes_back(lab: Lab, greet: Script, way: str) -> None:
    stream = io.StringIO()
    with lab.guest(way, Log(stream)) as guest:
        scripts = GuestScripts(guest)
        first = scripts.run(greet, {"Name": "a b & c", "Loudly": True}, soon())
        second = scripts.run(greet, {"Name": "x", "Loudly": False}, soon())
        # Another host of the same guest finds it there.
        GuestScripts(guest).run(greet, {"Name": "x"}, soon())

    assert first == {"name": "a b & c", "loudly": True}
    assert second == {"name": "x", "loudly": False}
    (there,) = lab.path("Downlink", "scripts").rglob("Greet-Guest.ps1")
    assert there.read_bytes() == greet.path.read_bytes()
    assert stream.getvalue().count("-File C:\\Downlink\\scripts") >= 3


def test_another_version_of_a_script_has_another_place(lab: Lab, greet: Script) -> None:
    with lab.guest("sftp") as guest:
        scripts = GuestScripts(guest)
        scripts.run(greet, {"Name": "x"}, soon())
        greet.path.write_text(GREET + "# changed\n", encoding="ascii")
        scripts.run(greet, {"Name": "x"}, soon())

    assert len(list(lab.path("Downlink", "scripts").rglob("Greet-Guest.ps1"))) == 2


def test_a_script_that_was_damaged_or_restored_away_is_sent_again(lab: Lab, greet: Script) -> None:
    with lab.guest("sftp") as guest:
        scripts = GuestScripts(guest)
        scripts.run(greet, {"Name": "x"}, soon())
        (there,) = lab.path("Downlink", "scripts").rglob("Greet-Guest.ps1")
        there.unlink()
        assert scripts.run(greet, {"Name": "y"}, soon())["name"] == "y"

        there.write_bytes(bytes(len(GREET)))
        assert GuestScripts(guest).run(greet, {"Name": "z"}, soon())["name"] == "z"


def test_a_refusal_keeps_its_code_and_sentence(lab: Lab, greet: Script) -> None:
    with lab.guest("sftp") as guest, pytest.raises(ScriptError, match="nobody to greet") as caught:
        GuestScripts(guest).run(greet, {"Name": "nobody"}, soon())

    assert (caught.value.code, caught.value.machine) == ("nobody-there", "lab")


@pytest.mark.parametrize("way", WAYS)
def test_a_secret_goes_over_standard_input_and_is_in_no_log(lab: Lab, greet: Script, way: str) -> None:
    stream = io.StringIO()
    secret = 'pä$$ "word" & 100%'
    with lab.guest(way, Log(stream)) as guest:
        found = GuestScripts(guest).run(greet, {"Name": "secret"}, soon(), secret={"password": secret})

    assert found["secret"] == secret
    assert secret not in stream.getvalue() and "100%" not in stream.getvalue()


def test_a_script_that_is_told_a_wrong_parameter_says_what_powershell_said(lab: Lab, greet: Script) -> None:
    with lab.guest("sftp") as guest, pytest.raises(ScriptError, match="without an answer"):
        GuestScripts(guest).run(greet, {"Nmae": "x"}, soon())


def test_a_value_that_cmd_would_change_is_refused_before_anything_is_sent(lab: Lab, greet: Script) -> None:
    with lab.guest("sftp") as guest, pytest.raises(ScriptError, match="cannot be called with these values"):
        GuestScripts(guest).run(greet, {"Name": "100%"}, soon())

    assert not lab.path("Downlink", "scripts").exists()


def test_a_script_that_is_missing_on_this_host_is_a_sentence(lab: Lab, tmp_path: Path) -> None:
    with lab.guest("sftp") as guest, pytest.raises(ScriptError, match="cannot be read"):
        GuestScripts(guest).run(Script(tmp_path / "Not-There.ps1"), {}, soon())


def test_the_files_scripts_answer_over_any_way(lab: Lab, guest_way: Guest) -> None:
    lab.path("Downlink").mkdir(exist_ok=True)
    lab.path("Downlink", "x").write_bytes(b"0123456789")

    found = GuestScripts(guest_way).run(READ, {"Path": "C:\\Downlink\\x", "Offset": 3, "Count": 4}, soon())

    assert found["size"] == 10 and base64.b64decode(found["data"]) == b"3456"


@pytest.fixture(params=WAYS)
def guest_way(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Guest]:
    with lab.guest(request.param) as guest:
        yield guest
