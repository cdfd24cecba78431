"""Tools about the system: verifier, w32tm, winrm, bcdedit, and all of them in another display language."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from vm.emulated.guest import boot, verifier
from vm.emulated.guest.commands.language import GERMAN, translated
from vm.emulated.guest.verifier import STANDARD_FLAGS, BootMode, Settings

CREATE = "sc create Downlink type= filesys binPath= C:\\x\\downlink.sys"


def restart(prompt: Any) -> None:
    boot.begin(prompt.guest.registry)


# verifier


def test_settings_take_effect_at_the_next_boot_and_then_cover_the_loaded_driver(prompt: Any) -> None:
    result = prompt("verifier /standard /driver downlink.sys")
    assert (result.code, "must be restarted" in result.out) == (2, True)
    assert "No drivers are currently verified." in prompt("verifier /query").out
    restart(prompt)
    prompt(CREATE)
    assert "Name: downlink.sys" not in prompt("verifier /query").out
    prompt("fltmc load Downlink")
    assert "Name: downlink.sys, loads: 1, unloads: 0" in prompt("verifier /query").out
    assert "Level: 000209BB" in prompt("verifier /query").out
    assert prompt("verifier /standard /driver downlink.sys").code == 0
    settings = prompt("verifier /querysettings").out
    assert "Verifier Flags: 0x000209bb" in settings
    assert "[X] 0x00000010 I/O verification" in settings
    assert re.search(r"Verified Drivers:\s+downlink.sys", settings)


def test_the_settings_are_where_windows_keeps_them(prompt: Any) -> None:
    prompt("verifier /standard /driver downlink.sys other.sys")
    key = verifier.MEMORY_MANAGEMENT
    assert prompt.guest.registry.get_string(key, "VerifyDrivers") == "downlink.sys other.sys"
    assert prompt.guest.registry.get_dword(key, "VerifyDriverLevel") == STANDARD_FLAGS
    assert 37 in verifier.configured(prompt.guest.registry).classes


def test_a_reset_needs_a_restart_if_something_was_in_effect(prompt: Any) -> None:
    assert prompt("verifier /reset").code == 0
    prompt("verifier /ruleclasses 5 37 /driver downlink.sys")
    assert verifier.configured(prompt.guest.registry) == Settings(0x10, (5, 37), ("downlink.sys",))
    restart(prompt)
    assert prompt("verifier /reset").code == 2
    assert verifier.in_effect(prompt.guest.registry).drivers == ("downlink.sys",)
    restart(prompt)
    assert verifier.in_effect(prompt.guest.registry) == Settings()


def test_settings_for_one_boot_are_gone_after_it(prompt: Any) -> None:
    assert prompt("verifier /bootmode oneboot /flags 0x10 /driver downlink.sys").code == 2
    restart(prompt)
    assert verifier.in_effect(prompt.guest.registry).mode is BootMode.ONE_BOOT
    restart(prompt)
    assert verifier.in_effect(prompt.guest.registry) == Settings()


@pytest.mark.parametrize(
    "words",
    [
        "",
        "/driver downlink.sys",
        "/standard",
        "/standard /driver",
        "/standard /driver downlink",
        "/flags 0x80000000 /driver x.sys",
        "/flags lots /driver x.sys",
        "/ruleclasses 37 /driver x.sys",
        "/ruleclasses 99 /driver x.sys",
        "/bootmode sometimes",
        "/volatile /flags 0x4",
        "/frob",
    ],
)
def test_verifier_refuses_what_does_not_fit_and_changes_nothing(prompt: Any, words: str) -> None:
    assert prompt(f"verifier {words}").code == 1
    assert verifier.configured(prompt.guest.registry) == Settings()


# w32tm


def test_a_small_difference_is_corrected_and_a_big_one_refused(prompt: Any) -> None:
    clock = prompt.guest.clock
    clock.step(-3600)
    assert prompt("w32tm /resync").code == 0
    assert abs(clock.offset) < 1
    clock.step(-86400)
    refused = prompt("w32tm /resync /force")
    assert (refused.code, "the required time change was too big" in refused.out) == (1, True)
    assert abs(clock.offset + 86400) < 1
    assert prompt("w32tm /query /status").code == 0
    assert prompt("w32tm /frob").code != 0


# winrm


def test_quotas_are_read_and_changed_as_text(prompt: Any) -> None:
    shown = prompt("winrm get winrm/config").out
    assert "    MaxEnvelopeSizekb = 500\r\n" in shown and "        MaxShellsPerUser = 30\r\n" in shown
    assert (
        prompt('winrm set winrm/config/winrs @{MaxShellsPerUser="50";MaxMemoryPerShellMB="2048"}').code == 0
    )
    assert prompt('winrm set winrm/config @{MaxTimeoutms="1800000"}').code == 0
    assert prompt('winrm set winrm/config @{MaxEnvelopeSizekb="1024"}').code == 0
    quotas = prompt.guest.settings.quotas
    assert (quotas.max_shells_per_user, quotas.max_timeout_seconds) == (50, 1800.0)
    assert (quotas.max_envelope_bytes, quotas.max_memory_per_shell_mb) == (1 << 20, 2048)
    assert "MaxShellsPerUser = 50" in prompt("winrm get winrm/config/winrs").out


@pytest.mark.parametrize(
    "words",
    [
        'set winrm/config/winrs @{MaxShellsPerUser="0"}',
        'set winrm/config/winrs @{MaxShellsPerUser="many"}',
        'set winrm/config @{MaxShellsPerUser="5"}',
        "set winrm/config @{}",
        "set winrm/config",
        "get winrm/nothing",
        "frob",
    ],
)
def test_winrm_refuses_what_is_no_quota(prompt: Any, words: str) -> None:
    before = str(prompt.guest.settings.quotas)
    assert prompt(f"winrm {words}").code == 1
    assert str(prompt.guest.settings.quotas) == before


def test_a_changed_quota_holds_for_the_next_request(own_machine: Any, run_command: Any) -> None:
    machine = own_machine(chaos="max-shells:1")
    protocol = machine.protocol()
    shell = protocol.open_shell()
    with pytest.raises(Exception, match="maximum number of shells"):
        protocol.open_shell()
    run_command(protocol, shell, 'winrm set winrm/config/winrs @{MaxShellsPerUser="2"}')
    assert protocol.open_shell()


# Languages


@pytest.fixture
def german(prompt: Any) -> Any:
    """The same commands in a German guest."""
    guest = replace(prompt.guest, settings=replace(prompt.guest.settings, language="de"))
    prompt.session.guest = guest
    return prompt


LINES = [
    CREATE,
    "sc query Downlink",
    "fltmc load Downlink",
    "fltmc",
    "fltmc instances",
    "fltmc unload nothing",
    "verifier /standard /driver downlink.sys",
    "verifier /querysettings",
    "schtasks /create /tn lab /tr cmd.exe /sc once /st 12:00 /ru SYSTEM",
    "schtasks /query /tn lab /v /fo list",
    "bcdedit /enum {current}",
    "sc query nothing",
]


def test_another_language_changes_labels_and_no_number_or_exit_code(prompt: Any, german: Any) -> None:
    german_guest = german.session.guest
    english_guest = replace(german_guest, settings=replace(german_guest.settings, language="en"))
    pairs = []
    for line in LINES:
        results = []
        for guest in (english_guest, german_guest):
            snapshot = guest.registry.snapshot()
            loaded = dict(prompt.computer.loaded)
            prompt.session.guest = guest
            results.append(prompt(line + (" /f" if "create /tn" in line else "")))
            if guest is english_guest:
                guest.registry.restore(snapshot)
                prompt.computer.loaded = loaded
        pairs.append(results)
    for line, (english, other) in zip(LINES, pairs, strict=True):
        assert english.code == other.code, line
        assert _numbers(english.out + english.err) == _numbers(other.out + other.err), line
    assert sum(english.out + english.err != other.out + other.err for english, other in pairs) >= 9


def _numbers(text: str) -> list[str]:
    return re.findall(r"0x[0-9a-fA-F]+|\d+", text)


def test_json_xml_and_what_files_hold_are_never_translated(german: Any) -> None:
    german.path("text.txt").write_text("ERROR: Access is denied.")
    assert german("type C:\\Work\\text.txt").out == "ERROR: Access is denied."
    assert german("echo SUCCESS: Ready").out == "SUCCESS: Ready\r\n"
    german.guest.events.write("System", "Ready", 1, 4, "Running", {"State": "Running"})
    assert "'Ready'" in german("wevtutil qe System").out
    assert "Running" in german("wevtutil qe System").out


def test_only_whole_words_are_translated() -> None:
    assert translated("Ready Already Ready.", "de") == "Bereit Already Bereit."
    assert translated("ERROR: x", "fr") == "ERROR: x"
    for english, german_text in GERMAN.items():
        assert re.findall(r"\d+", english) == re.findall(r"\d+", german_text)
