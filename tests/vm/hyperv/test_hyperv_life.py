"""The life of one Hyper-V machine before the stand-in: made, restored, tested on, broken, cloned, removed.

One machine for the whole file, because making one takes seconds; each test leaves it as it was.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from harness import config, verbs
from harness.builds import prepare
from harness.console import Console
from harness.remote.guest import Guest
from tests.vm.hyperv.conftest import ISO, Secrets, Standin, free_ports, quiet, soon
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError, DownlinkError, MachineError
from vm.hyperv.machine import HypervMachine
from vm.hyperv.standin.__main__ import VARIABLE
from vm.machine import MachineState
from vm.registry import KINDS

ROOT = Path(__file__).resolve().parents[3]


class Lab:
    """The machine, its host and a checkout with nothing but it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Secrets()
        self.host = Standin(root / "host")
        ports = free_ports(6)
        self.settings: dict[str, Any] = {
            "address": "127.0.0.1",
            "winrm_port": ports[0],
            "ssh_port": ports[1],
            "rules": {"Downlink": {}},
            "script_hosts": self.host,
            "secrets": self.store,
            "guests": lambda address: Guest(address, machine="hv"),
            "_credential_seconds": 0.2,
        }
        self.machine = self.made()

    def made(self, **settings: Any) -> HypervMachine:
        return HypervMachine("hv", self.root / ".machines" / "hv", {**self.settings, **settings})

    def configuration(self) -> config.Configuration:
        found = config.load(ROOT)
        machine = config.MachineConfig("hv", KINDS["hyperv"], MappingProxyType({}))
        for name in ("driver", "harness", "tests"):
            if not (self.root / name).exists():
                (self.root / name).symlink_to(ROOT / name, target_is_directory=True)

        class Here(config.Configuration):
            def create_machine(
                here,  # noqa: N805
                name: Any,
                driver: Any,
                checkpoint: str | None = None,
            ) -> HypervMachine:
                return self.made(checkpoint=checkpoint) if checkpoint else self.machine

        values = {name: getattr(found, name) for name in config.Configuration.__dataclass_fields__}
        values |= {"root": self.root, "machines": MappingProxyType({"hv": machine}), "default_machine": "hv"}
        values["runs"] = replace(found.runs, directory=self.root / "runs")
        return Here(**values)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "")
        patch.setenv("PYTHONPATH", str(ROOT))
        lab = Lab(tmp_path_factory.mktemp("lab"))
        lab.machine.create(ISO, soon(), quiet)
        yield lab
        lab.host.heal()
        assert "downlink-hv" in lab.machine.destroy(soon())
        # The parent image and the switch stay for other machines; nothing of this one does.
        assert lab.host.state["machines"] == {} and lab.store.kept == {}
        assert lab.machine.file.load() is None


@pytest.fixture(autouse=True)
def healed(lab: Lab) -> Iterator[None]:
    yield
    lab.host.heal()


def test_a_new_machine_is_stopped_and_has_both_checkpoints(lab: Lab) -> None:
    assert lab.machine.state() is MachineState.STOPPED
    assert [point.name for point in lab.machine.checkpoints(soon())] == ["clean", "verifier"]
    with pytest.raises(MachineError, match="is there already"):
        lab.machine.create(ISO, soon(), quiet)


def test_a_restore_takes_back_what_was_written_and_is_measured(lab: Lab) -> None:
    path = r"C:\Downlink\left.txt"
    with Guest(lab.machine.restore(soon()), machine="hv") as guest:
        guest.put_bytes(b"x", path, soon())
        first = guest.boot_identity(soon())
    lab.host.calls.clear()
    with Guest(lab.machine.restore(soon()), machine="hv") as guest:
        assert guest.read_bytes(path, soon()) is None
        assert guest.boot_identity(soon()) == first, "memory was restored, nothing has booted"
    timings = lab.machine.timings
    assert timings is not None and timings.ready_s > 0 and timings.restore_s > 0
    assert [name for name, _ in timings.conditions] == ["heartbeat", "guest", "port", "winrm", "command"]
    assert timings.skew_s < -1, "the guest lived in the time of its checkpoint until its clock was set"
    nonces = [p for name, p, _ in lab.host.calls if name == "Resume-Guest"]
    assert nonces[0]["FormerNonce"] != nonces[0]["Nonce"]


