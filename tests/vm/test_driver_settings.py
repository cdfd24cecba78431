"""The registry values of Downlink's driver: bounds, volumes, diagnostics, and who may connect."""

from __future__ import annotations

import random

import pytest

from harness.client.protocol import MASK_FILES, PORT_NAME, Connect, Kind
from tests.vm.driver_lab import PARAMETERS, SERVICE, Station, Stations, loaded
from vm.emulated.fltmgr import instances
from vm.emulated.kernel.security import (
    ACCESS_ALLOWED_ACE_TYPE,
    ACCESS_DENIED_ACE_TYPE,
    ADMINISTRATOR_TOKEN,
    ADMINISTRATORS,
    AUTHENTICATED_USERS,
    EVERYONE,
    SYSTEM,
    USERS,
    Ace,
    Token,
)
from vm.emulated.library import ServiceFailedError
from vm.emulated.registry import REG_BINARY, REG_DWORD, REG_SZ, RegistryValue

SUCCESS = 0
ACCESS_DENIED = 0xC000_0022
INSUFFICIENT_RESOURCES = 0xC000_009A
CONNECTION_COUNT_LIMIT = 0xC000_0246
INVALID_SECURITY_DESCR = 0xC000_0079
ALL = 0x1F_0001
NTFS, FAT, EXFAT, REFS, CDFS, UDFS = 2, 3, 22, 28, 4, 5
"""FLT_FILESYSTEM_TYPE."""
SERVICE_ACCOUNT = "S-1-5-80-1000000001-2-3-4-4294967295"


def connect(station: Station, context: bytes | None = None, token: Token | None = None) -> int:
    """The status of a connection of a new client; the client stays."""
    raw = Connect(event_mask=MASK_FILES).encode() if context is None else context
    client = station.machine.client(token=token or ADMINISTRATOR_TOKEN)
    status, _ = client.call("connect_port", name=PORT_NAME, context=raw, context_size=len(raw))
    return status


def connections(station: Station) -> int:
    """How many connections there can be."""
    count = 0
    while (status := connect(station)) == SUCCESS:
        count += 1
    assert status == CONNECTION_COUNT_LIMIT
    return count


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, 8), (1, 1), (12, 12), (64, 64), (0, 1), (65, 64), (0xFFFF_FFFF, 64), ("many", 8)],
)
def test_the_limit_of_connections_is_a_setting_within_bounds(
    stations: Stations, value: int | str | None, expected: int
) -> None:
    settings = {"MemoryBudgetKilobytes": 1 << 20}
    station = stations(settings=settings if value is None else settings | {"MaximumConnections": value})
    assert connections(station) == expected


@pytest.mark.parametrize(
    "value",
    [
        RegistryValue(REG_DWORD, b"\2\0"),
        RegistryValue(REG_BINARY, b"\2\0\0\0"),
        RegistryValue(REG_DWORD, b""),
        RegistryValue(REG_BINARY, bytes(5000)),
    ],
)
def test_a_number_of_another_type_or_length_counts_as_missing(
    stations: Stations, value: RegistryValue
) -> None:
    assert connections(stations(settings={"MaximumConnections": value})) == 8


def test_a_service_without_parameters_has_the_defaults(stations: Stations) -> None:
    station = stations(load=False)
    for name in list(station.kernel.registry.subkeys(PARAMETERS)):
        station.kernel.registry.delete_key(rf"{PARAMETERS}\{name}", recursive=True)
    station.kernel.registry.delete_key(PARAMETERS)
    station.load()
    assert connections(station) == 8


def test_connections_share_the_memory_budget_and_give_it_back(stations: Stations) -> None:
    station = stations(settings={"MemoryBudgetKilobytes": 1024})
    big = 700 << 10
    first = station.listener(queue_bytes=big)
    before = station.pool_bytes()
    assert (
        connect(station, Connect(event_mask=MASK_FILES, queue_bytes=big).encode()) == INSUFFICIENT_RESOURCES
    )
    assert station.pool_bytes() == before
    second = station.listener(queue_bytes=256 << 10)
    assert (
        connect(station, Connect(event_mask=MASK_FILES, queue_bytes=128 << 10).encode())
        == INSUFFICIENT_RESOURCES
    )
    first.close()
    third = station.listener(queue_bytes=big)
    for listener in (second, third):
        listener.close()
    station.listener(queue_bytes=900 << 10)


