"""What `harness.toml` and `harness.local.toml` say, typed and checked before anything starts.

Nothing here starts, opens or creates anything besides reading the two files.
"""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from harness.secrets import Secrets
from vm.errors import ConfigurationError
from vm.machine import Credentials, GuestAddress, Machine
from vm.powershell.script import ScriptHost
from vm.registry import KINDS, Kind, Setting

if TYPE_CHECKING:
    from harness.remote.guest import Guest

FILE = "harness.toml"
LOCAL_FILE = "harness.local.toml"

TOOLCHAINS = ("zig", "wdk")
CONFIGURATIONS = ("debug", "release")
RULES: Mapping[str, tuple[str, ...]] = MappingProxyType({"io_path_waits": ("allow", "forbid")})
"""What a driver can promise about itself, and the values each promise takes; the first one is the default."""

_T = TypeVar("_T", str, int)
_Named = TypeVar("_Named")
_NO_RULES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class DriverConfig:
    """One minifilter: where its sources are and under which names Windows knows it."""

    name: str
    service: str
    """Name of the service key and of the filter."""
    sources: Path
    inf: Path
    port: str
    instance: str
    """Name of the default instance."""
    altitude: str
    """A decimal string of any precision (fact A1)."""
    load_order_group: str
    suites: Path
    rules: Mapping[str, str] = field(default_factory=lambda: _NO_RULES)


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """One machine: its kind and what the kind wants to know."""

    name: str
    kind: Kind
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunsConfig:
    """Where runs are kept, how long one may take and how many stay."""

    directory: Path
    deadline_seconds: int
    test_seconds: int
    """A test that takes longer is taken for hung, and its process is ended."""
    keep: int


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything the two files say. Paths are absolute."""

    root: Path
    drivers: Mapping[str, DriverConfig]
    machines: Mapping[str, MachineConfig]
    runs: RunsConfig
    default_driver: str
    default_machine: str
    toolchain: str
    configuration: str
    secrets: Secrets = field(default_factory=Secrets, repr=False, compare=False)
    """Where machines ask for their passwords; one for all, so that nobody is asked twice."""

    def driver(self, name: str | None = None) -> DriverConfig:
        """The driver of that name, or the default one; raises `ConfigurationError` naming the nearest."""
        return _choose("driver", name or self.default_driver, self.drivers)

    def machine(self, name: str | None = None) -> MachineConfig:
        """The machine of that name, or the default one; raises `ConfigurationError` naming the nearest."""
        return _choose("machine", name or self.default_machine, self.machines)

    def machine_directory(self, name: str) -> Path:
        """Where the machine keeps its state on this host."""
        return self.root / ".machines" / name

    def create_machine(
        self, name: str | None, driver: DriverConfig, checkpoint: str | None = None
    ) -> Machine:
        """The object that controls a machine, told what `driver` promises; starts nothing.

        Raises:
            ConfigurationError: there is no such machine, or its kind has no checkpoints by name.
        """
        chosen = self.machine(name)
        settings = {
            **chosen.settings,
            "rules": {driver.service: dict(driver.rules)},
            "secrets": self.secrets,
            "script_hosts": partial(_script_host, self.secrets, chosen),
            "guests": partial(_guest, chosen.name),
        }
        if checkpoint is not None:
            if "checkpoint" not in chosen.kind.settings:
                raise ConfigurationError(
                    f"machines of the kind '{chosen.kind.name}' have no checkpoints by name",
                    hint="leave out --checkpoint",
                    machine=chosen.name,
                )
            settings["checkpoint"] = checkpoint
        return chosen.kind.create(chosen.name, self.machine_directory(chosen.name), settings)


def _script_host(secrets: Secrets, machine: MachineConfig, host: str) -> ScriptHost:
    """Where a machine's scripts run: this host ("", or what the setting "powershell" names), or another one by WinRM."""
    from vm.powershell.local import LocalPowerShell

    program = shlex.split(str(machine.settings.get("powershell", "")))
    if not host or program:
        return LocalPowerShell(program, machine=machine.name)
    from harness.remote.guest import Guest
    from harness.remote.scripts import GuestScripts

    username = str(machine.settings.get("host_username", "Administrator"))
    scheme = str(machine.settings.get("host_scheme", "http"))
    certificate = machine.settings.get("host_certificate")
    address = GuestAddress(
        host=host,
        winrm_port=int(machine.settings.get("host_winrm_port") or (5986 if scheme == "https" else 5985)),
        winrm_scheme=scheme,
        winrm_transport="ntlm",
        ssh_port=None,
        host_key=None,
        credentials=Credentials(
            username,
            secrets.get(
                f"{host.lower()}.password", purpose=f"log on to the Hyper-V host '{host}' as {username}"
            ),
        ),
        certificate=Path(str(certificate)).expanduser() if certificate else None,
    )
    # Its shells end with this process at the latest; an idle one costs the host nothing worth closing early.
    return GuestScripts(Guest(address, machine=host))


