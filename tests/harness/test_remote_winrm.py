"""Commands over WinRM: what is sent again after which failure, deadlines, and how failures read."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import requests.exceptions
import urllib3.exceptions
from winrm.exceptions import (
    InvalidCredentialsError,
    WinRMOperationTimeoutError,
    WinRMTransportError,
    WSManFaultError,
)

from harness.log import Log
from harness.remote import session, winrm
from harness.remote.addresses import CurrentAddress
from harness.remote.faults import ConnectionLostError, LogonError, ShellGoneError, StatusError, translate
from harness.remote.quoting import command_line, quotable, quote
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError, GuestError
from vm.machine import Credentials, GuestAddress

ADDRESS = GuestAddress("127.0.0.1", 5985, "http", "ntlm", 22, None, Credentials("lab", "hunter2"))


def fault(code: int) -> WSManFaultError:
    return WSManFaultError(500, "bad", "<xml/>", f"reason of {code}", wsman_fault_code=code)


BROKEN_SEAL = WinRMTransportError("http", 400, "")
RESET = requests.exceptions.ConnectionError("Connection reset by peer")


class ProtocolDouble:
    """pywinrm's Protocol as far as it is used; failures are taken from a list per operation."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failures: dict[str, list[BaseException]] = {}
        self.output: Iterator[tuple[bytes, bytes, int, bool]] = iter([(b"hello", b"", 0, True)])
        self.transport = self
        self.read_timeout_sec = self.operation_timeout_sec = 0
        self.shells = 0

    def _call(self, name: str) -> None:
        self.calls.append(name)
        waiting = self.failures.get(name)
        if waiting:
            raise waiting.pop(0)

    def open_shell(self, **options: Any) -> str:
        self._call("open_shell")
        self.options = options
        self.shells += 1
        return f"shell-{self.shells}"

    def run_command(self, shell: str, program: str, arguments: tuple[str, ...], **_: Any) -> str:
        self.line = " ".join([program, *arguments])
        self._call("run_command")
        return "command-1"

    def send_command_input(self, shell: str, command: str, data: bytes, end: bool = False) -> None:
        self._call(f"send {len(data)}{' end' if end else ''}")

    def get_command_output_raw(self, shell: str, command: str) -> tuple[bytes, bytes, int, bool]:
        self._call("receive")
        return next(self.output)

    def cleanup_command(self, shell: str, command: str) -> None:
        self._call("signal")

    def close_shell(self, shell: str, close_session: bool = True) -> None:
        self._call("close_shell")

    def close_session(self) -> None:
        self._call("close_session")


@pytest.fixture
def protocol(monkeypatch: pytest.MonkeyPatch) -> ProtocolDouble:
    double = ProtocolDouble()
    monkeypatch.setattr(session, "Protocol", lambda **_: double)
    return double


@pytest.fixture
def client(protocol: ProtocolDouble) -> winrm.WinRm:
    return winrm.WinRm(ADDRESS, machine="lab", log=Log())


def run(client: winrm.WinRm, *, seconds: float = 30, **options: Any) -> winrm.CommandResult:
    return client.run(["ver"], deadline=Deadline.after(seconds=seconds), **options)


def test_a_command_is_one_exchange_after_the_other_and_is_signalled_at_its_end(
    client: winrm.WinRm, protocol: ProtocolDouble
) -> None:
    result = run(client)

    assert (result.stdout, result.exit_code) == ("hello", 0)
    assert protocol.calls == ["open_shell", "run_command", "receive", "signal"]
    assert protocol.options["codepage"] == 65001


def test_the_shell_is_kept_for_the_next_command(client: winrm.WinRm, protocol: ProtocolDouble) -> None:
    run(client)
    protocol.output = iter([(b"", b"", 0, True)])
    run(client)

    assert protocol.calls.count("open_shell") == 1


@pytest.mark.parametrize("operation", ["open_shell", "run_command", "receive", "signal"])
def test_a_broken_seal_is_mended_by_a_new_session_whatever_the_request_was(
    client: winrm.WinRm, protocol: ProtocolDouble, operation: str
) -> None:
    protocol.failures[operation] = [BROKEN_SEAL]

    assert run(client).stdout == "hello"
    again = protocol.calls.index(operation)
    assert protocol.calls[again : again + 3] == [operation, "close_session", operation]


@pytest.mark.parametrize("operation", ["receive", "signal"])
def test_a_reset_is_followed_by_the_same_request_where_repeating_it_is_harmless(
    client: winrm.WinRm, protocol: ProtocolDouble, operation: str
) -> None:
    protocol.failures[operation] = [RESET]

    assert run(client).stdout == "hello"
    assert protocol.calls.count(operation) == 2


