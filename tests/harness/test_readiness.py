"""Guests that have just been started, and connections that are lost in what may be done twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.remote import readiness
from harness.remote.faults import ConnectionLostError, LogonError, NoNtlmError, StatusError
from harness.remote.guest import Guest
from harness.remote.readiness import wait_until_ready
from harness.remote.repeating import repeated
from tests.harness.transport_lab import Lab
from vm.deadline import Deadline
from vm.errors import GuestError


@pytest.fixture
def guests(tmp_path: Path) -> Iterator[Callable[..., Guest]]:
    labs: list[Lab] = []
    opened: list[Guest] = []

    def make(**settings: object) -> Guest:
        labs.append(Lab(tmp_path / f"lab{len(labs)}", **settings))
        opened.append(labs[-1].guest("sftp"))
        return opened[-1]

    yield make
    for guest in opened:
        guest.close()
    for lab in labs:
        lab.stop()


def soon() -> Deadline:
    return Deadline.after(seconds=20)


@pytest.mark.parametrize(
    "chaos", ["", "http-503@1-3", "http-500@1-3", "logon-refused-early", "reset-create-after", "shells-lost"]
)
def test_what_a_booting_guest_does_is_waited_out(guests: Callable[..., Guest], chaos: str) -> None:
    assert "[Version 10.0." in wait_until_ready(guests(chaos=chaos), soon())


def test_a_wrong_password_is_tried_three_times_and_never_often(
    tmp_path: Path, guests: Callable[..., Guest]
) -> None:
    guest = guests(chaos="password-refused")
    attempts: list[int] = []
    run = guest.run

    def count(*arguments: object, **options: object) -> object:
        attempts.append(1)
        return run(*arguments, **options)  # type: ignore[arg-type]

    guest.run = count  # type: ignore[method-assign,assignment]
    with pytest.raises(LogonError, match="refused the user name or password"):
        wait_until_ready(guest, soon(), logon_pauses=(0.01, 0.01))
    assert len(attempts) == 3


def test_a_guest_without_ntlm_is_not_asked_again(guests: Callable[..., Guest]) -> None:
    began = time.monotonic()
    with pytest.raises(NoNtlmError):
        wait_until_ready(guests(chaos="ntlm-refused"), soon(), logon_pauses=(30.0,))
    assert time.monotonic() - began < 20


def test_a_web_server_without_winrm_is_told_as_it_is(
    guests: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "STATUS_SECONDS", 0.2)
    with pytest.raises(StatusError, match="HTTP status 503"):
        wait_until_ready(guests(chaos="http-503@*"), soon())


def test_a_guest_that_never_answers_is_told_with_its_last_answer(guests: Callable[..., Guest]) -> None:
    began = time.monotonic()
    with pytest.raises(ConnectionLostError, match="was lost while"):
        wait_until_ready(guests(chaos="winrm-refused@*"), Deadline.after(seconds=0.5))
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("chaos", ["reset-command-before@2", "reset-command-after@2", "shells-lost@2"])
def test_a_question_is_asked_once_more(guests: Callable[..., Guest], chaos: str) -> None:
    guest = guests(chaos=chaos)
    guest.run("ver", deadline=soon())

    assert guest.run("ver", deadline=soon(), repeatable=True).exit_code == 0


def test_what_may_not_be_done_twice_is_not(guests: Callable[..., Guest]) -> None:
    guest = guests(chaos="reset-command-after@2")
    guest.run("ver", deadline=soon())

    with pytest.raises(ConnectionLostError):
        guest.run("ver", deadline=soon())


def test_the_second_loss_is_the_error(guests: Callable[..., Guest]) -> None:
    attempts: list[int] = []

    def lose() -> None:
        attempts.append(1)
        raise ConnectionLostError(f"loss {len(attempts)}")

    with pytest.raises(ConnectionLostError, match="loss 2"):
        repeated(guests(), lose)
    assert len(attempts) == 2


def test_another_error_is_not_tried_again(guests: Callable[..., Guest]) -> None:
    attempts: list[int] = []

    def fail() -> None:
        attempts.append(1)
        raise GuestError("no")

    with pytest.raises(GuestError, match="no"):
        repeated(guests(), fail)
    assert len(attempts) == 1
