"""Faults of shells, commands and their streams: each fires when it should, and only then."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import requests
from winrm.exceptions import WinRMTransportError, WSManFaultError

from tests.vm.guest.chaos_reports import firings, occasions

Broken = (requests.exceptions.ConnectionError, ConnectionError)
UTF8 = {"codepage": 65001}


def test_the_service_restarts_and_the_shells_are_gone(
    own_machine: Any, wait_until: Callable[..., None]
) -> None:
    machine = own_machine(chaos="shells-lost@2")
    protocol = machine.protocol()
    shell = protocol.open_shell()
    assert protocol.run_command(shell, "ver")
    boot_id = machine.computer.boot_id
    with pytest.raises(Broken):
        protocol.run_command(shell, "ver")
    assert _fault(protocol, wait_until, lambda: protocol.run_command(shell, "ver")) == 2150858843
    assert protocol.run_command(protocol.open_shell(), "ver")
    assert (firings(machine, "shells-lost"), machine.computer.boot_id) == (1, boot_id)


def test_the_service_restarts_while_a_command_runs(own_machine: Any, wait_until: Callable[..., None]) -> None:
    machine = own_machine(chaos="shells-lost-in-receive")
    protocol = machine.protocol()
    shell = protocol.open_shell()
    command = protocol.run_command(shell, "ping -n 100 127.0.0.1")
    with pytest.raises(Broken):
        protocol.get_command_output_raw(shell, command)
    assert _fault(protocol, wait_until, lambda: protocol.get_command_output_raw(shell, command)) == 2150858843
    assert firings(machine, "shells-lost-in-receive") == 1


def _fault(protocol: Any, wait_until: Callable[..., None], action: Callable[[], object]) -> int:
    """The fault that an action ends with once the service is there again."""
    codes: list[int] = []

    def answered() -> bool:
        try:
            action()
        except WSManFaultError as error:
            codes.append(error.wsman_fault_code)
        except Broken:
            protocol.transport.close_session()
        return bool(codes)

    wait_until(answered, "an answer of the service")
    return codes[0]


@pytest.mark.parametrize(("fault", "code"), [("max-shells:1", 2150859173), ("max-processes:1", 2150859241)])
def test_a_low_quota_bites_when_it_is_used_up(own_machine: Any, fault: str, code: int) -> None:
    machine = own_machine(chaos=fault)
    protocol = machine.protocol()
    shell = protocol.open_shell()
    command = protocol.run_command(shell, "ver")
    name = fault.partition(":")[0]
    assert firings(machine, name) == 0
    with pytest.raises(WSManFaultError) as error:
        if name == "max-shells":
            protocol.open_shell()
        else:
            protocol.run_command(shell, "ver")
    assert (error.value.wsman_fault_code, firings(machine, name)) == (code, 1)
    protocol.cleanup_command(shell, command)
    assert name == "max-shells" or protocol.run_command(shell, "ver")


def test_a_low_quota_of_operations_bites_while_another_one_waits(
    own_machine: Any, wait_until: Callable[..., None]
) -> None:
    machine = own_machine(chaos="max-operations:1")
    waiting, other = machine.protocol(), machine.protocol()
    shell = waiting.open_shell()
    command = waiting.run_command(shell, 'findstr "^"', console_mode_stdin=False)
    refused: list[int] = []

    def note(action: Callable[[], object]) -> None:
        with contextlib.suppress(*Broken):
            try:
                action()
            except WSManFaultError as error:
                refused.append(error.wsman_fault_code)

    receive = threading.Thread(target=note, args=(lambda: waiting.get_command_output(shell, command),))
    receive.start()

    def bites() -> bool:
        # Which of the two comes second is open.
        note(lambda: other.close_shell(other.open_shell()))
        return bool(refused)

    wait_until(bites, "the quota")
    assert set(refused) == {2150859174}
    assert firings(machine, "max-operations") == len(refused)
    machine.face.stop()
    receive.join(10)
    assert not receive.is_alive()


def test_a_small_envelope_refuses_large_sends_and_keeps_answers_small(own_machine: Any) -> None:
    machine = own_machine(chaos="small-envelope:20k")
    protocol = machine.protocol()
    shell = protocol.open_shell()
    command = protocol.run_command(shell, 'findstr "^"', console_mode_stdin=False)
    protocol.send_command_input(shell, command, b"x" * 10_000)
    assert firings(machine, "small-envelope") == 0
    with pytest.raises(WSManFaultError) as error:
        protocol.send_command_input(shell, command, b"x" * 20_000, end=True)
    assert (error.value.wsman_fault_code, firings(machine, "small-envelope")) == (2150858790, 1)


def test_output_arrives_late(own_machine: Any) -> None:
    machine = own_machine(chaos="receive-delay:80ms")
    protocol = machine.protocol()
    shell = protocol.open_shell()
    command = protocol.run_command(shell, "echo x")
    began = time.monotonic()
    assert protocol.get_command_output(shell, command)[0] == b"x\r\n"
    assert time.monotonic() - began >= 0.08
    assert firings(machine, "receive-delay") >= 1


def test_output_arrives_in_pieces_that_cut_characters_in_two(own_machine: Any) -> None:
    machine = own_machine(chaos="receive-chunks:3", chaos_seed=4)
    protocol = machine.protocol()
    shell = protocol.open_shell(**UTF8)
    text = "äöü€𝄞" * 5
    (machine.c / "text.txt").write_text(text, encoding="utf-8")
    command = protocol.run_command(shell, "type C:\\text.txt")
    pieces, done = [], False
    while not done:
        piece, _, _, done = protocol.get_command_output_raw(shell, command)
        pieces.append(piece)
    assert b"".join(pieces).decode() == text
    assert max(map(len, pieces)) <= 3
    assert any(_broken(piece) for piece in pieces)
    assert firings(machine, "receive-chunks") == len(pieces)


def _broken(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return True
    return False


def test_input_is_lost_after_so_many_bytes(own_machine: Any, run_command: Any) -> None:
    machine = own_machine(chaos="stdin-truncated:1k")
    protocol = machine.protocol()
    shell = protocol.open_shell()
    assert run_command(protocol, shell, 'findstr "^"', b"x" * 1000)[0].strip() == b"x" * 1000
    assert firings(machine, "stdin-truncated") == 0
    assert run_command(protocol, shell, 'findstr "^"', b"y" * 1000)[0].strip() == b"y" * 24
    assert firings(machine, "stdin-truncated") == 1


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("output-bom", b"\xef\xbb\xbfone\r\ntwo\r\n"),
        ("output-crlf", b"one\r\r\ntwo\r\r\n"),
        ("output-noise", b"Willkommen zur\x81ck \xff\xfe\x9d\r\none\r\ntwo\r\n"),
        ("output-bom@2", b"one\r\ntwo\r\n"),
    ],
)
def test_output_in_bad_shape(own_machine: Any, run_command: Any, fault: str, expected: bytes) -> None:
    machine = own_machine(chaos=fault)
    protocol = machine.protocol()
    out, err, code = run_command(protocol, protocol.open_shell(), "echo one&echo two&echo three>&2")
    assert (out, err, code) == (expected, b"three\r\n", 0)
    assert firings(machine, fault.partition("@")[0]) == (0 if "@" in fault else fault.count("crlf") + 1)


def test_the_code_page_is_not_the_one_that_was_asked_for(own_machine: Any, run_command: Any) -> None:
    machine = own_machine(chaos="code-page:850@2")
    protocol = machine.protocol()
    asked = run_command(protocol, protocol.open_shell(**UTF8), "echo ä")
    assert asked[0] == "ä\r\n".encode()
    given = run_command(protocol, protocol.open_shell(**UTF8), "echo ä")
    assert given[0] == "ä\r\n".encode("cp850")
    assert firings(machine, "code-page") == 1


def test_an_ntstatus_is_reported_as_a_negative_number(own_machine: Any, run_command: Any) -> None:
    machine = own_machine(chaos="exit-code-signed")
    protocol = machine.protocol()
    shell = protocol.open_shell()
    assert run_command(protocol, shell, "exit 5")[2] == 5
    assert firings(machine, "exit-code-signed") == 0
    assert run_command(protocol, shell, "exit -1073741819")[2] == -1073741819
    assert firings(machine, "exit-code-signed") == 1
    plain = own_machine(chaos="exit-code-signed@2").protocol()
    assert run_command(plain, plain.open_shell(), "exit -1073741819")[2] == 0xC0000005


def test_status_500_is_no_fault_to_a_client(own_machine: Any) -> None:
    machine = own_machine(chaos="http-500@3")
    protocol = machine.protocol()
    for _ in range(2):
        protocol.open_shell()
    with pytest.raises(WinRMTransportError):
        protocol.open_shell()
    assert occasions(machine, "http-500") == 3