def test_a_command_is_never_sent_again_after_a_reset(client: winrm.WinRm, protocol: ProtocolDouble) -> None:
    protocol.failures["run_command"] = [RESET]

    with pytest.raises(ConnectionLostError, match="while starting 'ver'"):
        run(client)

    assert protocol.calls.count("run_command") == 1


def test_input_is_never_sent_again_after_a_reset(client: winrm.WinRm, protocol: ProtocolDouble) -> None:
    protocol.failures["send 3 end"] = [RESET]

    with pytest.raises(ConnectionLostError, match="while sending input"):
        run(client, stdin=b"abc")

    assert protocol.calls.count("send 3 end") == 1
    assert protocol.calls[-1] == "signal"


def test_a_second_failure_of_the_same_request_is_reported(
    client: winrm.WinRm, protocol: ProtocolDouble
) -> None:
    protocol.failures["receive"] = [RESET, RESET]

    with pytest.raises(ConnectionLostError, match=r"127\.0\.0\.1:5985 was lost"):
        run(client)


def test_input_goes_in_pieces_that_fit_and_ends_with_the_last(
    client: winrm.WinRm, protocol: ProtocolDouble
) -> None:
    run(client, stdin=b"x" * 250_000)

    assert [call for call in protocol.calls if call.startswith("send")] == [
        "send 100000",
        "send 100000",
        "send 50000 end",
    ]


def test_output_is_handed_on_as_it_arrives_with_characters_whole(
    client: winrm.WinRm, protocol: ProtocolDouble
) -> None:
    euro = "€".encode()
    protocol.output = iter([(b"a" + euro[:1], b"", -1, False), (euro[1:], b"oops", 0, True)])
    pieces: list[str] = []

    result = run(client, on_output=pieces.append)

    assert pieces == ["a", "€"]
    assert result.stdout == "a€" and result.stderr == "oops"


def test_output_that_is_not_to_be_kept_is_only_handed_on(
    client: winrm.WinRm, protocol: ProtocolDouble
) -> None:
    protocol.output = iter([(b"one", b"", -1, False), (b"two", b"oops", 0, True)])
    pieces: list[str] = []

    result = run(client, on_output=pieces.append, keep_output=False)

    assert pieces == ["one", "two"]
    assert result.stdout == "" and result.stderr == "oops"


def test_an_operation_timeout_of_the_guest_is_no_failure(
    client: winrm.WinRm, protocol: ProtocolDouble
) -> None:
    protocol.failures["receive"] = [WinRMOperationTimeoutError(), WinRMOperationTimeoutError()]

    assert run(client).stdout == "hello"


def test_a_command_that_outlives_its_deadline_is_killed_in_the_guest(
    client: winrm.WinRm, protocol: ProtocolDouble
) -> None:
    def forever() -> Iterator[tuple[bytes, bytes, int, bool]]:
        while True:
            yield b"still here\n", b"", -1, False

    protocol.output = forever()

    with pytest.raises(
        DeadlineExceededError, match=r"'ver' did not end within .* its last output was 'still here'"
    ):
        run(client, seconds=0.05)

    assert protocol.calls[-1] == "signal"


def test_ctrl_c_kills_the_command_in_the_guest(client: winrm.WinRm, protocol: ProtocolDouble) -> None:
    protocol.failures["receive"] = [KeyboardInterrupt()]

    with pytest.raises(KeyboardInterrupt):
        run(client)

    assert protocol.calls[-2:] == ["close_session", "signal"]


def test_exit_codes_are_unsigned(client: winrm.WinRm, protocol: ProtocolDouble) -> None:
    protocol.output = iter([(b"", b"", -1073741819, True)])

    assert run(client).exit_code == 0xC0000005


def test_a_shell_that_is_gone_before_a_command_is_replaced_once(
    client: winrm.WinRm, protocol: ProtocolDouble
) -> None:
    run(client)
    protocol.output = iter([(b"again", b"", 0, True)])
    protocol.failures["run_command"] = [fault(2150858843)]

    assert run(client).stdout == "again"
    assert protocol.shells == 2


def test_a_shell_that_is_gone_during_a_command_is_an_error(
    client: winrm.WinRm, protocol: ProtocolDouble
) -> None:
    protocol.failures["receive"] = [fault(2150858843)]

    with pytest.raises(ShellGoneError, match="the shell is gone"):
        run(client)


def test_a_command_with_its_own_directory_gets_a_shell_that_is_deleted(
    client: winrm.WinRm, protocol: ProtocolDouble
) -> None:
    run(client, directory="C:\\Downlink")

    assert protocol.options["working_directory"] == "C:\\Downlink"
    assert protocol.calls == ["open_shell", "run_command", "receive", "signal", "close_shell"]


