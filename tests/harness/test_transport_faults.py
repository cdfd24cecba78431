"""What goes wrong on the way to a guest: certificates, keys, addresses, proxies, quotas, envelopes, connections."""

from __future__ import annotations

import io
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import paramiko
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from harness.log import Log
from harness.remote import winrm
from harness.remote.addresses import CurrentAddress
from harness.remote.faults import FAILURES, ConnectionLostError, LogonError, ShellGoneError
from harness.remote.guest import Guest
from harness.remote.sftp import Upload
from tests.harness.transport_lab import PASSWORD, USER, Lab
from vm.deadline import Deadline
from vm.emulated.guest.settings import Quotas
from vm.emulated.guest.sftp import ADMINISTRATORS_KEYS
from vm.errors import ConfigurationError, DownlinkError, GuestError, MachineError
from vm.machine import Credentials, GuestAddress


@pytest.fixture
def labs(tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    made: list[Lab] = []

    def make(**settings: object) -> Lab:
        made.append(Lab(tmp_path / f"lab{len(made)}", **settings))
        return made[-1]

    yield make
    for lab in made:
        lab.stop()


def soon(seconds: float = 30) -> Deadline:
    return Deadline.after(seconds=seconds)


def https(lab: Lab, transport: str = "ntlm") -> GuestAddress:
    return replace(lab.address(transport), winrm_scheme="https", certificate=lab.face.certificate)


@pytest.mark.parametrize("transport", ["ntlm", "basic", "ssl"])
def test_https_works_with_the_pinned_certificate_only(labs: Callable[..., Lab], transport: str) -> None:
    lab, other = labs(https=True), labs(https=True, computer_name="OTHER")
    address = https(lab, transport)
    with Guest(address, machine="lab") as guest:
        assert "Microsoft Windows" in guest.run("ver", deadline=soon()).stdout

    with Guest(replace(address, certificate=other.face.certificate), machine="lab") as guest:
        with pytest.raises(GuestError, match="is not the one that belongs to this machine") as caught:
            guest.run("ver", deadline=soon())
    assert not isinstance(caught.value, ConnectionLostError) and caught.value.hint


def test_a_pinned_certificate_need_not_name_the_address(labs: Callable[..., Lab]) -> None:
    lab = labs(https=True)
    address = replace(https(lab), host="localhost")

    with Guest(address, machine="lab") as guest:
        assert guest.run("ver", deadline=soon()).exit_code == 0


def test_an_expired_certificate_is_said_with_its_date_before_anything_is_sent(
    labs: Callable[..., Lab],
) -> None:
    lab = labs(https=True, certificate_days=-1)
    day = (datetime.now(UTC) - timedelta(days=1)).strftime("%Y-%m-%d")

    with Guest(https(lab), machine="lab") as guest:
        with pytest.raises(GuestError, match=f"has expired on {day}") as caught:
            guest.run("ver", deadline=soon())

    assert "clock" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "content", [None, b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"]
)
def test_a_certificate_file_that_is_none_is_a_mistake_in_the_configuration(
    labs: Callable[..., Lab], tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "guest.cer"
    if content is not None:
        path.write_bytes(content)
    address = replace(https(labs(https=True)), certificate=path)

    with Guest(address, machine="lab") as guest, pytest.raises(ConfigurationError, match=r"guest\.cer"):
        guest.run("ver", deadline=soon())


def test_plain_http_behind_an_https_address_is_named(labs: Callable[..., Lab]) -> None:
    lab, other = labs(), labs(https=True)
    address = replace(lab.address(), winrm_scheme="https", certificate=other.face.certificate)

    with Guest(address, machine="lab") as guest, pytest.raises(GuestError, match="does not answer with TLS"):
        guest.run("ver", deadline=soon())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_proxies_of_the_environment_are_not_used(
    labs: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    lab = labs(https=scheme == "https")
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")

    with Guest(https(lab) if scheme == "https" else lab.address(), machine="lab") as guest:
        assert guest.run("ver", deadline=soon()).exit_code == 0


def private_key(path: Path, passphrase: bytes | None = None) -> str:
    """Write a key and return its public half as a line of an authorized_keys file."""
    key = Ed25519PrivateKey.generate()
    protection = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, protection))
    return (
        key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() + " made for a test\n"
    )


def test_a_key_logs_on_where_administrators_have_it(labs: Callable[..., Lab], tmp_path: Path) -> None:
    lab, path = labs(), tmp_path / "key"
    line = private_key(path)
    place = lab.path(*ADMINISTRATORS_KEYS[3:].split("\\"))
    place.parent.mkdir(parents=True)
    # The password is wrong: only the key can have opened the door.
    address = lab.address()
    address = replace(address, private_key=path, credentials=replace(address.credentials, password="wrong"))

    with Guest(address, machine="lab") as guest, pytest.raises(GuestError, match="refused the key") as caught:
        guest.put_bytes(b"x", "C:\\Downlink\\x", soon())
    assert "administrators_authorized_keys" in (caught.value.hint or "")

    place.write_text("# keys\nnot a key\n" + line, encoding="utf-8")
    with Guest(address, machine="lab") as guest:
        guest.put_bytes(b"x", "C:\\Downlink\\x", soon())
    assert lab.path("Downlink", "x").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), (b"no key", "holds no private key"), (b"", "protected by a passphrase")],
)
def test_a_key_file_that_cannot_be_used_is_a_sentence(
    labs: Callable[..., Lab], tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "key"
    if content:
        path.write_bytes(content)
    elif content is not None:
        private_key(path, b"secret")

    with Guest(replace(labs().address(), private_key=path), machine="lab") as guest:
        with pytest.raises(GuestError, match=words) as caught:
            guest.size("C:\\x", soon())

    assert str(path) in caught.value.message


def test_a_guest_that_has_moved_is_found_again(labs: Callable[..., Lab]) -> None:
    lab, there = labs(), labs()
    now = [lab]
    stream = io.StringIO()
    with Guest(lambda: now[0].address(), machine="lab", log=Log(stream)) as guest:
        guest.run("ver", deadline=soon())
        guest.put_bytes(b"1", "C:\\Downlink\\x", soon())
        now[0] = there
        lab.stop()

        # Nobody answers at the old place, so nothing can have run there.
        assert guest.run("ver", deadline=soon()).exit_code == 0
        guest.put_bytes(b"2", "C:\\Downlink\\x", soon())

    assert f"the guest answers at 127.0.0.1:{there.face.winrm_port} now" in stream.getvalue()
    assert there.path("Downlink", "x").read_bytes() == b"2"


def test_a_machine_whose_address_is_not_known_yet_is_waited_for(labs: Callable[..., Lab]) -> None:
    lab = labs()
    asked = []

    def address() -> GuestAddress:
        asked.append(None)
        if len(asked) < 3:
            raise MachineError("the machine has no address yet", machine="lab")
        return lab.address()

    with Guest(address, machine="lab") as guest:
        assert guest.wait_for_boot(None, soon())


def test_dropped_connections_are_renewed_for_commands_and_files(
    labs: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = labs()
    (tmp_path / "f").write_bytes(os.urandom(200_000))
    with Guest(lab.address(), machine="lab") as guest:
        for number in range(3):
            guest.run("ver", deadline=soon())
            guest.put([Upload(tmp_path / "f", f"C:\\Downlink\\{number}")], soon())
            for server in (lab.face._winrm, lab.face._sftp):
                server.suspend()
                server.resume()

    assert len(list(lab.path("Downlink").iterdir())) == 3


def test_a_quota_is_named_with_the_command_that_raises_it(labs: Callable[..., Lab]) -> None:
    lab = labs(quotas=Quotas(max_shells_per_user=1))
    with Guest(lab.address(), machine="lab") as first, Guest(lab.address(), machine="lab") as second:
        first.run("ver", deadline=soon())
        with pytest.raises(GuestError, match="MaxShellsPerUser") as caught:
            second.run("ver", deadline=soon())

    assert 'winrm set winrm/config/winrs @{MaxShellsPerUser="100"}' in (caught.value.hint or "")


def test_each_failure_has_a_cause_and_a_cure_and_its_number_once() -> None:
    codes = [failure.code for failure in FAILURES]

    assert len(codes) == len(set(codes)) and len(codes) == 18
    assert all(failure.cause and failure.cure for failure in FAILURES)


def test_input_is_cut_to_what_a_small_envelope_takes(labs: Callable[..., Lab]) -> None:
    lab = labs(quotas=Quotas(max_envelope_bytes=40 * 1024))
    data = os.urandom(300_000)
    with Guest(lab.address(ssh=False), machine="lab") as guest:
        guest.put_bytes(data, "C:\\Downlink\\x", soon())
        client = guest.commands
        assert isinstance(client, winrm.WinRm)

        assert lab.path("Downlink", "x").read_bytes() == data
        assert guest.read_bytes("C:\\Downlink\\x", soon()) == data
        assert client._chunk_bytes == 25_000


def test_an_envelope_that_takes_nothing_is_said_with_the_setting(labs: Callable[..., Lab]) -> None:
    lab = labs(quotas=Quotas(max_envelope_bytes=6 * 1024))
    with Guest(lab.address(ssh=False), machine="lab") as guest:
        with pytest.raises(GuestError, match="MaxEnvelopeSizekb"):
            guest.put_bytes(os.urandom(100_000), "C:\\Downlink\\x", soon())


def test_a_command_that_reads_only_some_of_its_input_is_no_failure(labs: Callable[..., Lab]) -> None:
    lab = labs()
    with Guest(lab.address(), machine="lab") as guest:
        result = guest.run(["python", "-c", "print('done')"], deadline=soon(), stdin=bytes(3_000_000))

    assert result.stdout.strip() == "done"


@pytest.mark.parametrize(
    ("chaos", "kind", "words"),
    [
        ("ntlm-refused", LogonError, "does not accept NTLM"),
        ("password-refused", LogonError, "refused the user name or password"),
        ("http-503", GuestError, "HTTP status 503"),
        ("winrm-refused", ConnectionLostError, "was lost while opening a shell"),
        ("reset-command-before", ConnectionLostError, "was lost while starting"),
        ("reset-command-after", ConnectionLostError, "was lost while starting"),
        ("reset-create-after", ConnectionLostError, "was lost while opening a shell"),
        # Whether the service is up again for the repeated Receive is a matter of moments; that nobody knows how the
        # command has ended is said either way.
        (
            "shells-lost-in-receive",
            (ShellGoneError, ConnectionLostError),
            "while waiting for 'python.*the shell is gone|was lost while waiting for 'python",
        ),
    ],
)
def test_a_fault_that_cannot_be_mended_is_one_sentence_with_a_hint(
    labs: Callable[..., Lab],
    chaos: str,
    kind: type[GuestError] | tuple[type[GuestError], ...],
    words: str,
) -> None:
    with Guest(labs(chaos=chaos).address(), machine="lab") as guest:
        with pytest.raises(kind, match=words) as caught:
            guest.run(["python", "-c", "open('C:\\\\ran', 'a').write('x')"], deadline=soon(20))

    assert caught.value.hint and "\n" not in caught.value.message
    assert PASSWORD not in caught.value.render()


@pytest.mark.parametrize(
    "chaos",
    [
        "bad-seal",
        "http-401",
        "drop-idle",
        "latency",
        "reset-receive",
        "reset-signal-after",
        "receive-delay",
        "output-bom",
        "output-crlf",
        "sftp-closes",
        "exit-code-signed",
        "code-page",
        "small-envelope",
        "address-changes",
    ],
)
@pytest.mark.parametrize("way", ["sftp", "winrm"])
def test_a_transfer_comes_through_what_can_be_mended(
    labs: Callable[..., Lab], tmp_path: Path, chaos: str, way: str
) -> None:
    files = {"a.txt": b"one", "lib/b.bin": os.urandom(300_000)}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    lab = labs(chaos=chaos)
    with lab.guest(way) as guest:
        missing = guest.run(["sc", "query", "nothing"], deadline=soon(), check=False)
        guest.sync(
            {name: tmp_path / name for name in files},
            "C:\\Downlink\\t",
            soon(),
            manifest="C:\\Downlink\\t.json",
        )
        again = guest.read_bytes("C:\\Downlink\\t\\lib\\b.bin", soon())

    assert missing.exit_code == 1060
    assert again == files["lib/b.bin"] and lab.path("Downlink", "t", "a.txt").read_bytes() == b"one"


@pytest.mark.parametrize(
    "chaos",
    [
        *("reset-command-before", "reset-command-after", "reset-create-after", "reset-send-before"),
        *("reset-send-after", "reset-receive", "shells-lost", "shells-lost-in-receive"),
    ],
)
def test_files_over_winrm_come_through_lost_connections_because_they_may_be_sent_twice(
    labs: Callable[..., Lab], chaos: str
) -> None:
    content = os.urandom(350_000)
    lab = labs(chaos=chaos)
    with lab.guest("winrm") as guest:
        guest.put_bytes(content, "C:\\Downlink\\x", soon())
        assert guest.read_bytes("C:\\Downlink\\x", soon()) == content
        guest.remove(["C:\\Downlink\\x"], soon())

    assert not lab.path("Downlink", "x").exists()


@pytest.mark.parametrize("way", ["sftp", "winrm"])
def test_a_full_disk_is_said_and_room_is_asked_for(
    labs: Callable[..., Lab], tmp_path: Path, way: str
) -> None:
    (tmp_path / "big").write_bytes(os.urandom(3_000_000))
    lab = labs(chaos="disk-full:1m")
    with lab.guest(way) as guest, pytest.raises(GuestError) as caught:
        guest.sync({"big": tmp_path / "big"}, "C:\\Downlink\\t", soon(), manifest="C:\\Downlink\\t.json")

    assert "room on" in (caught.value.hint or "")
    assert not lab.path("Downlink", "t.json").exists()


def test_a_guest_that_restarts_in_a_transfer_needs_one_more_transfer_and_nothing_else(
    labs: Callable[..., Lab], tmp_path: Path
) -> None:
    (tmp_path / "big").write_bytes(os.urandom(2_000_000))
    lab = labs(chaos="restart-in-copy:1m")
    with lab.guest("winrm") as guest:
        for _ in range(3):
            try:
                done = guest.sync(
                    {"big": tmp_path / "big"}, "C:\\Downlink\\t", soon(), manifest="C:\\Downlink\\t.json"
                )
                break
            except DownlinkError:
                guest.wait_for_boot(None, soon())

    assert done.sent_files == 1
    assert lab.path("Downlink", "t", "big").read_bytes() == (tmp_path / "big").read_bytes()


def test_two_threads_send_and_run_at_once(labs: Callable[..., Lab], tmp_path: Path) -> None:
    lab = labs()
    (tmp_path / "f").write_bytes(os.urandom(300_000))
    failed: list[BaseException] = []

    def work(guest: Guest, number: int) -> None:
        try:
            for step in range(5):
                guest.put([Upload(tmp_path / "f", f"C:\\Downlink\\{number}-{step}")], soon())
                assert guest.run("ver", deadline=soon()).exit_code == 0
        except (DownlinkError, AssertionError) as error:
            failed.append(error)

    with lab.guest("sftp") as guest:
        threads = [threading.Thread(target=work, args=(guest, number)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

    assert failed == []
    assert len(list(lab.path("Downlink").iterdir())) == 15


def test_threads_that_have_ended_leave_their_shells_to_later_ones(labs: Callable[..., Lab]) -> None:
    lab = labs(quotas=Quotas(max_shells_per_user=2))
    codes: list[int] = []
    with Guest(lab.address(), machine="lab") as guest:
        for _ in range(6):
            thread = threading.Thread(
                target=lambda: codes.append(guest.run("ver", deadline=soon()).exit_code)
            )
            thread.start()
            thread.join(30)

    assert codes == [0] * 6


def test_a_host_key_of_another_kind_is_not_accepted(labs: Callable[..., Lab]) -> None:
    key = paramiko.RSAKey.generate(2048)
    address = replace(labs().address(), host_key=f"{key.get_name()} {key.get_base64()}")

    with Guest(address, machine="lab") as guest, pytest.raises(GuestError):
        guest.size("C:\\x", soon())


def test_an_address_is_asked_for_again_and_the_last_one_stands_while_there_is_none() -> None:
    answers: list[GuestAddress | MachineError] = []

    def ask() -> GuestAddress:
        answer = answers.pop(0)
        if isinstance(answer, MachineError):
            raise answer
        return answer

    here, there = fixed_address(1), fixed_address(2)
    down = MachineError("the machine does not run")
    answers[:] = [down, here, down, there, down]
    current = CurrentAddress(ask)

    with pytest.raises(MachineError):
        current.get()
    assert [current.get(), current.get()] == [here, here]
    assert current.refresh() == here
    current.forget()
    assert [current.get(), current.get()] == [there, there]
    current.forget()
    assert current.get() == there
    assert answers == []


def test_an_address_that_is_fixed_is_never_forgotten() -> None:
    current = CurrentAddress(fixed_address(1))
    current.forget()

    assert current.get() == current.refresh() == fixed_address(1)


def fixed_address(port: int) -> GuestAddress:
    return GuestAddress("127.0.0.1", port, "http", "ntlm", None, None, Credentials(USER, PASSWORD))


def test_a_machine_without_a_pinned_host_key_is_told_which_one_is_shown(labs: Callable[..., Lab]) -> None:
    lab = labs()

    with Guest(replace(lab.address(), host_key=None), machine="lab") as guest:
        with pytest.raises(GuestError, match="no SSH host key is pinned for this machine") as caught:
            guest.put_bytes(b"x", "C:\\Downlink\\x", soon())

    assert f'host_key = "{lab.face.host_key}"' in (caught.value.hint or "")
    assert not lab.path("Downlink").exists()
