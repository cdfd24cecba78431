"""The guest's event logs: what the machine writes itself, and what `wevtutil` makes of it."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from vm.emulated.guest.event_query import QueryError, parse_query
from vm.emulated.guest.events import NAMESPACE, SYSTEM, EventLogs

CREATE = "sc create Downlink type= filesys binPath= C:\\x.sys"
NEWER = '"/q:*[System[(EventRecordID > {})]]"'


def ids(machine: Any) -> list[tuple[str, int]]:
    return [(event.provider, event.id) for event in machine.face.events.read(SYSTEM)]


@pytest.fixture
def three(prompt: Any) -> Any:
    """A prompt whose System log has three events."""
    for number in (41, 1001, 41):
        prompt.guest.events.write(
            SYSTEM, "Some 'Power' & <more>", number, 2, "it happened", {"param1": "<x>"}
        )
    return prompt


def test_a_boot_and_a_planned_restart_are_logged(own_machine: Any) -> None:
    machine = own_machine()
    assert ids(machine) == [("EventLog", 6009), ("EventLog", 6005)]
    machine.face.restart()
    assert ids(machine)[2:] == [("User32", 1074), ("EventLog", 6006), ("EventLog", 6009), ("EventLog", 6005)]


def test_a_bugcheck_is_logged_at_the_next_boot_with_code_parameters_and_dump(own_machine: Any) -> None:
    machine = own_machine()
    machine.face.crashed(0xD1, (0x28, 2, 0, 0xFFFFF80000001000), "C:\\Windows\\Minidump\\112126-01.txt")
    machine.face.restart()
    events = machine.face.events.read(SYSTEM)[2:]
    assert [event.id for event in events] == [6009, 6005, 41, 6008, 1001]
    power, report = dict(events[2].data), dict(events[4].data)
    assert (power["BugcheckCode"], power["BugcheckParameter4"]) == ("209", "0xfffff80000001000")
    assert report["param1"] == (
        "0x000000d1 (0x0000000000000028, 0x0000000000000002, 0x0000000000000000, 0xfffff80000001000)"
    )
    assert report["param2"] == "C:\\Windows\\Minidump\\112126-01.txt"
    machine.face.restart()
    assert 41 not in [event.id for event in machine.face.events.read(SYSTEM)[7:]]


def test_records_are_numbered_on_and_carry_the_guests_time(own_machine: Any) -> None:
    machine = own_machine(chaos="clock-off:1d")
    machine.face.events.clear(SYSTEM)
    event = machine.face.events.write(SYSTEM, "x", 1, 4, "")
    assert event.record == 3
    assert abs(event.time - machine.face.clock.now()) < 1


def test_filters_and_services_leave_events(own_machine: Any, run_command: Any) -> None:
    machine = own_machine()
    protocol = machine.protocol()
    shell = protocol.open_shell()
    assert run_command(protocol, shell, CREATE + "& fltmc load Downlink& fltmc unload Downlink")[2] == 0
    assert ids(machine)[2:] == [
        ("Service Control Manager", 7045),
        ("Microsoft-Windows-FilterManager", 6),
        ("Microsoft-Windows-FilterManager", 1),
    ]
    machine.computer.refuse["load"] = 0xC0000428
    assert run_command(protocol, shell, "sc start Downlink")[2] == 577
    failed = machine.face.events.read(SYSTEM)[-1]
    assert (failed.id, dict(failed.data)["param2"]) == (7000, "%%577")


def test_events_after_a_record_come_as_xml_one_per_line(three: Any) -> None:
    result = three("wevtutil qe System " + NEWER.format(1) + " /f:xml")
    assert result.code == 0
    events = [ElementTree.fromstring(line) for line in result.lines]
    path = f"{{{NAMESPACE}}}System/{{{NAMESPACE}}}"
    assert [event.findtext(path + "EventRecordID") for event in events] == ["2", "3"]
    provider = events[0].find(path + "Provider")
    data = events[0].find(f"{{{NAMESPACE}}}EventData/{{{NAMESPACE}}}Data")
    assert provider is not None and provider.get("Name") == "Some 'Power' & <more>"
    assert data is not None and (data.get("Name"), data.text) == ("param1", "<x>")


def test_direction_count_and_root_element(three: Any) -> None:
    newest = three("wevtutil qe system /rd:true /c:1 /f:text")
    assert "Event[0]" in newest.out and "Event[1]" not in newest.out and "Event ID: 41" in newest.out
    root = ElementTree.fromstring(three("wevtutil qe System /e:Events").out)
    assert (root.tag, len(root)) == ("Events", 3)


def test_the_newest_record_follows_from_gli(three: Any) -> None:
    said = dict(line.split(": ", 1) for line in three("wevtutil gli System").lines)
    assert (said["numberOfLogRecords"], said["oldestRecordNumber"]) == ("3", "1")
    three("wevtutil cl System")
    said = three("wevtutil gli System").out
    assert "numberOfLogRecords: 0" in said and "oldest" not in said
    assert "Application" in three("wevtutil el").lines


def test_a_log_is_exported_by_query_and_not_over_a_file(three: Any) -> None:
    line = "wevtutil epl System C:\\Work\\system.evtx " + NEWER.format(2)
    assert three(line).code == 0
    assert len(ElementTree.fromstring(three.path("system.evtx").read_bytes())) == 1
    assert three(line).code == 80
    assert three(line + " /ow:true").code == 0


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("wevtutil qe Nothing", 15007, "The specified channel could not be found."),
        ("wevtutil qe System /q:*[System[Nonsense=1]]", 15001, "The specified query is invalid."),
        ("wevtutil qe System /c:0", 87, "The parameter is incorrect."),
        ("wevtutil qe", 87, "Too few arguments"),
        ("wevtutil frob", 87, "Invalid command."),
    ],
)
def test_what_cannot_be_is_refused_with_the_systems_code(three: Any, line: str, code: int, said: str) -> None:
    result = three(line)
    assert (result.code, said in result.err) == (code, True)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("*", [1, 2, 3]),
        ("*[System[EventRecordID>2]]", [3]),
        ("*[System[(EventRecordID >= 2) and EventID=41]]", [3]),
        ("*[System[Provider[@Name='b'] or EventID=1001]]", [2, 3]),
        ("Event[System[(EventID=41 or EventID=7) and (Level<3)]]", [1]),
        ("*[System/EventID!=41]", [2]),
        ("*[System[TimeCreated[@SystemTime>='1970-01-01T00:00:02.000Z']]]", [2, 3]),
        ("*[EventData[Data[@Name='n']='2']]", [2]),
        ("*[EventData[Data='2']]", [2]),
    ],
)
def test_queries_select(query: str, expected: list[int]) -> None:
    times = iter(range(10))
    logs = EventLogs("PC", lambda: float(next(times)))
    for provider, number, level in (("a", 41, 1), ("a", 1001, 2), ("b", 41, 4)):
        logs.write(SYSTEM, provider, number, level, "", {"n": str(len(logs.read(SYSTEM)) + 1)})
    wanted = parse_query(query)
    assert [event.record for event in logs.read(SYSTEM) if wanted(event)] == expected


@pytest.mark.parametrize(
    "query",
    ["*[", "*[System]", "*[System[EventID]]", "*[System[EventID='x']]", "x", "*]", "*[System[Level=1] and]"],
)
def test_queries_that_cannot_be_read_are_refused(query: str) -> None:
    with pytest.raises(QueryError):
        parse_query(query)
