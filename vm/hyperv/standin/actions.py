"""What each script does to the stand-in's host; one function per file in `vm/hyperv/scripts`, by its name."""

from __future__ import annotations

import copy as copying
import time
from collections.abc import Callable, Mapping
from pathlib import PureWindowsPath
from types import MappingProxyType
from typing import Any

from vm.hyperv.standin import store
from vm.hyperv.standin.faults import Faults
from vm.hyperv.standin.store import Refusal, Store

Values = Mapping[str, Any]


class Host:
    """The host during one call.

    Args:
        place: where its things are kept.
        state: what it has; changed in place.
        faults: those that may strike this call.
    """

    def __init__(self, place: Store, state: dict[str, Any], faults: Faults) -> None:
        self.place = place
        self.state = state
        self.faults = faults

    def file(self, path: str) -> dict[str, Any]:
        found = self.state["files"].get(path)
        if found is None:
            raise Refusal("file-missing", f"there is no file '{path}' on this host")
        return dict(found)

    def own(self, values: Values) -> dict[str, Any]:
        machine: dict[str, Any] | None = self.state["machines"].get(values["Name"])
        if machine is None:
            raise Refusal("vm-not-found", f"there is no virtual machine '{values['Name']}'")
        if f"[downlink {values['Mark']}]" not in machine["notes"]:
            raise Refusal(
                "vm-foreign", f"the virtual machine '{values['Name']}' was not made by this checkout"
            )
        return machine

    def emulated(self, machine: dict[str, Any]) -> Any:
        # Imported here: most calls touch no guest, and the emulated machine's code takes a quarter of a second.
        from vm.hyperv.standin.guests import Emulated

        return Emulated(self.place.content(machine["disk"]), machine["guest"])

    def power_on(self, machine: dict[str, Any], *, boot: bool) -> None:
        """Start the guest; `boot` = from its disk, else it resumes where its memory was."""
        guest = machine["guest"]
        if boot:
            guest["boot_id"] += 1
            guest["testsigning"] = guest.get("testsigning_set", False)
            guest["verified"] = (
                [] if "verifier-ignored" in self.state["faults"] else guest.get("verify_set", [])
            )
            if guest.get("setup") and guest["setup"] != "IMAGE_STATE_COMPLETE":
                guest["setup"] = "IMAGE_STATE_COMPLETE"
        machine["state"] = "starting" if self.faults.strike("stuck-starting") is not None else "running"
        if machine["state"] == "running" and self.faults.strike("no-address") is None:
            self.connect(machine)

    def connect(self, machine: dict[str, Any]) -> None:
        """Let a running guest be reached over the network, if its adapter is connected."""
        if machine["switch"]:
            self.emulated(machine).start()

    def power_off(self, machine: dict[str, Any]) -> None:
        self.emulated(machine).stop()
        machine["state"] = "off"


