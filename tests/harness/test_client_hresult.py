"""The mapping of NTSTATUS to HRESULT, and what the errors say."""

from __future__ import annotations

import pickle

import pytest

from harness.client import errors, ntstatus
from harness.client import hresult as hr

TABLE = [
    # Facts section 9: NTSTATUS, Win32, HRESULT.
    (0x00000103, 997, 0x800703E5),
    (0x00000102, 1460, 0x80070102),
    (0x80000005, 234, 0x800700EA),
    (0x8000001A, 259, 0x80070103),
    (0x80000002, 998, 0x800703E6),
    (0xC0000005, 998, 0x800703E6),
    (0xC0000008, 6, 0x80070006),
    (0xC000000D, 87, 0x80070057),
    (0xC00000EF, 87, 0x80070057),
    (0xC00000F1, 87, 0x80070057),
    (0xC0000010, 1, 0x80070001),
    (0xC0000022, 5, 0x80070005),
    (0xC0000023, 122, 0x8007007A),
    (0xC0000024, 6, 0x80070006),
    (0xC0000033, 123, 0x8007007B),
    (0xC0000034, 2, 0x80070002),
    (0xC0000035, 183, 0x800700B7),
    (0xC0000037, 6, 0x80070006),
    (0xC000003A, 3, 0x80070003),
    (0xC000003B, 161, 0x800700A1),
    (0xC000004B, 5, 0x80070005),
    (0xC0000056, 5, 0x80070005),
    (0xC0000059, 1306, 0x8007051A),
    (0xC0000061, 1314, 0x80070522),
    (0xC0000095, 534, 0x80070216),
    (0xC000009A, 1450, 0x800705AA),
    (0xC00000B5, 121, 0x80070079),
    (0xC00000BB, 50, 0x80070032),
    (0xC000010E, 1056, 0x80070420),
    (0xC0000120, 995, 0x800703E3),
    (0xC0000225, 1168, 0x80070490),
    (0xC0000246, 1238, 0x800704D6),
    (0xC0000428, 577, 0x80070241),
]


@pytest.mark.parametrize(("status", "win32", "hresult"), TABLE)
def test_a_status_maps_to_the_codes_that_were_measured(status: int, win32: int, hresult: int) -> None:
    assert ntstatus.to_win32(status) == win32
    assert hr.from_ntstatus(status) == hresult


@pytest.mark.parametrize(
    ("status", "hresult"),
    [
        (0, 0),
        (0xC01C000B, 0x801F000B),
        (0xC01C0010, 0x801F0010),
        (0xC01C0020, 0x801F0020),
        (0x801C0001, 0x8007007A),
        (0x001C0001, 0x001F0001),
        (0xC0150001, 0x80004005),
        (0xC0070005, 0x80004005),
        (0xC0001234, 0x8007013D),
        (-0x3FFFFFDE, 0x80070005),
    ],
)
def test_facilities_and_unknown_statuses_follow_the_rule_of_fltlib(status: int, hresult: int) -> None:
    assert hr.from_ntstatus(status) == hresult


def test_statuses_of_the_filter_facility_have_no_win32_error_of_their_own() -> None:
    assert ntstatus.to_win32(0xC01C0020) == 317


def test_a_timeout_is_a_success_code() -> None:
    assert ntstatus.succeeded(ntstatus.TIMEOUT)
    assert not ntstatus.succeeded(ntstatus.CANCELLED)


@pytest.mark.parametrize(
    ("hresult", "kind"),
    [
        (0x80070006, errors.DisconnectedError),
        (0x80070005, errors.AccessDeniedError),
        (0x80070002, errors.NotFoundError),
        (0x801F0013, errors.NotFoundError),
        (0x800704D6, errors.ConnectionLimitError),
        (0x800703E3, errors.CancelledError),
        (0x8007007A, errors.BufferTooSmallError),
        (0x801F0020, errors.NoWaiterError),
        (0x80070057, errors.InvalidParameterError),
        (0x8007051A, errors.RevisionMismatchError),
        (0x80070001, errors.NotPermittedError),
        (0x80070032, errors.NotPermittedError),
        (0x80071234, errors.PortError),
    ],
)
def test_frequent_codes_have_an_exception_of_their_own(hresult: int, kind: type[errors.PortError]) -> None:
    error = errors.port_error(hresult, "FilterX")
    assert type(error) is kind
    assert isinstance(error, OSError)


def test_an_error_says_the_operation_the_code_its_name_its_meaning_and_what_to_do() -> None:
    text = str(errors.port_error(0x80070002, "FilterConnectCommunicationPort"))
    for part in (
        "FilterConnectCommunicationPort",
        "0x80070002",
        "ERROR_FILE_NOT_FOUND",
        "no port",
        "fltmc filters",
    ):
        assert part in text


@pytest.mark.parametrize("code", range(1, 0x25))
def test_every_code_of_the_filter_facility_has_a_description(code: int) -> None:
    description = hr.describe(0x801F0000 | code)
    assert description.name
    assert description.explanation


def test_every_described_code_is_named_and_explained_in_a_clause() -> None:
    for hresult, description in hr._DESCRIPTIONS.items():
        assert description.name.isupper() or hresult == 0, description
        assert description.explanation
        assert not (description.explanation + description.advice).endswith(".")


def test_an_error_survives_being_sent_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(errors.port_error(0x8007007A, "FilterGetMessage", information=116)))
    assert (type(error), error.hresult, error.information) == (errors.BufferTooSmallError, 0x8007007A, 116)
    file_error = pickle.loads(pickle.dumps(errors.FileError(0xC0000043, "create")))
    assert (file_error.status, file_error.name) == (0xC0000043, "STATUS_SHARING_VIOLATION")
