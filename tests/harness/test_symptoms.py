"""The one table of symptoms: complete, unambiguous, the source of the harness's hints and of the document."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.client import hresult
from harness.deployment import failures
from harness.remote import faults
from harness.symptoms import Place, Symptom, all_symptoms, by_id, driver, matching
from harness.symptoms.advice import advise
from harness.symptoms.document import COMMAND, PATH, document
from vm.errors import GuestError

CHECKOUT = Path(__file__).resolve().parents[2]


def test_the_document_is_up_to_date() -> None:
    written = (CHECKOUT / PATH).read_text(encoding="utf-8")
    assert written == document(), f"make it again: {COMMAND}"


def test_there_are_at_least_forty_rows_and_every_place_has_some() -> None:
    rows = all_symptoms()
    assert len(rows) >= 40
    assert {row.place for row in rows} == set(Place)


def test_identifiers_are_unique_and_fit_an_anchor() -> None:
    names = [row.id for row in all_symptoms()]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[A-Za-z0-9-]+", name) for name in names)


@pytest.mark.parametrize("row", all_symptoms(), ids=lambda row: row.id)
def test_a_row_says_what_is_seen_why_and_what_to_do(row: Symptom) -> None:
    for text in (row.seen, row.cause, row.cure):
        assert text.strip() == text and text
        assert not text.endswith((".", "!")) and "\n" not in text
    assert row.cause != row.cure
    assert re.compile(row.pattern, re.IGNORECASE) is not None
    assert row.pattern == "" or not re.search(row.pattern, "", re.IGNORECASE), "the pattern fits everything"


@pytest.mark.parametrize("row", (*driver.LOAD, *driver.UNLOAD), ids=lambda row: row.id)
def test_the_hint_of_a_failed_load_or_unload_is_its_row(row: Symptom) -> None:
    if row.code is None or row.code < 0x80000000:
        return
    assert failures.advise(row.code) == row.cure
    assert row.cause in failures.explain(row.code)


@pytest.mark.parametrize(
    "row",
    [row for row in driver.LOAD + driver.ENTRY + driver.UNLOAD + driver.CONNECT if row.code],
    ids=lambda row: row.id,
)
def test_the_name_in_a_row_is_the_name_of_its_number(row: Symptom) -> None:
    named = re.search(r"\((ERROR_[A-Z_]+)", row.seen)
    assert row.code is not None
    if named and row.code >= 0x80000000 and (known := hresult.describe(row.code).name).startswith("ERROR_"):
        assert named[1] == known


def test_faults_of_winrm_are_in_the_table_with_the_words_that_are_printed() -> None:
    for failure in faults.FAILURES:
        row = by_id(f"winrm-{failure.code:08x}")
        assert (row.cause, row.cure, row.code) == (failure.cause, failure.cure, failure.code)


@pytest.mark.parametrize(
    ("text", "identifier"),
    [
        ("error MSB4062: The task from assembly Microsoft.DriverKit.Build.Tasks.18.0.dll", "wdk-msb4062"),
        ("22.9.7: DriverVer set to a date in the future", "wdk-inf2cat-22-9-7"),
        ("New-PSSession: The credential is invalid.", "hyperv-credential-invalid"),
        ("The value is protected by Secure Boot policy", "hyperv-secure-boot"),
        ("There is not enough space on the disk.", "disk-full"),
        ("Load failed with error: 0x80070241", "load-80070241"),
        ("CERT_E_EXPIRED 0x800b0101", "certificate-expired"),
    ],
)
def test_a_message_finds_its_row(text: str, identifier: str) -> None:
    assert identifier in {row.id for row in matching(text)}


def test_a_message_that_nobody_knows_finds_nothing() -> None:
    assert matching("everything is fine") == ()


def test_the_page_has_every_row_once_and_its_links_lead_somewhere() -> None:
    page = document()
    anchors = re.findall(r'<a id="([^"]+)">', page)
    assert sorted(anchors) == sorted(row.id for row in all_symptoms())
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line[3:].lower()).replace(" ", "-")
        for line in page.splitlines()
        if line.startswith("## ")
    }
    for target in re.findall(r"\]\(#([^)]+)\)", page):
        assert target in headings | set(anchors)
    assert all(line.count(" | ") == 2 for line in page.splitlines() if line.startswith("| <a"))


@pytest.mark.parametrize(
    ("message", "identifier"),
    [
        ("'copy a b' returned 1: There is not enough space on the disk.", "disk-full"),
        (
            "'Get-Machine' failed: Get-VM : You do not have the required permission to do this",
            "hyperv-no-rights",
        ),
        ("'fltmc load X' returned 1: Load failed with error: 0x800700c1", "load-800700c1"),
        ("'pnputil /add-driver x.inf' returned 3010", "pnputil-3010"),
    ],
)
def test_an_error_without_a_hint_gets_the_cure_of_what_it_shows(message: str, identifier: str) -> None:
    error = GuestError(message)
    advise(error)
    assert error.hint == by_id(identifier).cure


def test_an_error_is_advised_by_its_causes_too_and_never_loses_its_own_hint() -> None:
    cause = OSError("No space left on device")
    error = GuestError("the file cannot be written", causes=[cause])
    advise(error)
    assert error.hint == by_id("disk-full").cure
    own = GuestError("No space left on device", hint="mine")
    advise(own)
    assert own.hint == "mine"


@pytest.mark.parametrize(
    "message",
    [
        "'certutil -store Root' returned 0x80070002: the system cannot find the file",
        "'type a.txt' returned 259: more data",
        "there were 1072 files",
        "all is well",
    ],
)
def test_a_number_of_another_program_gets_no_hint(message: str) -> None:
    error = GuestError(message)
    advise(error)
    assert error.hint is None
