"""What an INF's install section does: the section that a Windows chooses, its files, services and registry values."""

from __future__ import annotations

from pathlib import Path

import pytest

from vm.inf import Inf, parse, read
from vm.inf.actions import (
    REG_BINARY,
    REG_DWORD,
    REG_EXPAND_SZ,
    REG_MULTI_SZ,
    REG_SZ,
    CopiedFile,
    InstallError,
    RegistryWrite,
    choose,
    installation,
    source_files,
)
from vm.inf.install import Family, catalog_file

DRIVER = (Path(__file__).resolve().parents[2] / "driver" / "downlink.inf").read_bytes()


@pytest.fixture(scope="module")
def own() -> Inf:
    """The project's own INF, stamped for x64."""
    return read(DRIVER, "amd64")


@pytest.mark.parametrize(
    ("build", "family"),
    [(26100, Family.STORE), (25952, Family.STORE), (25951, Family.DRIVERS), (14393, Family.DRIVERS)],
)
def test_a_windows_chooses_the_family_for_its_build(own: Inf, build: int, family: Family) -> None:
    chosen = choose(own, "amd64", (10, 0), build)

    assert chosen is not None and chosen.family is family


def test_no_section_is_chosen_for_another_architecture_or_an_older_version(own: Inf) -> None:
    assert choose(own, "arm64", (10, 0), 26100) is None
    only = parse("[DefaultInstall.NTamd64.10.0...25952]\nCopyFiles = @x.sys\n")
    assert choose(only, "amd64", (10, 0), 25951) is None
    assert choose(only, "amd64", (6, 3), 9600) is None
    assert choose(only, "amd64", (10, 0), 25952) is not None


def test_the_store_family_leaves_the_image_in_the_store_with_its_instances_under_parameters(
    own: Inf,
) -> None:
    chosen = choose(own, "amd64", (10, 0), 26100)
    assert chosen is not None
    done = installation(own, chosen)

    assert done.files == (CopiedFile("downlink.sys", "downlink.sys", "13", ""),)
    (service,) = done.services
    assert (service.name, service.type, service.start, service.error_control) == ("Downlink", 2, 3, 1)
    assert service.binary == "%13%\\downlink.sys"
    assert service.group == "FSFilter Activity Monitor" and service.dependencies == ("FltMgr",)
    assert RegistryWrite("Parameters", "SupportedFeatures", REG_DWORD, 3, False) in service.writes
    instance = "Parameters\\Instances\\Downlink Instance"
    assert RegistryWrite(instance, "Altitude", REG_SZ, "370777.7", False) in service.writes
    assert RegistryWrite(instance, "Flags", REG_DWORD, 0, False) in service.writes
    assert all(write.key.startswith("Parameters") for write in service.writes)


def test_the_older_family_copies_the_image_and_puts_instances_below_the_service(own: Inf) -> None:
    chosen = choose(own, "amd64", (10, 0), 19045)
    assert chosen is not None
    done = installation(own, chosen)

    assert done.files == (CopiedFile("downlink.sys", "downlink.sys", "12", ""),)
    (service,) = done.services
    assert service.binary == "%12%\\downlink.sys"
    assert RegistryWrite("Instances", "DefaultInstance", REG_SZ, "Downlink Instance", False) in service.writes
    assert RegistryWrite("", "SupportedFeatures", REG_DWORD, 3, False) in service.writes


def test_the_package_is_what_the_inf_lists_and_its_catalog(own: Inf) -> None:
    assert source_files(own, "amd64") == ("downlink.sys",)
    assert catalog_file(own, "amd64") == "downlink.cat"
    text = "[Version]\nCatalogFile = a.cat\nCatalogFile.NTamd64 = b.cat\n"
    assert (catalog_file(parse(text), "amd64"), catalog_file(parse(text), "arm64")) == ("b.cat", "a.cat")
    both = parse("[SourceDisksFiles]\na.sys = 1\n[SourceDisksFiles.amd64]\nb.dll = 1\nA.sys = 1\n")
    assert source_files(both, "amd64") == ("a.sys", "b.dll")


