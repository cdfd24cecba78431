"""The registry of an emulated machine: keys and typed values in memory, shared by kernel model and inbox commands.

A leaf: it imports nothing of the project. Persistence is a JSON-able snapshot, so that it outlives a guest's restart.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

REG_NONE = 0
REG_SZ = 1
REG_EXPAND_SZ = 2
REG_BINARY = 3
REG_DWORD = 4
REG_DWORD_BIG_ENDIAN = 5
REG_LINK = 6
REG_MULTI_SZ = 7
REG_QWORD = 11

TYPE_NAMES: Mapping[int, str] = {
    REG_NONE: "REG_NONE",
    REG_SZ: "REG_SZ",
    REG_EXPAND_SZ: "REG_EXPAND_SZ",
    REG_BINARY: "REG_BINARY",
    REG_DWORD: "REG_DWORD",
    REG_DWORD_BIG_ENDIAN: "REG_DWORD_BIG_ENDIAN",
    REG_LINK: "REG_LINK",
    REG_MULTI_SZ: "REG_MULTI_SZ",
    REG_QWORD: "REG_QWORD",
}
"""Value types of winnt.h by number."""

SERVICES = "HKLM\\SYSTEM\\CurrentControlSet\\Services"
"""The key under which every service and filter has its own."""

_ROOTS: Mapping[str, tuple[str, ...]] = {
    "hklm": ("HKLM",),
    "hkey_local_machine": ("HKLM",),
    "hku": ("HKU",),
    "hkey_users": ("HKU",),
    "hkcu": ("HKU", "S-1-5-18"),
    "hkey_current_user": ("HKU", "S-1-5-18"),
    "hkcr": ("HKLM", "SOFTWARE", "Classes"),
    "hkey_classes_root": ("HKLM", "SOFTWARE", "Classes"),
}
_MAXIMUM_KEY_NAME = 255
_MAXIMUM_VALUE_NAME = 16383


class RegistryPathError(KeyError):
    """The text is not the path of a registry key (unknown root, empty or too long component)."""

    def __str__(self) -> str:
        return f"'{self.args[0]}' is not the path of a registry key"


class MissingKeyError(KeyError):
    """There is no such key; `args[0]` is the path as it was asked for."""

    def __str__(self) -> str:
        return f"there is no registry key '{self.args[0]}'"


class MissingValueError(KeyError):
    """The key exists but has no such value; `args` are path and name."""

    def __str__(self) -> str:
        return f"the registry key '{self.args[0]}' has no value '{self.args[1]}'"


class KeyHasSubkeysError(KeyError):
    """The key cannot be deleted without `recursive` because it has subkeys; `args[0]` is its path."""

    def __str__(self) -> str:
        return f"the registry key '{self.args[0]}' has subkeys"


class ValueTypeError(TypeError):
    """A typed helper met a value of another type."""


@dataclass(frozen=True, slots=True)
class RegistryValue:
    """One value as the kernel sees it: type number of winnt.h and the raw little-endian data."""

    type: int
    data: bytes

    @classmethod
    def string(cls, text: str, *, expand: bool = False) -> RegistryValue:
        """REG_SZ (or REG_EXPAND_SZ), UTF-16LE with its terminator as `reg add` writes it."""
        return cls(REG_EXPAND_SZ if expand else REG_SZ, _utf16(text) + b"\0\0")

    @classmethod
    def dword(cls, number: int) -> RegistryValue:
        """REG_DWORD of an unsigned 32-bit number; OverflowError outside of it."""
        return cls(REG_DWORD, number.to_bytes(4, "little"))

    @classmethod
    def qword(cls, number: int) -> RegistryValue:
        """REG_QWORD of an unsigned 64-bit number; OverflowError outside of it."""
        return cls(REG_QWORD, number.to_bytes(8, "little"))

    @classmethod
    def multi_string(cls, texts: Sequence[str]) -> RegistryValue:
        """REG_MULTI_SZ: each text with its terminator, then an empty one."""
        return cls(REG_MULTI_SZ, b"".join(_utf16(text) + b"\0\0" for text in texts) + b"\0\0")

    def as_string(self) -> str:
        """The text of a REG_SZ or REG_EXPAND_SZ up to its first terminator; ValueTypeError for other types."""
        if self.type not in (REG_SZ, REG_EXPAND_SZ):
            raise ValueTypeError(f"the value is {type_name(self.type)}, not a string")
        return _text(self.data).split("\0", 1)[0]

    def as_dword(self) -> int:
        """The number of a REG_DWORD; ValueTypeError for other types or a wrong size."""
        if self.type != REG_DWORD or len(self.data) != 4:
            raise ValueTypeError(
                f"the value is {type_name(self.type)} of {len(self.data)} bytes, not a dword"
            )
        return int.from_bytes(self.data, "little")

    def as_multi_string(self) -> list[str]:
        """The texts of a REG_MULTI_SZ; ValueTypeError for other types."""
        if self.type != REG_MULTI_SZ:
            raise ValueTypeError(f"the value is {type_name(self.type)}, not REG_MULTI_SZ")
        texts: list[str] = []
        for text in _text(self.data).split("\0"):
            if not text:
                break
            texts.append(text)
        return texts


def type_name(number: int) -> str:
    """Name of a value type as `reg query` prints it."""
    return TYPE_NAMES.get(number, f"0x{number:x}")


class _Key:
    """One node: its name as it was created, subkeys and values by folded name."""

    __slots__ = ("name", "subkeys", "values")

    def __init__(self, name: str) -> None:
        self.name = name
        self.subkeys: dict[str, _Key] = {}
        self.values: dict[str, tuple[str, RegistryValue]] = {}


class Registry:
    """Keys and values; every method may be called from any thread and is atomic.

    Paths may begin with HKLM, HKEY_LOCAL_MACHINE, HKU, HKCU, HKCR or the kernel's ``\\Registry\\Machine`` and
    ``\\Registry\\User``. Names are compared without case and kept as they were first written.
    ``CurrentControlSet`` is ``ControlSet001``. The value name "" is the key's default value.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._root = _Key("")
        for hive in ("SYSTEM\\ControlSet001\\Services", "SOFTWARE\\Classes"):
            self.create_key(f"HKLM\\{hive}")
        self.create_key("HKU\\S-1-5-18")

    def exists(self, key: str) -> bool:
        """True if there is such a key. RegistryPathError if the text is no path."""
        with self._lock:
            return self._find(_parts(key)) is not None

    def canonical(self, key: str) -> str:
        """The path with the root's long name and the spelling of existing keys ("HKEY_LOCAL_MACHINE\\SYSTEM…").

        A leading CurrentControlSet stays as it was written, as `reg query` prints it.
        """
        with self._lock:
            node: _Key | None = self._root
            names: list[str] = []
            for part, shown in zip(_parts(key), _parts(key, resolve_link=False), strict=True):
                node = node.subkeys.get(_fold(part)) if node is not None else None
                names.append(node.name if node is not None and _fold(part) == _fold(shown) else shown)
        names[0] = {"HKLM": "HKEY_LOCAL_MACHINE", "HKU": "HKEY_USERS"}[names[0]]
        return "\\".join(names)

    def create_key(self, key: str) -> bool:
        """Make the key and its parents; True if it did not exist before."""
        with self._lock:
            node, created = self._root, False
            for part in _parts(key):
                child = node.subkeys.get(_fold(part))
                if child is None:
                    child = node.subkeys[_fold(part)] = _Key(part)
                    created = True
                node = child
            return created

    def delete_key(self, key: str, *, recursive: bool = False) -> None:
        """Delete the key; MissingKeyError, KeyHasSubkeysError, or RegistryPathError for a root."""
        parts = _parts(key)
        if len(parts) < 2:
            raise RegistryPathError(key)
        with self._lock:
            node = self._get(key)
            if node.subkeys and not recursive:
                raise KeyHasSubkeysError(key)
            parent = self._find(parts[:-1])
            assert parent is not None
            del parent.subkeys[_fold(parts[-1])]

    def subkeys(self, key: str) -> list[str]:
        """Names of the direct subkeys in the order of the registry (sorted without case)."""
        with self._lock:
            node = self._get(key)
            return [node.subkeys[folded].name for folded in sorted(node.subkeys)]

    def values(self, key: str) -> dict[str, RegistryValue]:
        """All values of the key by name, in the order they were first set."""
        with self._lock:
            return dict(self._get(key).values.values())

    def get_value(self, key: str, name: str) -> RegistryValue:
        """One value; MissingKeyError or MissingValueError."""
        with self._lock:
            found = self._get(key).values.get(_fold(name))
        if found is None:
            raise MissingValueError(key, name)
        return found[1]

    def set_value(self, key: str, name: str, value: RegistryValue) -> None:
        """Set a value of an existing key; MissingKeyError if there is none."""
        if len(name) > _MAXIMUM_VALUE_NAME:
            raise ValueError(f"a value's name has at most {_MAXIMUM_VALUE_NAME} characters")
        with self._lock:
            node = self._get(key)
            old = node.values.get(_fold(name))
            node.values[_fold(name)] = (old[0] if old else name, value)

    def delete_value(self, key: str, name: str) -> None:
        """Delete one value; MissingKeyError or MissingValueError."""
        with self._lock:
            if self._get(key).values.pop(_fold(name), None) is None:
                raise MissingValueError(key, name)

    def set_string(self, key: str, name: str, text: str, *, expand: bool = False) -> None:
        """Create the key if need be and set a REG_SZ (REG_EXPAND_SZ)."""
        self._put(key, name, RegistryValue.string(text, expand=expand))

    def set_dword(self, key: str, name: str, number: int) -> None:
        """Create the key if need be and set a REG_DWORD."""
        self._put(key, name, RegistryValue.dword(number))

    def set_multi_string(self, key: str, name: str, texts: Sequence[str]) -> None:
        """Create the key if need be and set a REG_MULTI_SZ."""
        self._put(key, name, RegistryValue.multi_string(texts))

    def get_string(self, key: str, name: str) -> str:
        """Text of a string value; MissingKeyError, MissingValueError or ValueTypeError."""
        return self.get_value(key, name).as_string()

    def get_dword(self, key: str, name: str) -> int:
        """Number of a dword value; MissingKeyError, MissingValueError or ValueTypeError."""
        return self.get_value(key, name).as_dword()

    def get_multi_string(self, key: str, name: str) -> list[str]:
        """Texts of a REG_MULTI_SZ; MissingKeyError, MissingValueError or ValueTypeError."""
        return self.get_value(key, name).as_multi_string()

    def snapshot(self) -> dict[str, Any]:
        """Everything as dictionaries, lists, strings and numbers, ready for `json.dumps`."""
        with self._lock:
            return _to_json(self._root)

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Replace everything by what `snapshot` returned; ValueError if it did not come from there."""
        try:
            root = _from_json("", snapshot)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("this is not the snapshot of a registry") from error
        if not {"hklm", "hku"} <= root.subkeys.keys():
            raise ValueError("this is not the snapshot of a registry: a root key is missing")
        with self._lock:
            self._root = root

    def _put(self, key: str, name: str, value: RegistryValue) -> None:
        with self._lock:
            self.create_key(key)
            self.set_value(key, name, value)

    def _find(self, parts: Sequence[str]) -> _Key | None:
        node: _Key | None = self._root
        for part in parts:
            node = node.subkeys.get(_fold(part)) if node is not None else None
        return node

    def _get(self, key: str) -> _Key:
        node = self._find(_parts(key))
        if node is None:
            raise MissingKeyError(key)
        return node


def _parts(path: str, *, resolve_link: bool = True) -> list[str]:
    """Components from the hive on, root aliases and CurrentControlSet resolved."""
    names = path.rstrip("\\").split("\\")
    if names[0] == "" and len(names) > 2 and names[1].casefold() == "registry":
        hive = {"machine": "HKLM", "user": "HKU"}.get(names[2].casefold())
        if hive is None:
            raise RegistryPathError(path)
        parts = [hive, *names[3:]]
    else:
        root = _ROOTS.get(names[0].casefold())
        if root is None:
            raise RegistryPathError(path)
        parts = [*root, *names[1:]]
    if any(not name or len(name) > _MAXIMUM_KEY_NAME for name in parts):
        raise RegistryPathError(path)
    if resolve_link and [_fold(name) for name in parts[:3]] == ["hklm", "system", "currentcontrolset"]:
        parts[2] = "ControlSet001"
    return parts


def _fold(name: str) -> str:
    """Windows compares by upper-casing single characters, so 'ß' stays itself; lower() of upper() comes closest."""
    return "".join(upper if len(upper := character.upper()) == 1 else character for character in name).lower()


def _utf16(text: str) -> bytes:
    return text.encode("utf-16-le", "surrogatepass")


def _text(data: bytes) -> str:
    return data[: len(data) & ~1].decode("utf-16-le", "surrogatepass")


def _to_json(node: _Key) -> dict[str, Any]:
    return {
        "values": [
            [name, value.type, base64.b64encode(value.data).decode("ascii")]
            for name, value in node.values.values()
        ],
        "subkeys": {child.name: _to_json(child) for child in node.subkeys.values()},
    }


def _from_json(name: str, data: Mapping[str, Any]) -> _Key:
    node = _Key(name)
    for value_name, kind, encoded in data["values"]:
        node.values[_fold(value_name)] = (value_name, RegistryValue(int(kind), base64.b64decode(encoded)))
    for child, content in data["subkeys"].items():
        node.subkeys[_fold(child)] = _from_json(child, content)
    return node
