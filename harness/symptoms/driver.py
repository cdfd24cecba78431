"""Symptoms of a driver: at its load, at its unload, at its port, and while it is tested.

Sources: winerror.h and ntstatus.h for the numbers, the documentation of FltMgr and what was met in practice for causes.
"""

from __future__ import annotations

from harness.symptoms.symptom import Place, Symptom

_BUILD_AGAIN = "build it again: ./inv clean, then ./inv build"


def _load(code: int, name: str, cause: str, cure: str) -> Symptom:
    return Symptom(
        f"load-{code:08x}",
        Place.LOAD,
        f"fltmc load: 0x{code:08X} ({name})",
        cause,
        cure,
        code,
        f"0x{code:08x}",
    )


LOAD: tuple[Symptom, ...] = (
    _load(
        0x80070002,
        "ERROR_FILE_NOT_FOUND",
        "the service key, its image or its 'Instances' key was not found",
        "look at: reg query HKLM\\SYSTEM\\CurrentControlSet\\Services\\<service> /s",
    ),
    _load(
        0x80070003,
        "ERROR_PATH_NOT_FOUND",
        "the directory in ImagePath does not exist; since build 25952 an image stays in the driver store",
        "look at ImagePath: reg query HKLM\\SYSTEM\\CurrentControlSet\\Services\\<service> /v ImagePath",
    ),
    _load(
        0x8007007E,
        "ERROR_MOD_NOT_FOUND",
        "a module that the image imports from does not exist on the system",
        "compare the imports with what the machine offers: ./inv build prints them",
    ),
    _load(
        0x8007007F,
        "ERROR_PROC_NOT_FOUND",
        "the image imports a function that the system does not have",
        "compare the imports with what the machine offers: ./inv build prints them",
    ),
    _load(
        0x800700B7,
        "ERROR_ALREADY_EXISTS",
        "a driver or an object of this name exists already",
        "unload it first: fltmc unload",
    ),
    _load(0x800700C1, "ERROR_BAD_EXE_FORMAT", "the image is not a 64-bit driver", _BUILD_AGAIN),
    _load(
        0x80070241,
        "ERROR_INVALID_IMAGE_HASH, 577",
        "the signature of the image is not valid on this machine",
        "is testsigning on, and the certificate in Root and TrustedPublisher?",
    ),
    _load(
        0x80070420,
        "ERROR_SERVICE_ALREADY_RUNNING",
        "the driver is loaded already",
        "unload it first: fltmc unload",
    ),
    _load(
        0x80070430,
        "ERROR_SERVICE_MARKED_FOR_DELETE, 1072",
        "the service is deleted but something still holds it, an open service console for example",
        "close what holds it, or restart the guest",
    ),
    _load(
        0x80070522,
        "ERROR_PRIVILEGE_NOT_HELD",
        "the user may not load drivers",
        "log on as an administrator with SeLoadDriverPrivilege",
    ),
    _load(0x800707D1, "ERROR_BAD_DRIVER", "the image is not a valid driver", _BUILD_AGAIN),
    _load(
        0x80070424,
        "ERROR_SERVICE_DOES_NOT_EXIST, 1060",
        "there is no service of that name",
        "deploy the driver: ./inv deploy",
    ),
    _load(
        0x801F0011,
        "ERROR_FLT_INSTANCE_ALTITUDE_COLLISION",
        "another filter has the same altitude",
        "choose another altitude in harness.toml",
    ),
    _load(
        0x801F0012,
        "ERROR_FLT_INSTANCE_NAME_COLLISION",
        "another instance has the same name",
        "unload the other filter first: fltmc unload",
    ),
)
"""HRESULTs of FilterLoad as fltmc prints them."""

ENTRY: tuple[Symptom, ...] = (
    _load(
        0x80070005,
        "ERROR_ACCESS_DENIED",
        "the shell is not elevated, or DriverEntry returned STATUS_ACCESS_DENIED",
        "log on as an administrator; in a WinRM session set LocalAccountTokenFilterPolicy to 1",
    ),
    _load(
        0x8007001F,
        "ERROR_GEN_FAILURE",
        "DriverEntry returned STATUS_UNSUCCESSFUL",
        "look at the driver's debug output: runs/latest, machine/debug.log",
    ),
    _load(
        0x800705AA,
        "ERROR_NO_SYSTEM_RESOURCES",
        "DriverEntry got no memory; with low-resource simulation of Driver Verifier that is on purpose",
        "look at the verifier's settings: verifier /querysettings",
    ),
    _load(
        0x80070032,
        "ERROR_NOT_SUPPORTED",
        "the driver does not support this system, or its DriverEntry returned STATUS_NOT_SUPPORTED",
        "compare the guest's build with the sections of the INF: ./inv doctor",
    ),
)
"""HRESULTs of FilterLoad that stand for a status which DriverEntry returned."""