def test_a_budget_below_one_connection_is_raised_to_what_one_needs(stations: Stations) -> None:
    station = stations(settings={"MemoryBudgetKilobytes": 0})
    small = Connect(event_mask=MASK_FILES, queue_bytes=0x1000).encode()
    assert connect(station, small) == SUCCESS


@pytest.mark.parametrize(
    ("mask", "kind", "attached"),
    [
        (None, NTFS, True),
        (None, REFS, True),
        (None, FAT, True),
        (None, EXFAT, True),
        (None, CDFS, False),
        (None, UDFS, False),
        (0x1, NTFS, True),
        (0x1, FAT, False),
        (0x2, REFS, True),
        (0x4, FAT, True),
        (0x8, EXFAT, True),
        (0x8, NTFS, False),
        (0, NTFS, False),
        (0xFFFF_FFFF, CDFS, False),
    ],
)
def test_the_driver_attaches_to_the_file_systems_of_its_settings(
    stations: Stations, mask: int | None, kind: int, attached: bool
) -> None:
    station = stations(load=False)
    if mask is not None:
        station.set("FileSystems", mask)
    for volume in station.machine.manager.volumes:
        volume.file_system_type = kind
    station.load()
    assert attached_volumes(station) == ({"D:", "E:"} if attached else set())


@pytest.mark.parametrize(("mask", "expected"), [(None, {"D:"}), (0x10F, {"D:", "E:"})])
def test_removable_media_are_left_alone_unless_asked_for(
    stations: Stations, mask: int | None, expected: set[str]
) -> None:
    station = stations(load=False)
    if mask is not None:
        station.set("FileSystems", mask)
    station.machine.manager.volumes[1].characteristics |= 1
    station.load()
    assert attached_volumes(station) == expected


def attached_volumes(station: Station) -> set[str | None]:
    return {v.dos_name for v in station.machine.manager.volumes if v.instances}


def test_an_instance_can_be_detached_and_attached_again_while_files_are_open(station: Station) -> None:
    listener, worker = station.listener(), station.worker()
    handle = worker.open("D:\\a")
    worker.write(handle)
    station.machine.settle()
    kernel, manager = station.kernel, station.machine.manager
    owner, volume = manager.find(SERVICE), manager.volumes[0]
    assert owner is not None
    assert kernel.run(instances.detach_by_name(kernel, owner, volume, None), "detach") == 0
    before = len(listener.records())
    worker.write(handle)
    worker.file("D:\\unseen")
    assert not listener.records()
    status, _ = kernel.run(instances.attach_by_name(kernel, owner, volume, None, None), "attach")
    assert status == 0
    worker.write(handle, b"seen")
    worker.delete(handle)
    worker.close(handle)
    assert before == 2
    assert [(Kind(r.kind).name, r.value) for r in listener.records()] == [
        ("FILE_WRITTEN", 4),
        ("FILE_CLOSED", 4),
        ("FILE_DELETED", 0),
    ]


def test_a_mark_that_was_set_while_no_instance_was_attached_still_counts(station: Station) -> None:
    listener, worker = station.listener(), station.worker()
    handle = worker.open("D:\\a")
    kernel, manager = station.kernel, station.machine.manager
    owner, volume = manager.find(SERVICE), manager.volumes[0]
    assert owner is not None
    kernel.run(instances.detach_by_name(kernel, owner, volume, None), "detach")
    worker.delete(handle)
    kernel.run(instances.attach_by_name(kernel, owner, volume, None, None), "attach")
    worker.close(handle)
    assert [Kind(r.kind).name for r in listener.records()][-1] == "FILE_DELETED"


@pytest.mark.parametrize(("level", "least"), [(None, 0), (0, 0), (2, 3), (3, 4), (77, 4)])
def test_the_debugger_hears_what_the_settings_say_and_nothing_by_default(
    stations: Stations, level: int | None, least: int
) -> None:
    station = stations(load=False)
    lines = station.kernel.debug_lines
    if level is not None:
        station.set("DebugLevel", level)
    station.load()
    listener = station.listener()
    station.worker().file("D:\\a", b"1")
    listener.records()
    assert station.unload() == SUCCESS
    assert (len(lines) >= least) if least else not lines
    assert all(line.startswith("Downlink: ") for line in lines)


# Who may connect


def admitted(text: str | RegistryValue, stations: Stations) -> tuple[Ace, ...] | None:
    """The entries that the port has with this setting; None if the driver does not load."""
    station = stations(load=False)
    station.set("PortSecurity", text)
    try:
        station.load()
    except ServiceFailedError as error:
        assert error.status == INVALID_SECURITY_DESCR
        assert not loaded(station)
        assert station.pool_bytes() == 0
        return None
    port = station.kernel.objects.lookup(PORT_NAME).body
    entries: tuple[Ace, ...] | None = port.security.dacl
    assert entries is not None
    return entries