def test_such_a_shell_is_deleted_also_when_the_command_does_not_start(
    client: winrm.WinRm, protocol: ProtocolDouble
) -> None:
    protocol.failures["run_command"] = [RESET]

    with pytest.raises(ConnectionLostError):
        run(client, directory="C:\\Downlink")

    assert protocol.calls[-1] == "close_shell"


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (InvalidCredentialsError("no"), LogonError, "refused the user name or password"),
        (fault(5), GuestError, "the user may not use WinRM"),
        (fault(2150859173), GuestError, "its quota of shells is used up"),
        (fault(2150858790), GuestError, "larger than it accepts"),
        (fault(424242), GuestError, "reason of 424242"),
        (WinRMTransportError("http", 500, ""), StatusError, "HTTP status 500"),
        (RESET, ConnectionLostError, "was lost"),
        (StopIteration(), GuestError, "something that is not WinRM"),
    ],
)
def test_each_fault_is_a_sentence_with_what_was_being_done(
    error: BaseException, kind: type[GuestError], words: str
) -> None:
    translated = translate(error, "starting 'ver'", machine="lab", where="127.0.0.1:5985")

    assert type(translated) is kind
    assert words in translated.message and "while starting 'ver'" in translated.message
    assert translated.machine == "lab"


def test_the_password_is_in_no_log_message_or_repr(protocol: ProtocolDouble) -> None:
    stream = io.StringIO()
    log = Log(stream)
    client = winrm.WinRm(ADDRESS, machine="lab", log=log)
    protocol.failures["run_command"] = [WinRMTransportError("http", 500, "hunter2")]

    with pytest.raises(GuestError) as caught:
        client.run("echo hunter2", deadline=Deadline.after(seconds=5))

    assert "hunter2" not in stream.getvalue() + repr(client) + repr(ADDRESS)
    assert "hunter2" not in caught.value.render().replace("'echo hunter2'", "")


def test_every_command_is_logged_with_exit_code_and_duration(protocol: ProtocolDouble) -> None:
    stream = io.StringIO()
    client = winrm.WinRm(ADDRESS, machine="lab", log=Log(stream))
    protocol.output = iter([(b"it failed", b"", 2, True)])

    run(client)

    assert "> ver" in stream.getvalue() and "exit code 2 after" in stream.getvalue()
    assert "it failed" in stream.getvalue()


def test_each_thread_has_a_protocol_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    made: list[ProtocolDouble] = []
    monkeypatch.setattr(session, "Protocol", lambda **_: made.append(ProtocolDouble()) or made[-1])
    client = winrm.WinRm(ADDRESS, machine="lab", log=Log())
    together = Barrier(3, timeout=10)

    def work(_: int) -> str:
        together.wait()
        return run(client).stdout

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(work, range(3))) == ["hello"] * 3
    client.close()

    assert len(made) == 3
    assert all(double.calls[-2:] == ["close_shell", "close_session"] for double in made)


@pytest.mark.parametrize(
    ("argument", "quoted"),
    [
        ("plain", "plain"),
        ("/v:x", "/v:x"),
        ("", '""'),
        ("two words", '"two words"'),
        ("a&b", '"a&b"'),
        ("ends with\\", '"ends with\\\\"'),
        ("C:\\no\\blank\\", "C:\\no\\blank\\"),
        ("(a|b)", '"(a|b)"'),
    ],
)
def test_arguments_are_quoted_for_cmd(argument: str, quoted: str) -> None:
    assert quote(argument) == quoted


@pytest.mark.parametrize("argument", ['"', "%PATH%", "a\nb", "a\0b"])
def test_what_no_quoting_saves_is_refused(argument: str) -> None:
    assert not quotable(argument)
    with pytest.raises(ValueError, match="cannot be passed"):
        command_line(["echo", argument])


def test_a_line_that_is_too_long_is_refused_before_it_is_sent(
    client: winrm.WinRm, protocol: ProtocolDouble
) -> None:
    with pytest.raises(GuestError, match="too long"):
        client.run(["echo", "x" * 9000], deadline=Deadline.after(seconds=5))

    assert protocol.calls == []


def test_a_deadline_that_has_passed_starts_nothing(client: winrm.WinRm, protocol: ProtocolDouble) -> None:
    check: Callable[[], Any] = lambda: run(client, seconds=0)  # noqa: E731 - reads as one act

    with pytest.raises(DeadlineExceededError):
        check()

    assert protocol.calls == []


def refused() -> requests.exceptions.ConnectionError:
    """What requests raises when nobody listens."""
    reason = urllib3.exceptions.NewConnectionError(None, "Connection refused")  # type: ignore[arg-type]
    return requests.exceptions.ConnectionError(urllib3.exceptions.MaxRetryError(None, "/wsman", reason))  # type: ignore[arg-type]


