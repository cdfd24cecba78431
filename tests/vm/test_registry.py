"""The in-memory registry: one tree under several spellings of its paths."""

from __future__ import annotations

import json
import threading

import pytest

from vm.emulated.registry import (
    REG_BINARY,
    REG_DWORD,
    REG_EXPAND_SZ,
    REG_MULTI_SZ,
    REG_SZ,
    KeyHasSubkeysError,
    MissingKeyError,
    MissingValueError,
    Registry,
    RegistryPathError,
    RegistryValue,
    ValueTypeError,
)

SERVICE = "HKLM\\SYSTEM\\CurrentControlSet\\Services\\Downlink"


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.mark.parametrize(
    "spelling",
    [
        SERVICE,
        "hklm\\system\\currentcontrolset\\services\\DOWNLINK",
        "HKEY_LOCAL_MACHINE\\SYSTEM\\CurrentControlSet\\Services\\Downlink",
        "HKLM\\SYSTEM\\ControlSet001\\Services\\Downlink",
        "\\Registry\\Machine\\SYSTEM\\CurrentControlSet\\Services\\Downlink",
        "\\REGISTRY\\MACHINE\\System\\ControlSet001\\Services\\downlink\\",
    ],
)
def test_every_spelling_of_a_path_names_the_same_key(registry: Registry, spelling: str) -> None:
    registry.set_dword(SERVICE, "Start", 3)
    assert registry.exists(spelling)
    assert registry.get_dword(spelling, "sTART") == 3


def test_the_spelling_of_a_key_and_of_a_value_is_kept_as_first_written(registry: Registry) -> None:
    registry.set_dword(SERVICE, "Start", 3)
    registry.set_dword(SERVICE.upper(), "START", 4)
    registry.create_key(SERVICE.upper() + "\\Instances")
    assert registry.subkeys("HKLM\\SYSTEM\\CurrentControlSet\\Services") == ["Downlink"]
    assert registry.values(SERVICE) == {"Start": RegistryValue.dword(4)}


@pytest.mark.parametrize(
    "path", ["", "HKXX\\a", "SYSTEM\\x", "HKLM\\a\\\\b", "\\Registry\\Other\\x", "\\Device\\x"]
)
def test_a_text_that_is_no_path_is_refused(registry: Registry, path: str) -> None:
    with pytest.raises(RegistryPathError):
        registry.exists(path)


def test_a_missing_key_and_a_missing_value_are_told_apart(registry: Registry) -> None:
    with pytest.raises(MissingKeyError, match="no registry key"):
        registry.get_value(SERVICE, "Start")
    registry.create_key(SERVICE)
    with pytest.raises(MissingValueError, match="no value 'Start'"):
        registry.get_value(SERVICE, "Start")
    with pytest.raises(MissingValueError):
        registry.delete_value(SERVICE, "Start")
    assert issubclass(MissingKeyError, KeyError)


def test_setting_a_raw_value_of_a_missing_key_is_refused(registry: Registry) -> None:
    with pytest.raises(MissingKeyError):
        registry.set_value(SERVICE, "x", RegistryValue.dword(1))


def test_creating_a_key_says_whether_it_was_new(registry: Registry) -> None:
    assert registry.create_key(SERVICE)
    assert not registry.create_key(SERVICE)


def test_a_key_with_subkeys_is_deleted_only_recursively(registry: Registry) -> None:
    registry.create_key(SERVICE + "\\Instances\\One")
    with pytest.raises(KeyHasSubkeysError):
        registry.delete_key(SERVICE)
    registry.delete_key(SERVICE, recursive=True)
    assert not registry.exists(SERVICE)
    with pytest.raises(MissingKeyError):
        registry.delete_key(SERVICE)


def test_a_root_cannot_be_deleted(registry: Registry) -> None:
    with pytest.raises(RegistryPathError):
        registry.delete_key("HKLM", recursive=True)


def test_values_have_the_bytes_that_windows_stores(registry: Registry) -> None:
    registry.set_string(SERVICE, "Group", "FSFilter")
    registry.set_string(SERVICE, "ImagePath", "%x%", expand=True)
    registry.set_multi_string(SERVICE, "DependOnService", ["FltMgr", "b"])
    registry.set_dword(SERVICE, "Type", 2)
    assert registry.get_value(SERVICE, "Group") == RegistryValue(REG_SZ, "FSFilter\0".encode("utf-16-le"))
    assert registry.get_value(SERVICE, "ImagePath").type == REG_EXPAND_SZ
    multi = registry.get_value(SERVICE, "DependOnService")
    assert multi == RegistryValue(REG_MULTI_SZ, "FltMgr\0b\0\0".encode("utf-16-le"))
    assert registry.get_multi_string(SERVICE, "dependonservice") == ["FltMgr", "b"]
    assert registry.get_value(SERVICE, "Type") == RegistryValue(REG_DWORD, b"\x02\0\0\0")


def test_a_string_without_terminator_is_read_as_it_is(registry: Registry) -> None:
    registry.create_key(SERVICE)
    registry.set_value(SERVICE, "x", RegistryValue(REG_SZ, "abc".encode("utf-16-le")))
    assert registry.get_string(SERVICE, "x") == "abc"


def test_a_typed_read_of_another_type_is_refused(registry: Registry) -> None:
    registry.set_string(SERVICE, "x", "1")
    registry.set_value(SERVICE, "short", RegistryValue(REG_DWORD, b"\1"))
    with pytest.raises(ValueTypeError, match="REG_SZ"):
        registry.get_dword(SERVICE, "x")
    with pytest.raises(ValueTypeError, match="1 bytes"):
        registry.get_dword(SERVICE, "short")
    with pytest.raises(ValueTypeError):
        registry.get_multi_string(SERVICE, "x")


def test_a_snapshot_survives_json_and_brings_everything_back(registry: Registry) -> None:
    registry.set_string(SERVICE, "", "default")
    registry.set_multi_string(SERVICE + "\\Instances", "m", ["ä", "\U0001f600"])
    registry.set_value(SERVICE, "bin", RegistryValue(REG_BINARY, bytes(range(256))))
    other = Registry()
    other.create_key("HKLM\\SOFTWARE\\Gone")
    other.restore(json.loads(json.dumps(registry.snapshot())))
    assert other.snapshot() == registry.snapshot()
    assert not other.exists("HKLM\\SOFTWARE\\Gone")
    assert other.get_multi_string(SERVICE + "\\Instances", "M") == ["ä", "\U0001f600"]


def test_a_text_that_is_no_snapshot_changes_nothing(registry: Registry) -> None:
    registry.create_key(SERVICE)
    for wrong in ({}, {"values": [], "subkeys": {}}, {"values": 1, "subkeys": {}}):
        with pytest.raises(ValueError, match="snapshot"):
            registry.restore(wrong)
    assert registry.exists(SERVICE)


def test_the_canonical_path_has_the_long_root_and_the_kept_spelling(registry: Registry) -> None:
    registry.create_key(SERVICE)
    assert (
        registry.canonical("hklm\\system\\CurrentControlSet\\services\\downlink")
        == "HKEY_LOCAL_MACHINE\\SYSTEM\\CurrentControlSet\\Services\\Downlink"
    )


def test_threads_that_write_at_once_lose_nothing(registry: Registry) -> None:
    def write(number: int) -> None:
        for index in range(100):
            registry.set_dword(f"{SERVICE}\\{index}", str(number), number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(registry.subkeys(SERVICE)) == 100
    assert all(len(registry.values(f"{SERVICE}\\{index}")) == 4 for index in range(100))
