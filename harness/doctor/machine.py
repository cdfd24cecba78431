"""A machine as this host knows it: its secrets and pins, what is left of it, and what runs it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from importlib import import_module, util
from pathlib import Path

from cryptography import x509

from harness.doctor.subject import Check, Subject, fine, note, trouble
from harness.secrets import variable
from vm.findings import Finding, Severity
from vm.machine import MachineState

EXPIRES_SOON = timedelta(days=14)
_HYPERV = "vm.hyperv.doctor"
_STATE_FILES = ("state.json", "state.part", "ntlm-accounts")


def stale_state(subject: Subject) -> Iterator[Finding]:
    """State of a machine whose process is gone; looked at before anybody asks the machine, which would tidy up."""
    found = stale_files(subject.state_directory)
    if found:
        names = ", ".join(f"'{path.name}'" for path in found)
        yield trouble(
            "machine.stale-state",
            Severity.WARNING,
            "machine-stale-state",
            f"{names} of a process that is gone",
            "no such files",
            "machine.remove-stale-state",
            name=subject.machine.name,
        )


def stale_files(directory: Path) -> list[Path]:
    """Files of an emulated machine that did not come to its end; none while its process is there."""
    state = directory / "state.json"
    number = None
    with suppress(OSError, ValueError, AttributeError):
        number = json.loads(state.read_text(encoding="utf-8")).get("process_id")
    if not isinstance(number, int) or _runs(number):
        return []
    return [path for name in _STATE_FILES if (path := directory / name).exists()]


def secret(subject: Subject) -> Iterator[Finding]:
    """The password, for machines that do not make one for themselves."""
    kind = subject.machine.kind
    if "username" not in kind.settings:
        return
    if kind.name == "hyperv" and not (subject.state_directory / "state.json").exists():
        return  # its password is made with it
    name = f"{subject.machine.name}.password"
    where = subject.secrets.where(name)
    if where:
        yield fine("machine.secret", f"the password is in {where}")
        return
    interactive = sys.stdin is not None and sys.stdin.isatty()
    yield trouble(
        "machine.secret",
        Severity.WARNING if interactive else Severity.ERROR,
        "machine-secret",
        "no password in the environment or the keyring" + (", it will be asked for" if interactive else ""),
        f"the password of '{subject.machine.name}'",
        name=subject.machine.name,
        variable=variable(name),
    )


def certificate(subject: Subject) -> Iterator[Finding]:
    """The pinned certificate of the machine's HTTPS listener."""
    configured = subject.machine.settings.get("certificate")
    if not configured:
        return
    path = Path(str(configured)).expanduser()
    path = path if path.is_absolute() else subject.root / path
    check, symptom = "machine.certificate", "machine-certificate-expired"
    try:
        data = path.read_bytes()
        pem = data.lstrip().startswith(b"-----BEGIN")
        found = x509.load_pem_x509_certificate(data) if pem else x509.load_der_x509_certificate(data)
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else "it is no certificate"
        yield trouble(check, Severity.ERROR, symptom, f"'{path}' cannot be used: {said}", "a certificate")
        return
    now, until = datetime.now(UTC), found.not_valid_after_utc
    said = f"'{path.name}' is valid until {until:%Y-%m-%d}"
    if now >= until or now < found.not_valid_before_utc:
        yield trouble(check, Severity.ERROR, symptom, said, "valid at present")
    elif now + EXPIRES_SOON >= until:
        yield trouble(check, Severity.WARNING, symptom, said, "valid for two weeks")
    else:
        yield fine(check, said)


def host_key(subject: Subject) -> Iterator[Finding]:
    """The pinned SSH key of a machine that is not made here."""
    settings = subject.machine.settings
    if "host" not in settings or not settings.get("ssh_port"):
        return
    if settings.get("host_key"):
        yield fine("machine.host-key", "the SSH key is pinned")
    else:
        yield trouble(
            "machine.host-key",
            Severity.ERROR,
            "machine-host-key",
            "no key is pinned",
            "host_key",
            host=str(settings["host"]),
        )


def hyperv(subject: Subject) -> Iterator[Finding]:
    """Module, rights, switch, the machine's settings and checkpoints, for the kind that has them."""
    if subject.machine.kind.name != "hyperv" or util.find_spec(_HYPERV) is None:
        return
    machine = subject.configuration.create_machine(subject.machine.name, subject.driver)
    yield from import_module(_HYPERV).examine(machine)


def state(subject: Subject) -> Iterator[Finding]:
    """Whether it runs, and whether it may be used as it is."""
    name = subject.machine.name
    machine = subject.configuration.create_machine(name, subject.driver)
    found = machine.state()
    dirty = subject.state_directory.parent / f".{name}" / "dirty.txt"
    if dirty.exists() or found is MachineState.DIRTY:
        said = dirty.read_text(encoding="utf-8").strip() if dirty.exists() else "the machine says so"
        symptom = "machine-dirty" if machine.abilities.restores else "machine-dirty-for-good"
        yield trouble("machine.state", Severity.WARNING, symptom, said, "clean", name=name)
    elif found is MachineState.RUNNING:
        yield fine("machine.state", f"'{name}' runs")
    else:
        yield note("machine.state", f"'{name}' is {found.value}; its guest is looked at when it runs")


def _runs(process_id: int) -> bool:
    if sys.platform == "win32":
        return True  # asking there costs a process; the machine itself finds out when it is started
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


QUICK: tuple[Check, ...] = (secret, certificate, host_key, hyperv)
ALL: tuple[Check, ...] = (stale_state, secret, certificate, host_key, hyperv, state)