def get_host_facts(host: Host, values: Values) -> dict[str, Any]:
    switch = host.state["switches"].get(values["SwitchName"])
    machine = host.state["machines"].get(values["MachineName"])
    return {
        **host.state["host"],
        "computer": "STANDIN",
        "build": "10.0.26100",
        "switch": {"present": True, "type": "internal", "addresses": [switch["address"]]}
        if switch
        else {"present": False},
        "machine": {"present": True, "notes": machine["notes"], "state": machine["state"]}
        if machine
        else {"present": False},
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def get_source_facts(host: Host, values: Values) -> dict[str, Any]:
    found = host.state["files"].get(values["Directory"])
    if found is None:
        raise Refusal("sources-missing", f"there is no directory '{values['Directory']}' on this host")
    return {"python": found["python"], "ssh": found["ssh"], "wheels": found["wheels"], "bytes": 40_000_000}


def get_iso_facts(host: Host, values: Values) -> dict[str, Any]:
    path = values["Path"]
    found = host.file(path)
    if found["kind"] != "iso":
        raise Refusal("not-an-iso", f"'{path}' cannot be opened as an ISO: the file is corrupted")
    if not found["editions"]:
        raise Refusal(
            "no-install-image", f"'{path}' holds neither sources\\install.wim nor sources\\install.esd"
        )
    detail = {
        "architecture": 9,
        "version": "10.0.26100.1742",
        "languages": ["en-US"],
        "bytes": 10_000_000_000,
    }
    return {"install": "install.wim", "editions": [{**entry, **detail} for entry in found["editions"]]}


def get_vhdx_facts(host: Host, values: Values) -> dict[str, Any]:
    path = values["Path"]
    found = host.file(path)
    if found["kind"] != "vhdx":
        raise Refusal("not-a-vhdx", f"'{path}' cannot be opened as a virtual disk: the file is corrupted")
    return {
        "style": found.get("style", "gpt"),
        "windows": bool(found.get("windows", True)),
        "state": found.get("state", ""),
        "build": "10.0.26100.1",
        "size_mb": 65536,
        "file_mb": 9000,
        "parent": found.get("parent", ""),
        "read_only": found.get("read_only", False),
    }


def new_image_from_iso(host: Host, values: Values) -> dict[str, Any]:
    target = values["Target"]
    host.file(values["Iso"])
    if target in host.state["files"]:
        raise Refusal("file-exists", f"'{target}' is there already")
    state = "IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE"
    host.state["files"][target] = {"kind": "vhdx", "state": state, "read_only": True}
    return {"path": target, "file_mb": 9000, "seconds": 0.1}


def new_switch(host: Host, values: Values) -> dict[str, Any]:
    name = values["Name"]
    if name in host.state["switches"]:
        raise Refusal("switch-exists", f"there is a switch '{name}' already")
    host.state["switches"][name] = {
        "address": f"{values['HostAddress']}/{values['PrefixLength']}",
        "own": True,
        "nat": values["Nat"],
    }
    return {"name": name, "address": values["HostAddress"]}


def remove_switch(host: Host, values: Values) -> dict[str, Any]:
    name = values["Name"]
    found = host.state["switches"].get(name)
    if found is not None:
        if not found.get("own"):
            raise Refusal("switch-foreign", f"the switch '{name}' was not made by this project")
        users = [m for m, machine in host.state["machines"].items() if machine["switch"] == name]
        if users:
            raise Refusal("switch-in-use", f"'{users[0]}' is connected to the switch '{name}'")
        del host.state["switches"][name]
    return {"removed": found is not None}


def new_machine_directory(host: Host, values: Values) -> dict[str, Any]:
    path = values["Directory"]
    if path in host.state["files"]:
        raise Refusal("directory-exists", f"'{path}' is there already")
    host.state["files"][path] = {"kind": "directory", "mark": values["Mark"]}
    return {"directory": path}


def new_child_disk(host: Host, values: Values) -> dict[str, Any]:
    parent, path = values["Parent"], values["Path"]
    found = host.file(parent)
    if path in host.state["files"]:
        raise Refusal("file-exists", f"'{path}' is there already")
    host.state["files"][parent]["read_only"] = True
    kept = {key: copying.deepcopy(value) for key, value in found.items() if key in ("state", "guest")}
    host.state["files"][path] = {"kind": "vhdx", "parent": parent, **kept}
    store.copy(host.place.content(parent), host.place.content(path))
    return {"path": path, "parent": parent}


def set_disk_content(host: Host, values: Values) -> dict[str, Any]:
    disk = host.state["files"].get(values["Path"])
    if disk is None or disk.get("read_only"):
        raise Refusal("failed", f"'{values['Path']}' cannot be written")
    secret = values["secret"]
    disk["guest"] = {
        "username": secret["username"],
        "password": secret["password"],
        "computer": values["ComputerName"],
        "setup": disk["state"],
        "boot_id": 0,
        "answers": True,
        "sources": values["Sources"],
    }
    return {"files": 4}


def new_machine(host: Host, values: Values) -> dict[str, Any]:
    name = values["Name"]
    if name in host.state["machines"]:
        raise Refusal("vm-exists", f"there is a virtual machine '{name}' already")
    disk = host.file(values["Disk"])
    if values["SwitchName"] and values["SwitchName"] not in host.state["switches"]:
        raise Refusal("switch-missing", f"there is no switch '{values['SwitchName']}'")
    host.state["machines"][name] = {
        "notes": f"[downlink {values['Mark']}]",
        "directory": values["Directory"],
        "disk": values["Disk"],
        "switch": values["SwitchName"],
        "state": "off",
        "cpus": values["Cpus"],
        "memory_mb": values["MemoryMB"],
        "checkpoints": [],
        "guest": copying.deepcopy(disk.get("guest", {})),
    }
    return {"id": name, "name": name}


def set_machine_disk(host: Host, values: Values) -> dict[str, Any]:
    machine = host.own(values)
    if machine["state"] != "off":
        raise Refusal("vm-running", f"the virtual machine '{values['Name']}' is {machine['state']}")
    # The stand-in keeps a guest with its machine; the sealed disk gets it for clones.
    host.state["files"][machine["disk"]]["guest"] = copying.deepcopy(machine["guest"])
    machine["disk"] = values["Path"]
    return {"path": values["Path"]}


def connect_machine(host: Host, values: Values) -> dict[str, Any]:
    machine = host.own(values)
    machine["switch"] = values["SwitchName"]
    if machine["state"] == "running":
        host.connect(machine)
    return {"switch": values["SwitchName"]}


def get_machine(host: Host, values: Values) -> dict[str, Any]:
    machine = host.state["machines"].get(values["Name"])
    if machine is None:
        return {"present": False}
    silent = (
        machine["state"] != "running"
        or host.faults.strike("no-heartbeat") is not None
        or "guest-crashed" in host.state["faults"]
    )
    return {
        "present": True,
        "own": bool(values["Mark"]) and f"[downlink {values['Mark']}]" in machine["notes"],
        "id": values["Name"],
        "state": machine["state"],
        "operation": "",
        "status": "Operating normally",
        "heartbeat": "nocontact" if silent else "okapplicationsunknown",
        "uptime_s": 1.0,
        "addresses": [],
        "switches": [machine["switch"]],
        "generation": 2,
        "secure_boot": False,
        "checkpoint_type": "standard",
        "automatic_checkpoints": False,
        "memory_mb": machine["memory_mb"],
        "cpus": machine["cpus"],
        "checkpoints": [
            {key: entry[key] for key in ("name", "created", "type", "parent")}
            for entry in machine["checkpoints"]
        ],
    }


def get_machines(host: Host, values: Values) -> dict[str, Any]:
    found = [
        {
            "name": name,
            "mark": machine["notes"].partition("[downlink ")[2].rstrip("]"),
            "state": machine["state"],
            "memory_mb": machine["memory_mb"],
            "checkpoints": [entry["name"] for entry in machine["checkpoints"]],
        }
        for name, machine in host.state["machines"].items()
        if "[downlink " in machine["notes"]
    ]
    return {"machines": found}


def start_machine(host: Host, values: Values) -> dict[str, Any]:
    machine = host.own(values)
    if machine["state"] != "running":
        host.power_on(machine, boot=True)
    return {"state": machine["state"]}


def stop_machine(host: Host, values: Values) -> dict[str, Any]:
    machine = host.own(values)
    host.power_off(machine)
    return {"state": "off"}


def new_checkpoint(host: Host, values: Values) -> dict[str, Any]:
    machine = host.own(values)
    name = values["Checkpoint"]
    if any(entry["name"] == name for entry in machine["checkpoints"]):
        raise Refusal("checkpoint-exists", f"the virtual machine has a checkpoint '{name}' already")
    host.emulated(machine).save()
    store.copy(host.place.content(machine["disk"]), host.place.snapshot(values["Name"], name))
    # A process and its ports are not part of a state.
    (host.place.snapshot(values["Name"], name) / "machine" / "state.json").unlink(missing_ok=True)
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    last = machine["checkpoints"][-1]["name"] if machine["checkpoints"] else ""
    machine["checkpoints"].append(
        {
            "name": name,
            "created": created,
            "type": "standard",
            "parent": last,
            "at": time.time(),
            "running": machine["state"] == "running",
            "guest": copying.deepcopy(machine["guest"]),
        }
    )
    return {"name": name, "created": created, "seconds": 0.1}


def remove_checkpoint(host: Host, values: Values) -> dict[str, Any]:
    machine = host.own(values)
    kept = [entry for entry in machine["checkpoints"] if entry["name"] != values["Checkpoint"]]
    removed = len(machine["checkpoints"]) - len(kept)
    machine["checkpoints"] = kept
    store.remove(host.place.snapshot(values["Name"], values["Checkpoint"]))
    return {"removed": removed}


def restore_machine(host: Host, values: Values) -> dict[str, Any]:
    machine = host.own(values)
    name = values["Checkpoint"]
    found = next((entry for entry in machine["checkpoints"] if entry["name"] == name), None)
    if found is None:
        names = ", ".join(entry["name"] for entry in machine["checkpoints"])
        raise Refusal(
            "checkpoint-missing",
            f"the virtual machine '{values['Name']}' has no checkpoint '{name}', it has: {names}",
        )
    began = time.monotonic()
    host.power_off(machine)
    if slow := host.faults.strike("restore-slow"):
        time.sleep(float(slow["seconds"]))
    if host.faults.strike("restore-ineffective") is None:
        store.copy(host.place.snapshot(values["Name"], name), host.place.content(machine["disk"]))
        machine["guest"] = copying.deepcopy(found["guest"])
    # The guest lives in the time of the checkpoint until somebody sets its clock.
    machine["guest"]["clock_offset_s"] = found["at"] - time.time()
    host.power_on(machine, boot=not found["running"])
    return {
        "restore_s": time.monotonic() - began,
        "start_s": 0.0,
        "host_record": host.state["record"],
    }


def remove_machine(host: Host, values: Values) -> dict[str, Any]:
    removed = []
    directory = values["Directory"]
    if values["Name"] in host.state["machines"]:
        machine = host.own(values)
        host.power_off(machine)
        for entry in machine["checkpoints"]:
            store.remove(host.place.snapshot(values["Name"], entry["name"]))
        del host.state["machines"][values["Name"]]
        removed.append(values["Name"])
    if directory in host.state["files"]:
        if host.state["files"][directory].get("mark") != values["Mark"]:
            raise Refusal("directory-foreign", f"the directory '{directory}' was not made for this machine")
        for path in list(host.state["files"]):
            if PureWindowsPath(path).is_relative_to(directory):
                store.remove(host.place.content(path))
                del host.state["files"][path]
        removed.append(directory)
    return {"removed": removed}


def get_machine_events(host: Host, values: Values) -> dict[str, Any]:
    host.own(values)
    code = ["0xD1", "0xFFFFF80012340000", "0x2", "0x0", "0xFFFFF80012345678"]
    event = {"id": 18590, "record": host.state["record"] + 1, "values": [values["Name"], "id", *code]}
    crashed = "guest-crashed" in host.state["faults"] and event["record"] > values["AfterRecord"]
    return {"events": [event] if crashed else []}


def _own_actions() -> dict[str, Callable[[Host, Values], dict[str, Any]]]:
    from vm.hyperv.standin import guest_actions

    functions = {
        "Get-HostFacts": get_host_facts,
        "Get-SourceFacts": get_source_facts,
        "Get-IsoFacts": get_iso_facts,
        "Get-VhdxFacts": get_vhdx_facts,
        "New-ImageFromIso": new_image_from_iso,
        "New-Switch": new_switch,
        "Remove-Switch": remove_switch,
        "New-MachineDirectory": new_machine_directory,
        "New-ChildDisk": new_child_disk,
        "Set-DiskContent": set_disk_content,
        "New-Machine": new_machine,
        "Set-MachineDisk": set_machine_disk,
        "Connect-Machine": connect_machine,
        "Get-Machine": get_machine,
        "Get-Machines": get_machines,
        "Start-Machine": start_machine,
        "Stop-Machine": stop_machine,
        "New-Checkpoint": new_checkpoint,
        "Remove-Checkpoint": remove_checkpoint,
        "Restore-Machine": restore_machine,
        "Remove-Machine": remove_machine,
        "Get-MachineEvents": get_machine_events,
    }
    return {**functions, **guest_actions.ACTIONS}


ACTIONS: Mapping[str, Callable[[Host, Values], dict[str, Any]]] = MappingProxyType(_own_actions())
"""What is done for each script."""
