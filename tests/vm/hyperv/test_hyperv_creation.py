"""Making a Hyper-V machine: what is refused before anything is changed, and what is removed when it fails later."""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import Any

import pytest

from tests.vm.hyperv.conftest import ISO, Secrets, Standin, quiet, soon
from vm.deadline import Deadline
from vm.errors import ConfigurationError, DeadlineExceededError, DownlinkError, MachineError
from vm.hyperv.machine import HypervMachine
from vm.machine import MachineState
from vm.managed import Source
from vm.powershell.local import LocalPowerShell

Make = Callable[..., HypervMachine]
QUESTIONS = ("Get-HostFacts", "Get-SourceFacts", "Get-IsoFacts", "Get-VhdxFacts", "Get-Machine")


def refused(machine: HypervMachine, host: Standin, source: Source = ISO) -> DownlinkError:
    """The error of a creation that must not have changed anything."""
    before = host.state
    with pytest.raises(DownlinkError) as caught:
        machine.create(source, soon(), quiet)
    assert set(host.names) <= set(QUESTIONS)
    after = host.state
    for key in ("machines", "switches", "files"):
        assert after[key] == before[key]
    assert machine.file.load() is None
    return caught.value


@pytest.mark.parametrize(
    ("source", "sentence", "mend"),
    [
        (Source(), "made from an ISO or from a virtual disk", "--iso"),
        (Source(iso=r"C:\a.iso", vhdx=r"C:\b.vhdx"), "made from an ISO or from a virtual disk", "--vhdx"),
        (Source(iso=r"C:\images\none.iso"), "there is no file", None),
        (Source(iso=r"C:\images\notes.txt"), "cannot be opened as an ISO", None),
        (Source(iso=r"C:\images\drivers.iso"), "holds neither sources", None),
        (Source(iso=r"C:\images\server.iso"), "more than one edition", "1 'Windows Server 2025 Standard"),
        (Source(iso=r"C:\images\server.iso", edition="Home"), "has no edition 'Home'", "2 'Windows Server"),
        (Source(vhdx=r"C:\images\none.vhdx"), "there is no file", None),
        (Source(vhdx=r"C:\images\notes.txt"), "cannot be opened as a virtual disk", None),
        (Source(vhdx=r"C:\images\installed.vhdx"), "installed already", "sysprep"),
        (Source(vhdx=r"C:\images\old.vhdx"), "has an MBR", "GPT"),
    ],
)
def test_a_wrong_image_is_one_sentence_before_anything_is_changed(
    machine: HypervMachine, host: Standin, source: Source, sentence: str, mend: str | None
) -> None:
    error = refused(machine, host, source)
    assert sentence in error.message
    assert mend is None or mend in str(error.hint)


@pytest.mark.parametrize(
    ("change", "sentence", "mend"),
    [
        ({"module": False}, "has no Hyper-V", "Enable-WindowsOptionalFeature"),
        ({"vmms": "stopped"}, "service does not run", "Start-Service vmms"),
        ({"administrator": False}, "may not manage Hyper-V", "elevated"),
        ({"memory_free_mb": 2000}, "not enough free memory", "memory_mb"),
        ({"processors": 1}, "has 1 processors", "cpus"),
        ({"disk_free_mb": 500}, "is full", "free space"),
    ],
)
def test_a_host_that_cannot_is_one_sentence_before_anything_is_changed(
    machine: HypervMachine, host: Standin, change: dict[str, Any], sentence: str, mend: str
) -> None:
    host.change(lambda state: state["host"].update(change))
    error = refused(machine, host)
    assert sentence in error.message and mend in str(error.hint)


def test_missing_offline_sources_are_named(machine: HypervMachine, host: Standin) -> None:
    sources = r"C:\ProgramData\Downlink\sources"
    host.change(
        lambda state: state["files"][sources].update(python=[], wheels=["pytest-8.4.2-py3-none-any.whl"])
    )
    error = refused(machine, host)
    assert "python.<version>.nupkg and wheels\\hypothesis-*.whl" in error.message
    assert "docs/windows.md" in str(error.hint)


def test_a_name_that_somebody_else_uses_is_refused_and_never_destroyed(
    machine: HypervMachine, host: Standin
) -> None:
    foreign = {"notes": "mine", "state": "off", "switch": "", "checkpoints": [], "memory_mb": 1, "cpus": 1}
    host.change(lambda state: state["machines"].update({"downlink-hv": foreign}))
    assert "already" in refused(machine, host).message
    with pytest.raises(MachineError, match="was not made by this checkout"):
        machine.describe()
    assert machine.destroy(soon()) == ()
    assert host.state["machines"]["downlink-hv"] == foreign