def _guest(machine: str, address: GuestAddress) -> Guest:
    from harness.remote.guest import Guest

    return Guest(address, machine=machine)


def load(root: Path) -> Configuration:
    """Read and check `harness.toml` in `root`, overridden key by key by `harness.local.toml` if that exists.

    Raises:
        ConfigurationError: a file cannot be read or says something that cannot be; names file, key and nearest name.
    """
    tables = [_read(root / FILE)]
    if (root / LOCAL_FILE).exists():
        tables.append(_read(root / LOCAL_FILE))
    top = _Table(_merge(tables), root / FILE, "")
    defaults = top.table("defaults")
    drivers = {name: _driver(root, table) for name, table in top.tables("drivers")}
    machines = {name: _machine(table) for name, table in top.tables("machines")}
    configuration = Configuration(
        root=root,
        drivers=MappingProxyType(drivers),
        machines=MappingProxyType(machines),
        runs=_runs(root, top.table("runs", required=False)),
        default_driver=defaults.choice("driver", tuple(drivers)),
        default_machine=defaults.choice("machine", tuple(machines)),
        toolchain=defaults.choice("toolchain", TOOLCHAINS),
        configuration=defaults.choice("configuration", CONFIGURATIONS),
    )
    defaults.finish()
    top.finish()
    return configuration


def check_choice(what: str, value: str, choices: tuple[str, ...]) -> str:
    """`value` if it is one of `choices`; else `ConfigurationError`, as for an option of a command."""
    if value not in choices:
        raise ConfigurationError(f"there is no {what} '{value}'", hint=_nearest(value, choices))
    return value


def _driver(root: Path, table: _Table) -> DriverConfig:
    rules_table = table.table("rules", required=False)
    rules = {name: rules_table.choice(name, values, values[0]) for name, values in RULES.items()}
    rules_table.finish()
    driver = DriverConfig(
        name=table.name,
        service=table.text("service"),
        sources=root / table.text("sources"),
        inf=root / table.text("inf"),
        port=table.text("port"),
        instance=table.text("instance"),
        altitude=table.text("altitude"),
        load_order_group=table.text("load_order_group", "FSFilter Activity Monitor"),
        suites=root / table.text("suites"),
        rules=MappingProxyType(rules),
    )
    digits = driver.altitude.replace(".", "", 1)
    if not (digits.isascii() and digits.isdigit()):
        raise table.error(
            "altitude",
            f"is '{driver.altitude}', which is not a decimal number",
            'write digits: altitude = "385210.7"',
        )
    if not driver.service.replace("_", "").replace("-", "").isalnum():
        raise table.error("service", f"is '{driver.service}', which cannot be the name of a service", None)
    if not driver.port.startswith("\\"):
        raise table.error("port", f"is '{driver.port}', which does not start with a backslash", None)
    table.finish()
    return driver


def _machine(table: _Table) -> MachineConfig:
    kind = KINDS[table.choice("kind", tuple(KINDS))]
    settings: dict[str, Any] = {}
    for name, setting in kind.settings.items():
        value = table.setting(name, setting)
        if value is not None:
            settings[name] = value
    table.finish()
    return MachineConfig(table.name, kind, MappingProxyType(settings))


def _runs(root: Path, table: _Table) -> RunsConfig:
    runs = RunsConfig(
        directory=root / table.text("directory", "runs"),
        deadline_seconds=table.integer("deadline_seconds", 900, minimum=1),
        test_seconds=table.integer("test_seconds", 60, minimum=1),
        keep=table.integer("keep", 20, minimum=1),
    )
    table.finish()
    return runs


@dataclass(frozen=True, slots=True)
class _Value:
    """A value of a TOML file and the file that said so last."""

    value: Any
    file: Path


