"""The faults of the service with Windows' numbers (windows-lab.md A.2; names and texts of wsmerror.h)."""

from __future__ import annotations

ERROR_ACCESS_DENIED = 5
ERROR_INVALID_PARAMETER = 87
ERROR_BROKEN_PIPE = 109
ERROR_OPERATION_ABORTED = 995
ERROR_DIRECTORY = 267
ERROR_WSMAN_INVALID_ACTIONURI = 2150858753
ERROR_WSMAN_ENVELOPE_TOO_LARGE = 2150858790
ERROR_WSMAN_INVALID_SOAP_BODY = 2150858791
ERROR_WSMAN_OPERATION_TIMEDOUT = 2150858793
ERROR_WSMAN_INVALID_PROPOSED_ID = 2150858798
ERROR_WSMAN_ENCODING_LIMIT = 2150858805
ERROR_WSMAN_INVALID_OPTIONS = 2150858809
ERROR_WSMAN_INVALID_RESOURCE_URI = 2150858811
ERROR_WSMAN_SCHEMA_VALIDATION_ERROR = 2150858817
ERROR_WSMAN_UNEXPECTED_SELECTORS = 2150858843
ERROR_WINRS_INVALID_STREAM = 2150859147
ERROR_WSMAN_QUOTA_MAX_SHELLS = 2150859173
ERROR_WSMAN_QUOTA_MAX_OPERATIONS = 2150859174
ERROR_WSMAN_QUOTA_MAX_COMMANDS_PER_SHELL_PPQ = 2150859241
HRESULT_FILE_NOT_FOUND = 2147942402
HRESULT_DIRECTORY = 2147942667


class FaultError(Exception):
    """A request is answered with a fault.

    Args:
        code: the number in WSManFault/@Code.
        subcode: qualified name with the prefixes of the response ("w:TimedOut").
        reason: text of the SOAP reason.
        message: text of WSManFault/Message; the reason if None.
        sender: whether the SOAP code is Sender (the request is wrong) or Receiver.
        relates_to: MessageID of the request where the raiser knows better than the service.
    """

    def __init__(
        self,
        code: int,
        subcode: str,
        reason: str,
        *,
        message: str | None = None,
        sender: bool = True,
        relates_to: str | None = None,
    ) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.subcode = subcode
        self.reason = reason
        self.message = reason if message is None else message
        self.sender = sender
        self.relates_to = relates_to


def operation_timed_out() -> FaultError:
    """Nothing to receive within OperationTimeout: the client asks again (MS-WSMV 3.1.4.13)."""
    return FaultError(
        ERROR_WSMAN_OPERATION_TIMEDOUT,
        "w:TimedOut",
        "The WS-Management service cannot complete the operation within the time specified in OperationTimeout.",
        sender=False,
    )


def operation_aborted() -> FaultError:
    """The command went away while a Receive waited for it."""
    return FaultError(
        ERROR_OPERATION_ABORTED,
        "w:InternalError",
        "The I/O operation has been aborted because of either a thread exit or an application request.",
        sender=False,
    )


def shell_not_found(shell_id: str) -> FaultError:
    """The ShellId is unknown: deleted, timed out, or gone with a restart."""
    return FaultError(
        ERROR_WSMAN_UNEXPECTED_SELECTORS,
        "w:InvalidSelectors",
        "The WS-Management service cannot process the request because the request contained invalid selectors for the "
        "resource.",
        message=f"The request for the Windows Remote Shell with ShellId {shell_id} failed because the shell was not "
        "found on the server. Possible causes are: the specified ShellId is incorrect or the shell no longer exists on "
        "the server. Provide the correct ShellId or create a new shell and retry the operation.",
    )


def command_not_found() -> FaultError:
    """The CommandId is unknown in its shell."""
    return FaultError(
        ERROR_WSMAN_UNEXPECTED_SELECTORS,
        "w:InvalidSelectors",
        "The WS-Management service cannot process the request because the request contained invalid selectors for the "
        "resource.",
        message="The Windows Remote Shell received a request to perform an operation on a command identifier that does "
        "not exist. Either the command has completed execution or the client specified an invalid command identifier.",
    )