INF = """
[DefaultInstall.NTamd64]
CopyFiles = Copy, @plain.txt
[DefaultInstall.NTamd64.Services]
AddService = Svc,,Service
[Copy]
target.sys,source.sys
[DestinationDirs]
DefaultDestDir = 11
Copy = 12,UMDF
[Service]
ServiceType = 0x2
StartType = 3
ErrorControl = 1
ServiceBinary = %12%\\target.sys
AddReg = Values
[Values]
{values}
"""


def values(lines: str) -> tuple[RegistryWrite, ...]:
    inf = parse(INF.format(values=lines))
    chosen = choose(inf, "amd64", (10, 0), 19045)
    assert chosen is not None
    return installation(inf, chosen).services[0].writes


def test_a_file_may_change_its_name_and_go_to_a_directory_of_its_own() -> None:
    inf = parse(INF.format(values=""))
    chosen = choose(inf, "amd64", (10, 0), 19045)
    assert chosen is not None

    assert installation(inf, chosen).files == (
        CopiedFile("source.sys", "target.sys", "12", "UMDF"),
        CopiedFile("plain.txt", "plain.txt", "11", ""),
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("HKR,,name,,text", (REG_SZ, "text")),
        ("HKR,,name,0x20000,%SystemRoot%\\x", (REG_EXPAND_SZ, "%SystemRoot%\\x")),
        ("HKR,,name,0x10000,one,two", (REG_MULTI_SZ, ("one", "two"))),
        ("HKR,,name,0x10001,17", (REG_DWORD, 17)),
        ("HKR,,name,0x10001,0xFFFFFFFF", (REG_DWORD, 0xFFFFFFFF)),
        ("HKR,,name,0x10001,01,00,00,80", (REG_DWORD, 0x80000001)),
        ("HKR,,name,1,de,ad", (REG_BINARY, b"\xde\xad")),
        ("HKR,,name,0x10", (REG_SZ, None)),
    ],
)
def test_a_value_has_the_type_that_its_flags_say(line: str, expected: tuple[int, object]) -> None:
    (write,) = values(line)

    assert (write.type, write.data) == expected


def test_a_value_that_may_not_be_overwritten_says_so() -> None:
    assert [write.keeps for write in values("HKR,,a,0x2,x\nHKR,,b,,x")] == [True, False]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("HKLM,Software,a,,x", "'HKLM' is not the service's own key"),
        ("HKR,,a,0x4", "flags '0x4' are not supported"),
        ("HKR,,a,0x40000,x", "flags '0x40000' are not supported"),
        ("HKR,,a,what,x", "flags 'what' are not supported"),
        ("HKR,,a,0x10001,many", "'many' is no 32-bit number"),
        ("HKR,,a,0x10001,01,02", "a REG_DWORD of 2 bytes"),
        ("HKR,,a,1,xy", "no list of bytes"),
    ],
)
def test_a_value_that_cannot_be_written_is_refused_with_its_line(line: str, problem: str) -> None:
    with pytest.raises(InstallError, match=problem) as caught:
        values(line)

    assert str(caught.value).startswith("line 18:")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("ServiceBinary = %12%\\target.sys\n", "", "has no ServiceBinary"),
        ("StartType = 3", "StartType = demand", "'StartType' of 'Service' is 'demand'"),
        ("AddReg = Values", "AddReg = Missing", "no section 'Missing'"),
        ("CopyFiles = Copy", "CopyFiles = Missing", "no section 'Missing'"),
        ("DefaultDestDir = 11\n", "", "does not say where 'DefaultDestDir' goes"),
    ],
)
def test_what_is_missing_is_named(old: str, new: str, problem: str) -> None:
    inf = parse(INF.format(values="").replace(old, new))
    chosen = choose(inf, "amd64", (10, 0), 19045)
    assert chosen is not None

    with pytest.raises(InstallError, match=problem):
        installation(inf, chosen)
