"""What may be wrong with a Hyper-V machine, as findings; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vm.deadline import Deadline
from vm.errors import DownlinkError
from vm.findings import Finding, Severity

if TYPE_CHECKING:
    from vm.hyperv.machine import HypervMachine

SECONDS = 60.0


def examine(machine: HypervMachine) -> Iterator[Finding]:
    """Module, service, rights, switch, and the machine's firmware and checkpoints (windows-lab H)."""
    deadline, settings = Deadline.after(seconds=SECONDS), machine.settings
    try:
        host = machine.host.call(
            "Get-HostFacts",
            deadline,
            SwitchName=settings.switch,
            Directory=str(settings.disks),
            MachineName=settings.vm,
        )
        record = machine.file.load()
        found: dict[str, Any] = {"present": False}
        if host["module"] and host["vmms"] == "running":
            mark: dict[str, Any] = {"Mark": record.mark} if record else {}
            found = machine.host.call("Get-Machine", deadline, Name=settings.vm, **mark)
    except DownlinkError as error:
        yield Finding(
            "hyperv.host", Severity.ERROR, error.message, "a Hyper-V host that answers", error.hint or ""
        )
        return
    yield _judge(
        "hyperv.module", host["module"], "the module Hyper-V", machine.host.refusal("hyperv-missing", "").hint
    )
    yield _judge(
        "hyperv.service",
        host["vmms"] == "running",
        "vmms runs",
        machine.host.refusal("vmms-stopped", "").hint,
    )
    allowed = host["administrator"] or host["hyperv_administrator"]
    yield _judge(
        "hyperv.rights", allowed, "the right to manage it", machine.host.refusal("access-denied", "").hint
    )
    yield _judge(
        "hyperv.switch",
        host["switch"]["present"],
        f"the switch '{settings.switch}'",
        "./inv vm.create makes it",
    )
    if record is None or not found["present"]:
        yield Finding("hyperv.machine", Severity.NOTE, f"'{settings.vm}' is not there yet")
        return
    name = settings.vm
    yield _judge("hyperv.own", found["own"], f"'{name}' is ours", machine.host.refusal("vm-foreign", "").hint)
    yield _judge("hyperv.generation", found["generation"] == 2, "Generation 2", "create the machine again")
    off = f"Set-VMFirmware -VMName {name} -EnableSecureBoot Off"
    yield _judge("hyperv.secure-boot", not found["secure_boot"], "Secure Boot off", off)
    standard = f"Set-VM -Name {name} -CheckpointType Standard"
    yield _judge(
        "hyperv.checkpoint-type", found["checkpoint_type"] == "standard", "Standard checkpoints", standard
    )
    automatic = f"Set-VM -Name {name} -AutomaticCheckpointsEnabled $false"
    yield _judge(
        "hyperv.automatic", not found["automatic_checkpoints"], "no automatic checkpoints", automatic
    )
    names = [str(entry["name"]) for entry in found["checkpoints"]]
    wanted = f"./inv vm.checkpoint --machine {machine.name} --name {settings.checkpoint}"
    yield _judge(
        "hyperv.checkpoint", settings.checkpoint in names, f"the checkpoint '{settings.checkpoint}'", wanted
    )


def _judge(check: str, right: bool, wanted: str, mend: str | None) -> Finding:
    if right:
        return Finding(check, Severity.OK, wanted)
    return Finding(check, Severity.ERROR, f"not so: {wanted}", wanted, mend or "")
