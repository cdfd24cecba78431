"""Lists of filters, instances and volumes on Windows: the find functions of fltlib and the structures they fill.

`fltmc` is never parsed: its headers are localised (fact FM4).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from ctypes import byref, c_uint32, c_uint64
from typing import Any, Final

from harness.client import hresult as hr
from harness.client.binding import FilterInformation, InstanceInformation, VolumeInformation
from harness.client.errors import port_error
from harness.client.windows_api import (
    FILE_SYSTEM_NAMES,
    FILTER_AGGREGATE_STANDARD_INFORMATION,
    FILTER_VOLUME_STANDARD_INFORMATION,
    FLTFL_IS_LEGACY_FILTER,
    INSTANCE_AGGREGATE_STANDARD_INFORMATION,
    FilterAggregateStandard,
    FilterVolumeStandard,
    InstanceAggregateStandard,
    Libraries,
)

_BUFFER_BYTES: Final = 4096
_DOS_NAME_CHARACTERS: Final = 300


def filters(api: Libraries) -> list[FilterInformation]:
    """All minifilters; legacy filters have no altitude and are left out."""
    find = api.fltlib
    return [
        found
        for data in _each(
            "FilterFindFirst",
            lambda *rest: find.FilterFindFirst(FILTER_AGGREGATE_STANDARD_INFORMATION, *rest),
            lambda handle, *rest: find.FilterFindNext(handle, FILTER_AGGREGATE_STANDARD_INFORMATION, *rest),
            find.FilterFindClose,
        )
        for found in parse_filters(data)
    ]


def instances(api: Libraries) -> list[InstanceInformation]:
    """All instances of all minifilters. A filter that goes while it is asked has none."""
    find = api.fltlib
    result: list[InstanceInformation] = []
    for each in filters(api):

        def first(*rest: Any, name: str = each.name) -> int:
            return int(find.FilterInstanceFindFirst(name, INSTANCE_AGGREGATE_STANDARD_INFORMATION, *rest))

        for data in _each(
            "FilterInstanceFindFirst",
            first,
            lambda handle, *rest: find.FilterInstanceFindNext(
                handle, INSTANCE_AGGREGATE_STANDARD_INFORMATION, *rest
            ),
            find.FilterInstanceFindClose,
            ends=(hr.NO_MORE_ITEMS, hr.FLT_FILTER_NOT_FOUND),
        ):
            result += parse_instances(data)
    return result


def volumes(api: Libraries) -> list[VolumeInformation]:
    """All volumes that the Filter Manager knows."""
    find = api.fltlib
    result: list[VolumeInformation] = []
    for data in _each(
        "FilterVolumeFindFirst",
        lambda *rest: find.FilterVolumeFindFirst(FILTER_VOLUME_STANDARD_INFORMATION, *rest),
        lambda handle, *rest: find.FilterVolumeFindNext(handle, FILTER_VOLUME_STANDARD_INFORMATION, *rest),
        find.FilterVolumeFindClose,
    ):
        for device, file_system in parse_volumes(data):
            result.append(VolumeInformation(_dos_name(api, device), device, file_system))
    return result


def parse_filters(data: bytes) -> list[FilterInformation]:
    """FILTER_AGGREGATE_STANDARD_INFORMATION entries."""
    return [
        FilterInformation(
            _text(data, at, entry.FilterNameBufferOffset, entry.FilterNameLength),
            _text(data, at, entry.FilterAltitudeBufferOffset, entry.FilterAltitudeLength),
            entry.NumberOfInstances,
            entry.FrameID,
        )
        for at, entry in _entries(data, FilterAggregateStandard)
        if not entry.Flags & FLTFL_IS_LEGACY_FILTER
    ]


def parse_instances(data: bytes) -> list[InstanceInformation]:
    """INSTANCE_AGGREGATE_STANDARD_INFORMATION entries."""
    return [
        InstanceInformation(
            _text(data, at, entry.InstanceNameBufferOffset, entry.InstanceNameLength),
            _text(data, at, entry.FilterNameBufferOffset, entry.FilterNameLength),
            _text(data, at, entry.VolumeNameBufferOffset, entry.VolumeNameLength),
            _text(data, at, entry.AltitudeBufferOffset, entry.AltitudeLength),
            entry.FrameID,
        )
        for at, entry in _entries(data, InstanceAggregateStandard)
        if not entry.Flags & FLTFL_IS_LEGACY_FILTER
    ]


def parse_volumes(data: bytes) -> list[tuple[str, str]]:
    """FILTER_VOLUME_STANDARD_INFORMATION entries as (device name, file system)."""
    name_at = FilterVolumeStandard.FilterVolumeName.offset
    return [
        (
            _text(data, at, name_at, entry.FilterVolumeNameLength),
            FILE_SYSTEM_NAMES.get(entry.FileSystemType, f"file system {entry.FileSystemType}"),
        )
        for at, entry in _entries(data, FilterVolumeStandard)
    ]


def _entries(data: bytes, structure: type[ctypes.Structure]) -> Iterator[tuple[int, Any]]:
    at = 0
    while at + ctypes.sizeof(structure) <= len(data):
        entry: Any = structure.from_buffer_copy(data, at)
        yield at, entry
        if not entry.NextEntryOffset:
            return
        at += entry.NextEntryOffset


def _text(data: bytes, at: int, offset: int, length: int) -> str:
    return data[at + offset : at + offset + length].decode("utf-16-le", "surrogatepass")


def _each(
    operation: str,
    first: Callable[..., Any],
    following: Callable[..., Any],
    close: Callable[[int], Any],
    *,
    ends: tuple[int, ...] = (hr.NO_MORE_ITEMS,),
) -> Iterator[bytes]:
    """The buffers that a find function fills, one after the other; a buffer that is too small is enlarged."""
    size = _BUFFER_BYTES
    handle = c_uint64()
    opened = False
    try:
        while True:
            buffer, returned = ctypes.create_string_buffer(size), c_uint32()
            if opened:
                result = following(handle.value, buffer, size, byref(returned))
            else:
                result = first(buffer, size, byref(returned), byref(handle))
            result &= 0xFFFFFFFF
            if result == hr.INSUFFICIENT_BUFFER and size < returned.value:
                size = returned.value
                continue
            if result in ends:
                return
            if hr.failed(result):
                raise port_error(result, operation)
            opened = True
            yield buffer.raw[: returned.value]
    finally:
        if opened:
            close(handle.value)


def _dos_name(api: Libraries, device: str) -> str | None:
    buffer = ctypes.create_string_buffer(_DOS_NAME_CHARACTERS * 2)
    result = api.fltlib.FilterGetDosName(device, buffer, _DOS_NAME_CHARACTERS) & 0xFFFFFFFF
    if hr.failed(result):
        return None
    return buffer.raw.decode("utf-16-le", "surrogatepass").partition("\0")[0].rstrip("\\") or None