def test_a_suite_runs_on_it_from_the_restore_to_the_verdict(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOWNLINK_SECRET_HV_PASSWORD", lab.store.kept["hv.password"])
    out = io.StringIO()
    choices = verbs.Choices(machine="hv", select="test_connect")
    build = prepare(config.load(ROOT), None, None, None)
    status = verbs.test(lab.configuration(), choices, build, Console(out, out))
    assert status == 0, out.getvalue()
    assert "passed" in out.getvalue()
    assert lab.machine.state() is MachineState.STOPPED


def test_a_suite_under_the_verifier_finds_it_on(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOWNLINK_SECRET_HV_PASSWORD", lab.store.kept["hv.password"])
    out = io.StringIO()
    choices = verbs.Choices(machine="hv", select="test_connect", checkpoint="verifier")
    build = prepare(config.load(ROOT), None, None, None)
    assert verbs.test(lab.configuration(), choices, build, Console(out, out)) == 0, out.getvalue()
    # Without the verifier's settings in the guest the look at it would have stopped the run.
    assert "look at the guest" in out.getvalue()


def test_calls_at_the_same_time_do_not_lose_what_another_one_did(lab: Lab) -> None:
    calls = 12

    def count(number: int) -> None:
        lab.host.change(lambda state: state["host"].setdefault("counted", []).append(number))

    with ThreadPoolExecutor(calls) as pool:
        list(pool.map(count, range(calls)))

    assert sorted(lab.host.state["host"].pop("counted")) == list(range(calls))
    lab.host.change(lambda state: state["host"].pop("counted"))


def test_a_checkpoint_that_is_missing_is_told_with_those_there_are(lab: Lab) -> None:
    with pytest.raises(MachineError, match="no checkpoint 'other', it has: clean, verifier"):
        lab.made(checkpoint="other").restore(soon())
    with pytest.raises(MachineError, match="has a checkpoint 'clean' already"):
        lab.machine.checkpoint("clean", soon())


@pytest.mark.parametrize(
    ("fault", "how", "sentence", "mend"),
    [
        ("merge-in-progress", {}, "still merging", "Get-VM downlink-hv"),
        ("vmms-stopped", {"script": "Restore-Machine"}, "service does not run", "Start-Service vmms"),
        ("access-denied", {"script": "Restore-Machine"}, "may not manage", "Hyper-V Administrators"),
        ("out-of-memory", {"script": "Restore-Machine"}, "not enough free memory", "memory_mb"),
        ("garbage", {"script": "Restore-Machine"}, "without an answer", "by hand"),
        ("credential-invalid", {}, "refuses the user name 'lab'", "DOWNLINK_SECRET_HV_PASSWORD"),
    ],
)
def test_a_restore_that_is_refused_is_one_sentence(
    lab: Lab, fault: str, how: dict[str, Any], sentence: str, mend: str
) -> None:
    lab.host.fault(fault, **how)
    with pytest.raises(MachineError) as caught:
        lab.machine.restore(soon())
    assert sentence in caught.value.message and mend in str(caught.value.hint)


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ("no-heartbeat", "its heartbeat is 'nocontact'"),
        ("stuck-starting", "the machine is starting"),
        ("no-address", "WinRM's port to accept a connection; last seen: 127.0.0.1"),
    ],
)
def test_a_guest_that_does_not_get_ready_is_told_with_what_was_seen(lab: Lab, fault: str, seen: str) -> None:
    lab.host.fault(fault)
    with pytest.raises(DeadlineExceededError) as caught:
        lab.machine.restore(Deadline.after(seconds=6))
    assert seen in caught.value.message


def test_a_script_that_hangs_is_killed_at_the_deadline(lab: Lab) -> None:
    lab.host.fault("hang", script="Restore-Machine")
    with pytest.raises(DeadlineExceededError, match="'Restore-Machine' did not end in time and was killed"):
        lab.machine.restore(Deadline.after(seconds=1))


def test_the_host_knows_of_a_crash_also_when_the_guest_is_silent(lab: Lab) -> None:
    lab.machine.restore(soon())
    assert lab.machine.condition().clean
    lab.host.fault("guest-crashed")
    (crash,) = lab.machine.condition().crashes
    assert (crash.code, crash.parameters[1]) == (0xD1, 2)


def test_a_machine_that_is_not_ours_any_more_is_left_alone(lab: Lab) -> None:
    own = lab.host.state["machines"]["downlink-hv"]["notes"]
    lab.host.change(lambda state: state["machines"]["downlink-hv"].update(notes="somebody's"))
    try:
        for action in (lab.machine.state, lab.machine.describe, lambda: lab.machine.destroy(soon())):
            with pytest.raises(DownlinkError, match="was not made by this checkout"):
                action()
    finally:
        lab.host.change(lambda state: state["machines"]["downlink-hv"].update(notes=own))


def test_a_clone_is_made_from_the_sealed_disk_and_goes_with_its_machine(lab: Lab) -> None:
    clone = lab.machine.clone(1)
    with Guest(clone.restore(soon()), machine=clone.name) as guest:
        assert guest.run("ver", deadline=soon()).exit_code == 0
        guest.put_bytes(b"x", r"C:\Downlink\a.txt", soon())
    state = lab.host.state
    base = state["files"][state["files"][state["machines"]["downlink-hv-w1"]["disk"]]["parent"]]
    assert base["read_only"]
    assert lab.machine.state() is not MachineState.ABSENT
    assert clone.file.certificate.read_text() != lab.machine.file.certificate.read_text()
    assert "its clones 1" in lab.machine.describe()
