"""Symptoms that the doctor finds before a run does: what the checks of `harness.doctor` say and advise.

Source: the preflight lists of the Windows lab figures.
"""

from __future__ import annotations

from harness.symptoms.symptom import Place, Symptom


def _row(identifier: str, seen: str, cause: str, cure: str) -> Symptom:
    return Symptom(identifier, Place.DOCTOR, seen, cause, cure)


_FIX = "./inv doctor --fix --machine <name>"

PREFLIGHT: tuple[Symptom, ...] = (
    _row(
        "host-python",
        "Python is older than 3.11",
        "the harness uses what 3.11 brought",
        "install a newer Python, remove .venv",
    ),
    _row(
        "host-packages",
        "a package of the harness is not installed",
        "the environment .venv is older than pyproject.toml, or was made by hand",
        "remove .venv, then ./inv --list",
    ),
    _row(
        "host-disk",
        "the host has less than 500 MB free",
        "runs, builds and checkpoints need room",
        "./inv clean, or make room",
    ),
    _row(
        "host-loopback",
        "127.0.0.1 does not accept connections",
        "a firewall or a sandbox forbids what the emulated machine needs",
        "allow connections to 127.0.0.1",
    ),
    _row(
        "host-proxy",
        "HTTP_PROXY or HTTPS_PROXY is set on the host",
        "other clients of WinRM send their traffic through it; the harness goes past it",
        "name the machine in NO_PROXY",
    ),
    _row(
        "host-signing-expired",
        "the test certificate of this checkout has expired, or will soon",
        "it was made long ago",
        "./inv build makes a new one; machines get it with the next deployment",
    ),
    _row(
        "host-signing-future",
        "the test certificate of this checkout is not valid yet",
        "the clock of the host was ahead when it was made, or is behind now",
        "set the host's clock; if it is right: remove .cache/signing, then ./inv build",
    ),
    _row(
        "machine-secret",
        "there is no password for the machine",
        "neither the environment nor the keyring has it",
        "set <variable>, or: python -m keyring set downlink <name>.password",
    ),
    _row(
        "machine-certificate-expired",
        "the certificate of the machine's HTTPS listener has expired",
        "it was made for a limited time, or the clock of host or guest is wrong",
        "in the guest: make a new one, give it to the HTTPS listener and export it again",
    ),
    _row(
        "machine-host-key",
        "the machine has SSH, but no key is pinned",
        "without it anybody who answers at the address would be believed",
        "ssh-keyscan <host>, then host_key in harness.local.toml",
    ),
    _row(
        "machine-dirty",
        "the machine has to be restored before it is used again",
        "an unload hung or was refused",
        "./inv vm.restore --machine <name>",
    ),
    _row(
        "machine-dirty-for-good",
        "the machine has to be restarted before it is used again",
        "an unload hung or was refused on a machine that has no checkpoint",
        "shutdown /r /t 0 there; the next command sees that it was restarted",
    ),
    _row(
        "machine-stale-state",
        "files of a machine lie about whose process is gone",
        "its host process was killed or the host restarted",
        _FIX,
    ),
    _row(
        "guest-facts",
        "the guest does not say how it is",
        "PowerShell is missing or a policy keeps scripts from running",
        "in the guest: powershell -NoProfile -ExecutionPolicy Bypass -Command $PSVersionTable",
    ),
    _row(
        "guest-testsigning",
        "testsigning is off",
        "the guest loads only drivers with a production signature (577 at the load)",
        "in the guest: bcdedit /set testsigning on, then restart it (Secure Boot must be off)",
    ),
    _row(
        "guest-testsigning-restart",
        "testsigning is configured, but not in effect",
        "boot options are read when the guest starts",
        "restart the guest: shutdown /r /t 0",
    ),
    _row(
        "guest-secure-boot",
        "Secure Boot is on",
        "the firmware then refuses test-signed drivers, and bcdedit refuses testsigning",
        "switch it off in the firmware; on a Hyper-V host: Set-VMFirmware <name> -EnableSecureBoot Off",
    ),
    _row(
        "guest-architecture",
        "the package is for another processor than the guest",
        "it was built for the other architecture",
        "build for it: ./inv build --architecture <architecture>",
    ),
    _row(
        "guest-inf",
        "the INF has no section for the guest's Windows",
        "its sections are for another processor or for later builds only",
        "add a section without a build: [DefaultInstall.NT<architecture>]",
    ),
    _row(
        "guest-verifier",
        "Driver Verifier does not check the driver, although the checkpoint is made for it",
        "its settings go by the file name of the image, and take effect at a restart",
        "in the guest: verifier /standard /driver <image>, restart it, then make the checkpoint again",
    ),
    _row(
        "guest-clock",
        "the guest's clock is off",
        "it was restored from a checkpoint, and the time service refuses big steps",
        _FIX,
    ),
    _row(
        "guest-disk",
        "the guest's disk is nearly full",
        "dumps, event traces and older packages grow",
        "in the guest: del C:\\Windows\\MEMORY.DMP, or give the disk more room",
    ),
    _row(
        "guest-files",
        "what is sent to the guest does not arrive as it was",
        "its disk is full, or a filter in it changes files",
        "in the guest: fsutil volume diskfree C:, and make room; else look at: fltmc filters",
    ),
    _row(
        "guest-memory",
        "the guest has hardly any memory free",
        "it has less than Windows needs, or something eats it",
        "give the machine 4 GB; look at: tasklist",
    ),
    _row(
        "guest-python",
        "there is no Python in the guest, or an older one than 3.11",
        "suites run inside the guest",
        "install it for all users, offline from the NuGet package 'python', to C:\\Python",
    ),
    _row(
        "guest-wheels",
        "pytest is not installed in the guest's Python",
        "suites run inside the guest",
        "copy the wheels there, then: python -m pip install --no-index --find-links <wheels> pytest",
    ),
    _row(
        "guest-certificate",
        "the test certificate is not trusted by the guest yet",
        "it belongs into Root and TrustedPublisher of the machine",
        f"nothing: a deployment adds it; or at once: {_FIX}",
    ),
    _row(
        "guest-certificate-time",
        "the test certificate is not valid at the guest's time",
        "the guest's clock is off, or the certificate has expired",
        f"{_FIX} sets the clock; else remove .cache/signing, then ./inv build",
    ),
    _row(
        "guest-https-certificate",
        "the certificate of the guest's HTTPS listener has expired",
        "it was made for a limited time, or the clock is wrong",
        "in the guest: make a new one, give it to the HTTPS listener and export it again",
    ),
    _row(
        "guest-quotas",
        "a quota of WinRM in the guest is smaller than a run needs",
        "somebody lowered it, or the system is old",
        _FIX,
    ),
    _row(
        "guest-network",
        "a network of the guest is public",
        "the firewall keeps WinRM's default rule closed there",
        _FIX,
    ),
    _row(
        "guest-crash-dump",
        "a bugcheck would leave no dump",
        "CrashControl is not as it should be",
        _FIX,
    ),
    _row(
        "guest-page-file",
        "the page file is smaller than a complete dump",
        "a complete dump needs the memory and 1 MB",
        "make it larger, or have kernel dumps: " + _FIX,
    ),
    _row(
        "guest-altitude",
        "another filter claims the altitude of this driver",
        "two filters cannot have one (0x801F0011 at the load)",
        "choose another altitude in harness.toml, or remove the other filter: sc delete <service>",
    ),
    _row(
        "guest-service-deleted",
        "a service of this name waits for its deletion",
        "something still holds it, or its driver could not be unloaded (1072)",
        "restart the guest: shutdown /r /t 0",
    ),
    _row(
        "guest-service-stale",
        "a service of this name is there already",
        "an older deployment",
        "nothing: a deployment replaces it; or: sc delete <service>",
    ),
    _row(
        "guest-package-stale",
        "packages with the same INF are in the driver store",
        "older deployments",
        "nothing: a deployment replaces them; or: pnputil /delete-driver <oem> /uninstall",
    ),
    _row(
        "guest-pending-restart",
        "the guest waits for a restart",
        "an update or an installation is half done; services and drivers then behave oddly",
        "restart the guest: shutdown /r /t 0",
    ),
    _row(
        "guest-old-dumps",
        "dumps of older crashes lie in the guest",
        "nobody fetched or removed them; they would look like those of this run",
        "in the guest: del C:\\Windows\\Minidump\\*.dmp C:\\Windows\\MEMORY.DMP",
    ),
    _row(
        "guest-proxy",
        "a proxy is set for the whole guest",
        "clients in the guest send their traffic there",
        'in the guest: setx <variable> "" /M',
    ),
    _row(
        "guest-debugger",
        "the guest was booted with kernel debugging",
        "Driver Verifier then waits for the debugger instead of crashing, and the clock can stand still",
        "bcdedit /debug off, or keep debugging in a checkpoint of its own",
    ),
)