def test_a_shell_is_not_asked_for_again_after_a_reset(client: winrm.WinRm, protocol: ProtocolDouble) -> None:
    # It may have been made, and would count against the quota until its idle timeout.
    protocol.failures["open_shell"] = [RESET]

    with pytest.raises(ConnectionLostError, match="while opening a shell"):
        run(client)

    assert protocol.calls.count("open_shell") == 1


def test_a_guest_that_refuses_connections_is_not_asked_twice_at_the_same_place(
    client: winrm.WinRm, protocol: ProtocolDouble
) -> None:
    protocol.failures["open_shell"] = [refused()]

    with pytest.raises(ConnectionLostError):
        run(client)

    assert protocol.calls.count("open_shell") == 1


@pytest.mark.parametrize(
    ("error", "times"), [(refused(), 2), (requests.exceptions.ConnectTimeout(), 1), (RESET, 1)]
)
def test_a_command_goes_to_a_new_address_only_if_it_never_left_for_the_old_one(
    protocol: ProtocolDouble, error: BaseException, times: int
) -> None:
    places = [ADDRESS]
    client = winrm.WinRm(CurrentAddress(lambda: places[-1]), machine="lab", log=Log())
    run(client)
    protocol.output = iter([(b"again", b"", 0, True)])
    places.append(replace(ADDRESS, winrm_port=5986))
    protocol.failures["run_command"] = [error]
    before = protocol.calls.count("run_command")

    if times == 2:
        assert run(client).stdout == "again"
        assert client.where == "127.0.0.1:5986"
    else:
        with pytest.raises(ConnectionLostError, match=r"127\.0\.0\.1:5985 was lost"):
            run(client)

    assert protocol.calls.count("run_command") - before == times


def test_what_must_not_be_sent_twice_goes_over_a_new_connection_after_a_rest(
    client: winrm.WinRm, protocol: ProtocolDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(client)
    monkeypatch.setattr(session, "IDLE_SECONDS", -1)
    protocol.output = iter([(b"again", b"", 0, True)])
    protocol.calls.clear()

    run(client, stdin=b"x")

    assert protocol.calls == [
        *("close_session", "run_command"),
        *("close_session", "send 1 end"),
        *("receive", "signal"),
    ]


def test_input_of_no_bytes_is_closed_and_no_input_is_not_sent(
    client: winrm.WinRm, protocol: ProtocolDouble
) -> None:
    run(client, stdin=b"")
    assert "send 0 end" in protocol.calls
    protocol.calls.clear()
    protocol.output = iter([(b"again", b"", 0, True)])

    run(client)

    assert not any(call.startswith("send") for call in protocol.calls)


@pytest.mark.parametrize("code", [109, 232, 2147942509, 2150859147])
def test_a_command_that_has_ended_before_its_input_tells_its_own_end(
    client: winrm.WinRm, protocol: ProtocolDouble, code: int
) -> None:
    protocol.failures["send 100000"] = [fault(code)]

    assert run(client, stdin=bytes(250_000)).stdout == "hello"
    assert sum(call.startswith("send") for call in protocol.calls) == 1


def test_input_that_is_not_taken_is_a_sentence(client: winrm.WinRm, protocol: ProtocolDouble) -> None:
    protocol.failures["send 3 end"] = [WinRMOperationTimeoutError()]

    with pytest.raises(DeadlineExceededError, match="did not take its input"):
        run(client, stdin=b"abc")

    assert protocol.calls.count("send 3 end") == 1 and protocol.calls[-1] == "signal"


def test_input_that_is_too_large_for_an_envelope_is_halved_and_stays_so(
    client: winrm.WinRm, protocol: ProtocolDouble
) -> None:
    protocol.failures["send 100000"] = [fault(2150858790)]
    protocol.failures["send 50000"] = [fault(2150858824)]

    run(client, stdin=bytes(60_000 + 100_000))

    sent = [call for call in protocol.calls if call.startswith("send")]
    assert sent == ["send 100000", "send 50000", *["send 25000"] * 6, "send 10000 end"]
    protocol.output = iter([(b"again", b"", 0, True)])
    protocol.calls.clear()
    run(client, stdin=bytes(25_001))
    assert [call for call in protocol.calls if call.startswith("send")] == ["send 25000", "send 1 end"]


def test_an_envelope_that_takes_nothing_at_all_is_an_error(
    client: winrm.WinRm, protocol: ProtocolDouble
) -> None:
    for size in (100_000, 50_000, 25_000, 12_500, 6_250):
        protocol.failures[f"send {size}"] = [fault(2150858790)]

    with pytest.raises(GuestError, match="MaxEnvelopeSizekb"):
        run(client, stdin=bytes(100_001))