UNLOAD: tuple[Symptom, ...] = (
    Symptom(
        "unload-refused",
        Place.UNLOAD,
        "fltmc unload: 0x801F0010 (ERROR_FLT_DO_NOT_DETACH)",
        "its unload callback refused, or it has none",
        "the machine has to be restored: ./inv vm.restore",
        0x801F0010,
        "0x801f0010",
    ),
    Symptom(
        "unload-not-found",
        Place.UNLOAD,
        "fltmc unload: 0x801F0013 (ERROR_FLT_FILTER_NOT_FOUND)",
        "no filter of that name is loaded",
        "nothing; it is gone already",
        0x801F0013,
        "0x801f0013",
    ),
    Symptom(
        "unload-hangs",
        Place.UNLOAD,
        "fltmc unload does not come back",
        "a reference, a sender or a server port that is still open holds the driver",
        "never try twice: the machine has to be restored: ./inv vm.restore",
        None,
        r"hangs in its unload",
    ),
    Symptom(
        "unload-depends",
        Place.UNLOAD,
        "sc stop: 1051 (ERROR_DEPENDENT_SERVICES_RUNNING)",
        "a service that depends on the filter is running; fltmc unload would not ask",
        "stop that service first: sc enumdepend <service>",
        1051,
        r"\b1051\b",
    ),
    Symptom(
        "delete-pending",
        Place.UNLOAD,
        "sc create after sc delete: 1072, or 0x80070420 from fltmc load",
        "the older image is still referenced when the new service is made",
        "wait until the service key is gone: reg query HKLM\\SYSTEM\\CurrentControlSet\\Services\\<service>",
        1072,
        r"\b1072\b",
    ),
)

CONNECT: tuple[Symptom, ...] = (
    Symptom(
        "connect-not-found",
        Place.CONNECT,
        "FilterConnectCommunicationPort: 0x80070002",
        "there is no port of that name: the driver is not loaded, or its port has another name",
        "load it: ./inv deploy; compare 'port' in harness.toml",
        0x80070002,
    ),
    Symptom(
        "connect-access-denied",
        Place.CONNECT,
        "FilterConnectCommunicationPort: 0x80070005",
        "the port's security descriptor does not allow this user, or the process is not elevated",
        "run as an administrator; a port made with FltBuildDefaultSecurityDescriptor lets only those in",
        0x80070005,
    ),
    Symptom(
        "connect-limit",
        Place.CONNECT,
        "FilterConnectCommunicationPort: 0x800704D6",
        "the port has as many connections as its driver allows",
        "end another client, or raise MaxConnections of FltCreateCommunicationPort",
        0x800704D6,
    ),
    Symptom(
        "connect-bad-context",
        Place.CONNECT,
        "FilterConnectCommunicationPort: 0x80070057",
        "the driver refused the connection context: wrong version, size or mask",
        "build client and driver from the same downlink_protocol.h",
        0x80070057,
    ),
    Symptom(
        "connect-old-protocol",
        Place.CONNECT,
        "FilterConnectCommunicationPort: 0x8007051A (ERROR_REVISION_MISMATCH)",
        "client and driver speak different versions of the protocol",
        "deploy the driver that belongs to this checkout: ./inv deploy",
        0x8007051A,
    ),
    Symptom(
        "get-message-invalid-handle",
        Place.CONNECT,
        "FilterGetMessage: 0x80070006",
        "the connection was closed by this side, or the driver was unloaded",
        "connect again; a client that outlives its driver has to expect this",
        0x80070006,
    ),
    Symptom(
        "get-message-too-small",
        Place.CONNECT,
        "FilterGetMessage: 0x8007007A",
        "the buffer is smaller than the driver's message with its header",
        "make room for FILTER_MESSAGE_HEADER (16 bytes) and the largest message",
        0x8007007A,
    ),
)

RUN: tuple[Symptom, ...] = (
    Symptom(
        "bugcheck-c4",
        Place.RUN,
        "bugcheck 0xC4 (DRIVER_VERIFIER_DETECTED_VIOLATION)",
        "Driver Verifier found a broken rule; its first parameter says which one",
        "look at the stack in the report, then: !analyze -v in the dump",
        0xC4,
        r"\b0xC4\b",
    ),
    Symptom(
        "bugcheck-c9",
        Place.RUN,
        "bugcheck 0xC9 (DRIVER_VERIFIER_IOMANAGER_VIOLATION)",
        "the filter verifier or the I/O verification found a broken rule",
        "look at the stack in the report, then: !analyze -v in the dump",
        0xC9,
        r"\b0xC9\b",
    ),
    Symptom(
        "verifier-not-on",
        Place.RUN,
        "Driver Verifier finds nothing at all",
        "the driver is not verified: rule class 37 (filters) needs class 5 and a restart, settings go by file name",
        "in the guest: verifier /query while it is loaded; use the checkpoint 'verifier'",
    ),
    Symptom(
        "no-dump",
        Place.RUN,
        "a bugcheck, but there is no dump",
        "dumps are off, the page file is too small, or Windows deleted the dump because less than 25 GB are free",
        "in the guest: ./inv doctor --fix --machine <name> sets CrashControl; give the disk more room",
    ),
    Symptom(
        "verifier-hang",
        Place.RUN,
        "the guest stands still at a violation instead of crashing",
        "a kernel debugger is configured, and Driver Verifier waits at its prompt",
        "test without it: bcdedit /debug off, or keep debugging in a checkpoint of its own",
    ),
    Symptom(
        "fault-bursts",
        Place.RUN,
        "all allocations fail for ten seconds every five minutes",
        "low-resource simulation with its default probability of 600 works in bursts",
        "use another one: verifier /faults 599",
    ),
    Symptom(
        "jumping-times",
        Place.RUN,
        "times in the journal jump; tests wait too long or not at all",
        "the time service set the guest's clock while the suite ran",
        "./inv doctor --fix --machine <name> before the run",
    ),
)