class _Table:
    """A table that is taken apart key by key; what is left at the end was not known."""

    def __init__(self, values: Mapping[str, Any], file: Path, path: str) -> None:
        self._values = dict(values)
        self._known: set[str] = set()
        self._file = file
        self._path = path

    @property
    def name(self) -> str:
        return self._path.rpartition(".")[2]

    def error(self, key: str, problem: str, hint: str | None) -> ConfigurationError:
        entry = self._values.get(key)
        file = entry.file if isinstance(entry, _Value) else self._file
        return ConfigurationError(f"{file.name}: '{self._join(key)}' {problem}", hint=hint)

    def table(self, key: str, *, required: bool = True) -> _Table:
        self._known.add(key)
        value = self._values.get(key)
        if value is None and required:
            raise self.error(key, "is missing", f"add a table [{self._join(key)}]")
        if isinstance(value, _Value):
            raise self.error(key, f"is {_describe(value.value)} but must be a table", None)
        return _Table(value or {}, self._file, self._join(key))

    def tables(self, key: str) -> list[tuple[str, _Table]]:
        parent = self.table(key)
        names = list(parent._values)
        if not names:
            raise self.error(key, "is empty", f"add a table [{key}.<name>]")
        return [(name, parent.table(name)) for name in names]

    def text(self, key: str, default: str | None = None) -> str:
        value = self._scalar(key, str, default)
        if not value.strip():
            raise self.error(key, "is empty", None)
        return value

    def integer(
        self, key: str, default: int | None = None, *, minimum: int | None = None, maximum: int | None = None
    ) -> int:
        value = self._scalar(key, int, default)
        if (minimum is not None and value < minimum) or (maximum is not None and value > maximum):
            bounds = f"at least {minimum}" if maximum is None else f"between {minimum} and {maximum}"
            raise self.error(key, f"is {value} but must be {bounds}", None)
        return value

    def choice(self, key: str, choices: tuple[str, ...], default: str | None = None) -> str:
        value = self._scalar(key, str, default)
        if value not in choices:
            raise self.error(key, f"is '{value}', which is not known", _nearest(value, choices))
        return value

    def setting(self, key: str, setting: Setting) -> Any:
        """The value of an optional setting, None when it is not given."""
        if key not in self._values:
            self._known.add(key)
            if setting.required:
                raise self.error(key, "is missing", f"it is {setting.help}")
            return None
        if setting.type is int:
            return self.integer(key, minimum=setting.minimum, maximum=setting.maximum)
        return self.choice(key, setting.choices) if setting.choices else self.text(key)

    def finish(self) -> None:
        """Raise for the first key that nobody asked for."""
        for key in self._values:
            if key not in self._known:
                entry = self._values[key]
                file = _first_file(entry) or self._file
                raise ConfigurationError(
                    f"{file.name}: the key '{self._join(key)}' is not known",
                    hint=_nearest(key, tuple(sorted(self._known))),
                )

    def _scalar(self, key: str, kind: type[_T], default: _T | None) -> _T:
        self._known.add(key)
        entry = self._values.get(key)
        if entry is None:
            if default is None:
                raise self.error(key, "is missing", f"add it to {FILE}")
            return default
        value = entry.value if isinstance(entry, _Value) else entry
        # bool is a subclass of int in Python, but 'true' is no number in TOML.
        if not isinstance(value, kind) or isinstance(value, bool):
            wanted = "a string" if kind is str else "a whole number"
            raise self.error(key, f"is {_describe(value)} but must be {wanted}", None)
        return value

    def _join(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            values = tomllib.load(stream)
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"there is no {file.name} in '{file.parent}'", hint="run the command in a checkout of the project"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"{file.name} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{file.name} is not valid TOML: {error}", hint=f"look at '{file}'"
        ) from error
    marked: dict[str, Any] = _mark(values, file)
    return marked


def _mark(value: Any, file: Path) -> Any:
    if isinstance(value, dict):
        return {key: _mark(child, file) for key, child in value.items()}
    return _Value(value, file)


def _merge(tables: list[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for table in tables:
        for key, value in table.items():
            old = merged.get(key)
            merged[key] = _merge([old, value]) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _first_file(entry: Any) -> Path | None:
    if isinstance(entry, _Value):
        return entry.file
    if isinstance(entry, dict):
        return next((file for child in entry.values() if (file := _first_file(child))), None)
    return None


def _choose(what: str, name: str, known: Mapping[str, _Named]) -> _Named:
    if name not in known:
        raise ConfigurationError(f"there is no {what} '{name}' in {FILE}", hint=_nearest(name, tuple(known)))
    return known[name]


def _nearest(name: str, names: tuple[str, ...]) -> str:
    close = get_close_matches(name, names, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    return "known are " + ", ".join(f"'{known}'" for known in names) if names else "there are none"


def _describe(value: Any) -> str:
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"the string '{value}'" if isinstance(value, str) else f"{value}"