def invalid_body(message: str, *, relates_to: str | None = None) -> FaultError:
    """The envelope or its body is not what the schema says."""
    return FaultError(
        ERROR_WSMAN_SCHEMA_VALIDATION_ERROR,
        "w:SchemaValidationError",
        "The SOAP XML in the message does not match the corresponding XML schema definition. Change the XML and retry.",
        message=message,
        relates_to=relates_to,
    )


def invalid_options(message: str) -> FaultError:
    """An option with a value that does not exist."""
    return FaultError(
        ERROR_WSMAN_INVALID_OPTIONS,
        "w:InvalidOptions",
        "The WS-Management service cannot process the request because the request contains one or more invalid options.",
        message=message,
    )


def action_not_supported(action: str) -> FaultError:
    """An action that the shell resource does not have."""
    return FaultError(
        ERROR_WSMAN_INVALID_ACTIONURI,
        "a:ActionNotSupported",
        "The action is not supported by the service.",
        message=f"The WS-Management service cannot process the request. The WS-Addressing action URI '{action}' is "
        "invalid. Check the documentation for information on how to construct an action URI.",
    )


def unknown_resource(uri: str) -> FaultError:
    """A resource URI other than the command shell's."""
    return FaultError(
        ERROR_WSMAN_INVALID_RESOURCE_URI,
        "a:DestinationUnreachable",
        "The WS-Management service cannot process the request. The resource URI is missing or it has an incorrect "
        "format.",
        message=f"The resource URI ({uri}) was not found in the WS-Management catalog. The catalog contains the metadata "
        "that describes resources, or logical endpoints.",
    )


def envelope_too_large(size: int, limit: int) -> FaultError:
    """The request is larger than MaxEnvelopeSizekb."""
    return FaultError(
        ERROR_WSMAN_ENVELOPE_TOO_LARGE,
        "w:EncodingLimit",
        "The WS-Management service cannot process the request because it is larger than the maximum size allowed.",
        message=f"The request has {size} bytes; MaxEnvelopeSizekb of this service allows {limit}.",
    )


def envelope_too_small(size: int) -> FaultError:
    """The client wants responses smaller than any response can be."""
    return FaultError(
        ERROR_WSMAN_ENCODING_LIMIT,
        "w:EncodingLimit",
        "The WS-Management service cannot process the request: the MaxEnvelopeSize is too small.",
        message=f"MaxEnvelopeSize is {size} bytes; it must be at least 8192.",
    )


def too_many_shells(limit: int) -> FaultError:
    """MaxShellsPerUser is used up."""
    return FaultError(
        ERROR_WSMAN_QUOTA_MAX_SHELLS,
        "w:QuotaLimit",
        "The WS-Management service cannot process the request. This user has exceeded the maximum number of shells "
        f"({limit}). Close existing shells or raise the quota for this user.",
    )


def too_many_commands(limit: int) -> FaultError:
    """MaxProcessesPerShell is used up."""
    return FaultError(
        ERROR_WSMAN_QUOTA_MAX_COMMANDS_PER_SHELL_PPQ,
        "w:QuotaLimit",
        "The WS-Management service cannot process the request. The maximum number of concurrent commands per shell "
        f"({limit}) has been exceeded. Close existing commands or raise the quota.",
    )


def too_many_operations(limit: int) -> FaultError:
    """MaxConcurrentOperationsPerUser is used up."""
    return FaultError(
        ERROR_WSMAN_QUOTA_MAX_OPERATIONS,
        "w:QuotaLimit",
        "The WS-Management service cannot process the request. The maximum number of concurrent operations for this "
        f"user ({limit}) has been exceeded.",
    )


def invalid_stream(message: str) -> FaultError:
    """Input for a stream that does not exist or has ended."""
    return FaultError(
        ERROR_WINRS_INVALID_STREAM,
        "w:InvalidParameter",
        "The Windows Remote Shell cannot process the request: the input stream is invalid.",
        message=message,
    )


def pipe_ended() -> FaultError:
    """Input for a command that has ended."""
    return FaultError(ERROR_BROKEN_PIPE, "w:InternalError", "The pipe has been ended.", sender=False)


def invalid_id(message: str) -> FaultError:
    """A client proposed an identifier that is no GUID or is taken."""
    return FaultError(
        ERROR_WSMAN_INVALID_PROPOSED_ID,
        "w:InvalidParameter",
        "The WS-Management service cannot process the request because the proposed identifier is invalid.",
        message=message,
    )