def allow(sid: str, mask: int = ALL) -> Ace:
    return Ace(ACCESS_ALLOWED_ACE_TYPE, mask, sid)


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("D:(A;;GA;;;SY)", (allow(SYSTEM),)),
        ("D:P(A;;GA;;;SY)(A;;0x1f0001;;;BA)", (allow(SYSTEM), allow(ADMINISTRATORS))),
        ("D:(A;;0x1F0001;;;LS)(A;;GR;;;NS)", (allow("S-1-5-19"), allow("S-1-5-20", 0x20001))),
        (f"D:(A;;GA;;;{SERVICE_ACCOUNT})", (allow(SERVICE_ACCOUNT),)),
        ("D:(D;;GA;;;WD)(A;;GA;;;SY)", (Ace(ACCESS_DENIED_ACE_TYPE, ALL, EVERYONE), allow(SYSTEM))),
        ("D:(A;;0x1;;;S-1-0x5-11)", (allow(AUTHENTICATED_USERS, 1),)),
        ("D:(A;;GA;;;S-1-1-1)(A;;GA;;;S-1-5-7-1)", (allow("S-1-1-1"), allow("S-1-5-7-1"))),
        (
            "D:(A;;GA;;;S-1-5-" + "-".join(str(i) for i in range(1, 16)) + ")",
            (allow("S-1-5-" + "-".join(str(i) for i in range(1, 16))),),
        ),
        ("D:" + "(A;;GA;;;SY)" * 16, (allow(SYSTEM),) * 16),
    ],
)
def test_a_good_description_becomes_the_entries_of_the_port(
    stations: Stations, text: str, entries: tuple[Ace, ...]
) -> None:
    assert admitted(text, stations) == entries


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("D:", id="nobody"),
        pytest.param("D:P", id="nobody, protected"),
        pytest.param("D:NO_ACCESS_CONTROL", id="null DACL"),
        pytest.param("(A;;GA;;;SY)", id="no D:"),
        pytest.param("S:(AU;SA;GA;;;SY)", id="a SACL only"),
        pytest.param("O:SYD:(A;;GA;;;SY)", id="owner"),
        pytest.param("d:(A;;GA;;;SY)", id="lower case"),
        pytest.param(" D:(A;;GA;;;SY)", id="leading space"),
        pytest.param("D:(A;;GA;;;SY) ", id="trailing space"),
        pytest.param("D:(A;;GA;;;SY)x", id="trailing text"),
        pytest.param("D:(A;;GA;;;SY)\0", id="embedded terminator"),
        pytest.param("D:(A;;GA;;;SY", id="not closed"),
        pytest.param("D:(A;OI;GA;;;SY)", id="flags"),
        pytest.param("D:(A;;;;;SY)", id="no rights"),
        pytest.param("D:(A;;0x;;;SY)", id="no digits"),
        pytest.param("D:(A;;0x0;;;SY)", id="no right"),
        pytest.param("D:(A;;0x1F0003;;;SY)", id="a right that ports do not have"),
        pytest.param("D:(A;;0x11F0001;;;SY)", id="rights out of bounds"),
        pytest.param("D:(A;;0xFFFFFFFFFFFFFFFFFFFF;;;SY)", id="rights that overflow"),
        pytest.param("D:(A;;31;;;SY)", id="decimal rights"),
        pytest.param("D:(A;;GW;;;SY)", id="unknown rights"),
        pytest.param("D:(A;;GAGR;;;SY)", id="several rights"),
        pytest.param("D:(A;;GA;;;XX)", id="unknown name"),
        pytest.param("D:(A;;GA;;;)", id="nobody named"),
        pytest.param("D:(A;;GA;;;S-1-5)", id="no parts"),
        pytest.param("D:(A;;GA;;;S-1-5-)", id="empty part"),
        pytest.param("D:(A;;GA;;;S-2-5-18)", id="revision"),
        pytest.param("D:(A;;GA;;;S-1-5-4294967296)", id="part out of bounds"),
        pytest.param("D:(A;;GA;;;S-1-281474976710656-1)", id="authority out of bounds"),
        pytest.param("D:(A;;GA;;;S-1-5-" + "-".join("1" * 16) + ")", id="16 parts"),
        pytest.param("D:(A;;GA;;;S-1-5-0x12)", id="hexadecimal part"),
        pytest.param("D:(XA;;GA;;;SY;(x))", id="conditional entry"),
        pytest.param("D:(A;;GA;;;WD)", id="everyone"),
        pytest.param("D:(A;;GA;;;S-1-1-0)", id="everyone in numbers"),
        pytest.param("D:(A;;GA;;;S-1-0x1-0)", id="everyone in other numbers"),
        pytest.param("D:(A;;GA;;;S-1-01-00)", id="everyone with zeros"),
        pytest.param("D:(A;;GA;;;AN)", id="anonymous"),
        pytest.param("D:(A;;GA;;;S-1-5-7)", id="anonymous in numbers"),
        pytest.param("D:(A;;GA;;;SY)(A;;0x1;;;WD)", id="everyone beside others"),
        pytest.param("D:(D;;GA;;;WD)", id="denials only"),
        pytest.param("D:" + "(A;;GA;;;SY)" * 17, id="17 entries"),
        pytest.param("D:" + "(A;;GA;;;SY)" * 200, id="longer than is read"),
    ],
)
def test_a_bad_description_keeps_the_driver_from_loading(stations: Stations, text: str) -> None:
    assert admitted(text, stations) is None


