"""Everything that can be found wrong with a Hyper-V host or an image before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vm.deadline import Deadline
from vm.errors import MachineError
from vm.hyperv.host import HyperVHost, first_problem
from vm.hyperv.settings import HypervSettings
from vm.managed import Source

X64 = 9
"""PROCESSOR_ARCHITECTURE_AMD64, as DISM tells it."""

MEMORY_RESERVE_MB = 1024
"""What the host itself needs beside its machines."""

DISK_MB = {"iso": 30_000, "vhdx": 12_000}
"""What a machine needs while it is made: an applied image, its differencing disks, memory in two checkpoints."""

GENERALISED = "IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE"
"""State of an image that runs through its first start again (Windows Setup states)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a machine will be made from, after everything was found right."""

    parent: str
    """The parent disk on the host."""
    index: int = 0
    """Edition to apply to it; 0 when it is there already."""
    language: str = "en-US"
    make_switch: bool = False


def check_host(host: HyperVHost, settings: HypervSettings, deadline: Deadline) -> dict[str, Any]:
    """Facts of a host that can run the machine.

    Raises:
        MachineError: the first thing that is missing, with the others among its causes.
    """
    facts = host.call(
        "Get-HostFacts",
        deadline,
        SwitchName=settings.switch,
        Directory=str(settings.disks),
        MachineName=settings.vm,
    )
    problems: list[MachineError] = []
    if not facts["module"] or facts["vmms"] == "missing":
        problems.append(
            host.refusal("hyperv-missing", "the PowerShell module or the service vmms is not installed")
        )
    elif facts["vmms"] != "running":
        problems.append(host.refusal("vmms-stopped", f"vmms is {facts['vmms']}"))
    if not facts["administrator"]:
        problems.append(
            host.refusal("access-denied", "making a machine mounts disks, which only an administrator may")
        )
    first_problem(problems)
    if facts["machine"]["present"]:
        raise host.refusal("vm-exists", f"there is a virtual machine '{settings.vm}' on {host.where} already")
    wanted = settings.memory_mb + MEMORY_RESERVE_MB
    if facts["memory_free_mb"] < wanted:
        problems.append(
            host.refusal(
                "out-of-memory",
                f"{facts['memory_free_mb']} MB are free, {wanted} MB are needed ({settings.memory_mb} and a reserve)",
            )
        )
    if facts["processors"] < settings.cpus:
        problems.append(
            MachineError(
                f"{host.where} has {facts['processors']} processors, the machine wants {settings.cpus}",
                hint="give the machine fewer 'cpus'",
                machine=settings.machine,
            )
        )
    first_problem(problems)
    return facts


def plan(host: HyperVHost, settings: HypervSettings, source: Source, deadline: Deadline) -> Plan:
    """Check host, sources and image, and say what will be done. Changes nothing.

    Raises:
        MachineError: what is wrong, with the mend.
    """
    if bool(source.iso) == bool(source.vhdx):
        raise MachineError(
            "a Hyper-V machine is made from an ISO or from a virtual disk",
            hint="give --iso FILE or --vhdx FILE",
            machine=settings.machine,
        )
    facts = check_host(host, settings, deadline)
    kind = "iso" if source.iso else "vhdx"
    if facts["disk_free_mb"] < DISK_MB[kind]:
        raise host.refusal("disk-full", f"{facts['disk_free_mb']} MB are free, {DISK_MB[kind]} MB are needed")
    make_switch = _check_switch(host, settings, facts)
    _check_sources(host, settings, deadline)
    if source.iso:
        return _from_iso(host, settings, source, make_switch, deadline)
    _check_vhdx(host, settings, source.vhdx, deadline)
    return Plan(parent=source.vhdx, language=settings.locale, make_switch=make_switch)


def _check_switch(host: HyperVHost, settings: HypervSettings, facts: Mapping[str, Any]) -> bool:
    """True if the switch is to be made."""
    switch = facts["switch"]
    if not switch["present"]:
        return True
    network = settings.host_address.exploded.rpartition(".")[0] + "."
    if not any(str(address).startswith(network) for address in switch["addresses"]):
        raise MachineError(
            f"{host.where} has no address in the network of {settings.address} on the switch '{settings.switch}'",
            hint=f"give the machine an 'address' in the switch's network ({', '.join(switch['addresses']) or 'none'}),"
            " or name another 'switch'",
            machine=settings.machine,
        )
    return False


def _check_sources(host: HyperVHost, settings: HypervSettings, deadline: Deadline) -> None:
    hint = f"fill '{settings.sources}' on {host.where} as docs/windows.md says"
    try:
        sources = host.call("Get-SourceFacts", deadline, Directory=str(settings.sources))
    except MachineError as error:
        error.hint = hint
        raise
    wheels = [name.lower() for name in sources["wheels"]]
    missing = [] if sources["python"] else ["python.<version>.nupkg"]
    missing += [
        f"wheels\\{name}-*.whl"
        for name in ("pytest", "hypothesis")
        if not any(wheel.startswith(f"{name}-") for wheel in wheels)
    ]
    if missing:
        raise MachineError(
            f"the offline sources '{settings.sources}' lack {' and '.join(missing)}",
            hint=hint,
            machine=settings.machine,
        )


def _from_iso(
    host: HyperVHost, settings: HypervSettings, source: Source, make_switch: bool, deadline: Deadline
) -> Plan:
    facts = host.call("Get-IsoFacts", deadline, Path=source.iso)
    editions = [entry for entry in facts["editions"] if entry["architecture"] == X64]
    listed = ", ".join(f"{entry['index']} '{entry['name']}'" for entry in editions)
    if not editions:
        raise MachineError(
            f"'{source.iso}' holds no Windows for x64", hint="take the x64 ISO", machine=settings.machine
        )
    wanted = source.edition or settings.edition
    chosen = [
        entry
        for entry in editions
        if wanted.casefold()
        in (str(entry["index"]), entry["name"].casefold(), str(entry["edition"]).casefold())
    ]
    if not wanted and len(editions) == 1:
        chosen = editions
    if len(chosen) != 1:
        said = f"has no edition '{wanted}'" if wanted and not chosen else "holds more than one edition"
        raise MachineError(
            f"'{source.iso}' {said}", hint=f"choose one with --edition: {listed}", machine=settings.machine
        )
    found = chosen[0]
    languages = found["languages"] or ["en-US"]
    name = f"{found['edition'] or found['index']}-{found['version']}-{languages[0]}".replace(" ", "")
    return Plan(
        parent=str(settings.disks / "parents" / f"{name}.vhdx"),
        index=int(found["index"]),
        language=languages[0],
        make_switch=make_switch,
    )


def _check_vhdx(host: HyperVHost, settings: HypervSettings, path: str, deadline: Deadline) -> None:
    facts = host.call("Get-VhdxFacts", deadline, Path=path)
    problem, hint = "", ""
    if facts["style"] != "gpt":
        problem, hint = (
            "has an MBR, which a Generation 2 machine cannot start",
            "take a disk with a GPT, or the ISO",
        )
    elif not facts["windows"]:
        problem, hint = "holds no Windows", "take an evaluation disk of Windows Server, or the ISO"
    elif facts["state"] and facts["state"] != GENERALISED:
        problem = f"holds a Windows that is installed already ({facts['state']}), not one to be set up"
        hint = "run 'sysprep /generalize /oobe /shutdown' in it first, or take the ISO"
    if problem:
        raise MachineError(f"'{path}' {problem}", hint=hint, machine=settings.machine)
