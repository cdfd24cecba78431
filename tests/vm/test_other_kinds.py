"""The kinds `remote` and `local`: what they refuse before anything is sent, and what they say they cannot do."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vm.deadline import Deadline
from vm.errors import ConfigurationError, MachineError
from vm.local.machine import LocalMachine
from vm.machine import Channel, Condition, DeploymentMode, MachineState
from vm.registry import KINDS
from vm.remote.machine import RemoteMachine

PASSWORD = "word-of-the-remote"


class Store:
    """A secret store that has one password and remembers who asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def get(self, name: str, *, purpose: str) -> str:
        self.asked.append((name, purpose))
        return PASSWORD

    def put(self, name: str, value: str) -> None:
        raise AssertionError("a remote machine makes no secrets")

    def forget(self, name: str) -> None:
        raise AssertionError("a remote machine forgets no secrets")


def remote(directory: Path, **settings: Any) -> RemoteMachine:
    given = {"host": "127.0.0.1", "username": "lab", "secrets": Store(), **settings}
    return RemoteMachine("far", directory, given)


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_remote_machine_runs_when_its_port_accepts_connections(tmp_path: Path, listener: int) -> None:
    machine = remote(tmp_path, winrm_port=listener)

    assert machine.state() is MachineState.RUNNING
    address = machine.restore(Deadline.after(seconds=5))
    assert (address.host, address.winrm_port, address.winrm_scheme) == ("127.0.0.1", listener, "http")
    assert address.winrm_transport == "ntlm" and address.ssh_port is None
    assert address.channel is Channel.WINRM
    machine.stop(Deadline.after(seconds=0))
    assert machine.state() is MachineState.RUNNING


def test_its_password_comes_from_the_store_and_is_in_no_repr(tmp_path: Path, listener: int) -> None:
    store = Store()
    address = remote(tmp_path, winrm_port=listener, secrets=store).address()

    assert address.credentials.password == PASSWORD
    assert store.asked == [("far.password", "log on to the machine 'far' as lab")]
    assert PASSWORD not in repr(address)


def test_one_that_does_not_answer_is_refused_with_what_was_seen(tmp_path: Path) -> None:
    machine = remote(tmp_path, winrm_port=closed_port())

    assert machine.state() is MachineState.STOPPED
    with pytest.raises(MachineError, match=r"does not answer on port \d+: Connection refused") as raised:
        machine.start(Deadline.after(seconds=0))
    assert raised.value.machine == "far" and "listener" in (raised.value.hint or "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transport": "basic"}, "would send the password readable"),
        ({"transport": "ssl"}, "would send the password readable"),
        ({"scheme": "https"}, "needs the certificate"),
        ({"ssh_port": 22}, "needs|SSH key of the host"),
        ({"scheme": "https", "certificate": "/nowhere/cert.pem"}, "the certificate '.*' does not exist"),
        ({"private_key": "/nowhere/key"}, "the private key '.*' does not exist"),
    ],
)
def test_settings_that_are_not_safe_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        remote(tmp_path, **settings)


def test_a_private_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("-", encoding="utf-8")
    key.chmod(0o644)
    with pytest.raises(ConfigurationError, match="can be read by others"):
        remote(tmp_path, private_key=str(key))
    key.chmod(0o600)
    assert remote(tmp_path, private_key=str(key)).address().private_key == key


def test_the_default_port_follows_the_scheme(tmp_path: Path) -> None:
    certificate = tmp_path / "c.pem"
    certificate.write_text("-", encoding="utf-8")

    assert remote(tmp_path).address().winrm_port == 5985
    assert remote(tmp_path, scheme="https", certificate=str(certificate)).address().winrm_port == 5986


def test_a_remote_machine_says_that_it_cannot_be_restored(tmp_path: Path) -> None:
    abilities = remote(tmp_path).abilities

    assert not abilities.restores and not abilities.restarts
    assert abilities.deployment is DeploymentMode.PACKAGE and abilities.detached
    assert "no checkpoint" in abilities.untested[0]
    assert (
        remote(tmp_path, deployment="service", suites="attached").abilities.deployment
        is DeploymentMode.SERVICE
    )
    assert not remote(tmp_path, suites="attached").abilities.detached
    assert remote(tmp_path).condition() == Condition()


def test_local_is_for_windows_only(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="not a Windows system") as raised:
        LocalMachine("here", tmp_path, {"platform": "linux"}).restore(Deadline.after(seconds=1))
    assert "emulated" in (raised.value.hint or "")
    with pytest.raises(MachineError, match="not a Windows system"):
        LocalMachine("here", tmp_path, {"platform": "linux"}).state()
    assert LocalMachine("here", tmp_path, {"platform": "win32"}).state() is MachineState.RUNNING

    address = LocalMachine("here", tmp_path, {"platform": "win32"}).start(Deadline.after(seconds=1))
    assert address.channel is Channel.LOCAL


def test_local_says_what_a_run_on_it_does_not_show(tmp_path: Path) -> None:
    abilities = LocalMachine("here", tmp_path, {}).abilities

    assert any("Driver Verifier" in sentence for sentence in abilities.untested)
    assert not abilities.restores and not abilities.restarts and not abilities.detached


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_can_be_told_how_it_is_used(kind: str) -> None:
    assert {"deployment", "suites"} <= set(KINDS[kind].settings)