@pytest.mark.parametrize(
    "value",
    [
        RegistryValue(REG_DWORD, b"\1\0\0\0"),
        RegistryValue(REG_SZ, b""),
        RegistryValue(REG_SZ, b"D"),
        RegistryValue(REG_SZ, "D:(A;;GA;;;SY)".encode("utf-16-le") + b"\0"),
        RegistryValue(REG_BINARY, "D:(A;;GA;;;SY)".encode("utf-16-le")),
    ],
)
def test_a_description_of_another_type_keeps_the_driver_from_loading(
    stations: Stations, value: RegistryValue
) -> None:
    assert admitted(value, stations) is None


def test_a_description_without_its_terminator_is_read_to_its_end(stations: Stations) -> None:
    raw = "D:(A;;GA;;;SY)".encode("utf-16-le")
    assert admitted(RegistryValue(REG_SZ, raw), stations) == (allow(SYSTEM),)


def test_no_damage_to_a_description_admits_anybody_else(stations: Stations) -> None:
    """Random damage either is refused or still names nobody but those who were named."""
    good = f"D:(A;;GA;;;SY)(A;;0x1F0001;;;{SERVICE_ACCOUNT})"
    alphabet = "ADGRSYBWN:;()-0123456789xP"
    chance = random.Random(5)
    refused = 0
    for _ in range(150):
        text = list(good)
        for _ in range(chance.randint(1, 3)):
            position = chance.randrange(len(text))
            match chance.randrange(3):
                case 0:
                    text[position] = chance.choice(alphabet)
                case 1:
                    del text[position]
                case _:
                    text.insert(position, chance.choice(alphabet))
        entries = admitted("".join(text), stations)
        refused += entries is None
        for entry in entries or ():
            assert entry.kind == ACCESS_DENIED_ACE_TYPE or entry.sid not in (EVERYONE, "S-1-5-7"), text
    assert refused > 50


def test_the_account_of_a_service_may_connect_and_nobody_else(stations: Stations) -> None:
    station = stations(settings={"PortSecurity": f"D:(A;;GA;;;{SERVICE_ACCOUNT})"})
    service = Token(SERVICE_ACCOUNT, frozenset((USERS, EVERYONE, AUTHENTICATED_USERS)))
    plain = Token("S-1-5-21-1-2-3-1005", frozenset((USERS, EVERYONE, AUTHENTICATED_USERS)))
    assert connect(station, token=service) == SUCCESS
    assert connect(station, token=plain) == ACCESS_DENIED
    assert connect(station) == ACCESS_DENIED


def test_less_than_all_access_is_not_enough_to_connect(stations: Stations) -> None:
    station = stations(settings={"PortSecurity": "D:(A;;GR;;;BA)"})
    assert connect(station) == ACCESS_DENIED


def test_a_driver_that_did_not_load_loads_when_its_settings_are_mended(stations: Stations) -> None:
    station = stations(load=False, settings={"PortSecurity": "D:(A;;GA;;;WD)"})
    with pytest.raises(ServiceFailedError):
        station.load()
    station.set("PortSecurity", "D:(A;;GA;;;BA)")
    station.load()
    assert connect(station) == SUCCESS