def test_settings_that_cannot_be_are_refused_by_name(make: Make) -> None:
    for key, value in {"vm": "a/b", "username": "x y", "disks": "relative", "address": "10.0.0.1"}.items():
        with pytest.raises(ConfigurationError, match=rf"machines\.hv\.{key}"):
            make(**{"address": "10.0.0.9", key: value})


def test_without_windows_and_without_a_host_that_is_said(make: Make) -> None:
    machine = make(script_hosts=lambda host: LocalPowerShell())
    with pytest.raises(MachineError, match="this host is not Windows") as caught:
        machine.create(ISO, soon(), quiet)
    assert "host =" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("fault", "how", "sentence"),
    [
        ("disk-full", {}, "is full"),
        ("out-of-memory", {}, "not enough free memory"),
        ("checkpoint-fails", {}, "Checkpoint operation failed"),
        ("secure-boot", {}, "Secure Boot is on"),
        ("verifier-ignored", {}, "does not verify 'downlink.sys'"),
        ("restore-ineffective", {}, "did not take back"),
        ("access-denied", {"script": "New-Machine"}, "may not manage Hyper-V"),
        ("garbage", {"script": "New-Machine"}, "without an answer"),
    ],
)
def test_a_creation_that_fails_leaves_nothing(
    make: Make, host: Standin, store: Secrets, fault: str, how: dict[str, Any], sentence: str
) -> None:
    machine = make(rules={"Downlink": {}} if fault == "verifier-ignored" else {})
    before = set(host.state["files"])
    host.fault(fault, **how)
    with pytest.raises(DownlinkError) as caught:
        machine.create(ISO, soon(), quiet)
    assert sentence in caught.value.message
    state = host.state
    assert (state["machines"], state["switches"]) == ({}, {})
    # The applied image stays for the next attempt.
    assert {path for path in set(state["files"]) - before if r"\parents" not in path} == set()
    assert machine.file.load() is None and store.kept == {}
    assert machine.state() is MachineState.ABSENT


@pytest.mark.parametrize("script", ["New-Machine", "Install-GuestPython", "New-Checkpoint"])
def test_ctrl_c_in_the_middle_leaves_nothing(
    machine: HypervMachine, host: Standin, store: Secrets, script: str
) -> None:
    def interrupt(name: str) -> None:
        if name == script:
            raise KeyboardInterrupt

    host.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        machine.create(ISO, soon(), quiet)
    assert (host.state["machines"], host.state["switches"], store.kept) == ({}, {}, {})
    assert machine.file.load() is None


def test_what_could_not_be_removed_is_told_and_vm_destroy_finishes_it(
    machine: HypervMachine, host: Standin
) -> None:
    host.fault("checkpoint-fails")
    host.fault("access-denied", script="Remove-Machine", times=1)
    with pytest.raises(DownlinkError) as caught:
        machine.create(ISO, soon(), quiet)
    assert "vm.destroy" in str(caught.value.hint)
    assert "could not be removed" in caught.value.render()
    with pytest.raises(MachineError, match="half made"):
        machine.restore(soon())
    host.heal()
    assert "downlink-hv" in machine.destroy(soon())
    assert host.state["machines"] == {}


def test_no_secret_is_a_parameter_and_the_first_password_does_not_last(
    machine: HypervMachine, host: Standin, store: Secrets
) -> None:
    machine.create(Source(vhdx=r"C:\images\server.vhdx"), soon(), quiet)
    lasting = store.kept["hv.password"]
    first = next(given for name, _, given in host.calls if name == "Set-DiskContent")
    assert lasting not in first
    for _, parameters, _ in host.calls:
        assert lasting not in str(parameters)
    assert lasting not in (machine.file.directory / "state.json").read_text()
    for name in ("state.json", "id_ed25519"):
        assert stat.S_IMODE((machine.file.directory / name).stat().st_mode) == 0o600
    guest = host.state["machines"]["downlink-hv"]["guest"]
    assert guest["password"] == lasting and guest["answers"] is False
    assert host.state["files"][r"C:\images\server.vhdx"]["read_only"]


def test_credentials_that_are_invalid_early_in_boot_are_waited_for(
    machine: HypervMachine, host: Standin
) -> None:
    host.fault("credential-invalid", times=4, script="Test-Guest")
    machine.create(ISO, soon(), quiet)
    assert host.names.count("Test-Guest") >= 5
    assert [point.name for point in machine.checkpoints(soon())] == ["clean"]


def test_a_guest_that_never_shows_a_heartbeat_is_told_with_what_was_seen(
    machine: HypervMachine, host: Standin
) -> None:
    host.fault("stuck-starting")
    with pytest.raises(DeadlineExceededError, match="the machine is starting, its heartbeat is 'nocontact'"):
        machine.create(ISO, Deadline.after(seconds=3), quiet)
    assert host.state["machines"] == {}
