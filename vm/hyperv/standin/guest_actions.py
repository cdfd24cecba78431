"""What the scripts do that go into a guest through PowerShell Direct."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from vm.hyperv.standin.store import Refusal

if TYPE_CHECKING:
    from vm.hyperv.standin.actions import Host, Values

KEYS = "ProgramData/ssh/administrators_authorized_keys"
NONCES = "ProgramData/Downlink"


def guest_of(host: Host, values: Values) -> tuple[dict[str, Any], dict[str, Any]]:
    """The machine and its guest, if the guest takes commands from that account."""
    machine = host.own(values)
    if machine["state"] != "running":
        raise Refusal("vm-not-running", f"the virtual machine '{values['Name']}' is {machine['state']}")
    guest: dict[str, Any] = machine["guest"]
    if host.faults.strike("credential-invalid") is not None:
        raise Refusal("credential-invalid", "The credential is invalid.")
    secret = values["secret"]
    if (secret["username"], secret["password"]) != (guest["username"], guest["password"]):
        raise Refusal("credential-invalid", "The credential is invalid.")
    return machine, guest


def test_guest(host: Host, values: Values) -> dict[str, Any]:
    _, guest = guest_of(host, values)
    return {
        "boot_id": str(guest["boot_id"]),
        "booted": "2026-01-01T00:00:00Z",
        "version": "10.0.26100",
        "caption": "Windows Server 2025",
        "computer": guest["computer"],
        "setup": guest["setup"],
        "pending": guest.get("pending", []),
        "testsigning": guest.get("testsigning", False),
        "secure_boot": "secure-boot" in host.state["faults"],
    }


def set_guest_account(host: Host, values: Values) -> dict[str, Any]:
    _, guest = guest_of(host, values)
    guest["password"] = values["secret"]["new_password"]
    guest["answers"] = False
    return {"removed": ["Unattend.xml"]}


def set_guest_network(host: Host, values: Values) -> dict[str, Any]:
    _, guest = guest_of(host, values)
    guest["address"] = values["Address"]
    return {"address": values["Address"]}


def enable_guest_remoting(host: Host, values: Values) -> dict[str, Any]:
    from vm.hyperv.standin import guests

    machine, guest = guest_of(host, values)
    # The emulated guest has one listener: that whose port was chosen.
    http = values["HttpPort"] != 5985
    guest["remoting"] = {
        "scheme": "http" if http else "https",
        "port": values["HttpPort"] if http else values["HttpsPort"],
    }
    emulated = host.emulated(machine)
    emulated.stop()
    certificate = guests.make_certificate(emulated.content / "identity", values["Address"])
    if not (emulated.content / "identity" / "ssh_host_ed25519_key").exists():
        guests.make_host_key(emulated.content / "identity")
    host.connect(machine)
    return {"certificate": certificate, "thumbprint": "0" * 40}


def install_guest_open_ssh(host: Host, values: Values) -> dict[str, Any]:
    from vm.hyperv.standin import guests

    machine, guest = guest_of(host, values)
    if not host.state["files"].get(guest["sources"], {}).get("ssh"):
        return {"installed": False}
    emulated = host.emulated(machine)
    guest["ssh_port"] = values["Port"]
    emulated.write(KEYS, values["PublicKey"] + "\n")
    return {
        "installed": True,
        "origin": "OpenSSH-Win64.zip",
        "host_key": guests.make_host_key(emulated.content / "identity"),
    }


def install_guest_python(host: Host, values: Values) -> dict[str, Any]:
    guest_of(host, values)
    return {"version": "3.12.10"}


def set_guest_boot(host: Host, values: Values) -> dict[str, Any]:
    _, guest = guest_of(host, values)
    if "secure-boot" in host.state["faults"]:
        raise Refusal("secure-boot-on", "bcdedit refused testsigning because Secure Boot is on")
    guest["testsigning_set"] = True
    return {"restart": True}


def set_guest_crash_dumps(host: Host, values: Values) -> dict[str, Any]:
    _, guest = guest_of(host, values)
    guest["crash_dumps"] = True
    return {"restart": True}


def set_guest_quiet(host: Host, values: Values) -> dict[str, Any]:
    guest_of(host, values)
    return {"defender": "absent", "restart": True}


def initialize_guest_volumes(host: Host, values: Values) -> dict[str, Any]:
    guest_of(host, values)
    return {"made": ["D", "E"]}


def set_guest_verifier(host: Host, values: Values) -> dict[str, Any]:
    _, guest = guest_of(host, values)
    guest["verify_set"] = values["Drivers"].split(",")
    return {"restart": True}


def get_guest_verifier(host: Host, values: Values) -> dict[str, Any]:
    _, guest = guest_of(host, values)
    return {"drivers": guest.get("verified", []), "level": 0x209BB, "settings": "", "query": ""}


def restart_guest(host: Host, values: Values) -> dict[str, Any]:
    machine, _ = guest_of(host, values)
    host.power_off(machine)
    if not values["Shutdown"]:
        host.power_on(machine, boot=True)
    return {"requested": True}


def resume_guest(host: Host, values: Values) -> dict[str, Any]:
    machine, guest = guest_of(host, values)
    drive = host.emulated(machine)
    former = values["FormerNonce"]
    there = bool(former) and (drive.drive / NONCES / f"nonce-{former}").exists()
    if values["Nonce"]:
        drive.write(f"{NONCES}/nonce-{values['Nonce']}", "1")
    return {
        "skew_s": guest.pop("clock_offset_s", 0.0),
        "former_nonce": there,
        "boot_id": str(guest["boot_id"]),
        "booted": "2026-01-01T00:00:00Z",
        "system_record": 1000 + guest["boot_id"],
    }


ACTIONS: Mapping[str, Callable[[Host, Values], dict[str, Any]]] = {
    "Test-Guest": test_guest,
    "Set-GuestAccount": set_guest_account,
    "Set-GuestNetwork": set_guest_network,
    "Enable-GuestRemoting": enable_guest_remoting,
    "Install-GuestOpenSsh": install_guest_open_ssh,
    "Install-GuestPython": install_guest_python,
    "Set-GuestBoot": set_guest_boot,
    "Set-GuestCrashDumps": set_guest_crash_dumps,
    "Set-GuestQuiet": set_guest_quiet,
    "Initialize-GuestVolumes": initialize_guest_volumes,
    "Set-GuestVerifier": set_guest_verifier,
    "Get-GuestVerifier": get_guest_verifier,
    "Restart-Guest": restart_guest,
    "Resume-Guest": resume_guest,
}
"""What is done for each of them."""
