"""SOAP envelopes of WS-Management: requests taken apart, responses put together (windows-lab.md A.1, MS-WSMV)."""

from __future__ import annotations

import re
import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from vm.emulated.guest.winrm.faults import FaultError, invalid_body

SOAP = "http://www.w3.org/2003/05/soap-envelope"
ADDRESSING = "http://schemas.xmlsoap.org/ws/2004/08/addressing"
WSMAN = "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd"
WSMAN_MICROSOFT = "http://schemas.microsoft.com/wbem/wsman/1/wsman.xsd"
SHELL = "http://schemas.microsoft.com/wbem/wsman/1/windows/shell"
TRANSFER = "http://schemas.xmlsoap.org/ws/2004/09/transfer"
IDENTITY = "http://schemas.dmtf.org/wbem/wsman/identity/1/wsmanidentity.xsd"
CONFIGURATION = "http://schemas.microsoft.com/wbem/wsman/1/config"
FAULT_DETAIL = "http://schemas.microsoft.com/wbem/wsman/1/wsmanfault"

CMD_SHELL = f"{SHELL}/cmd"
FAULT_ACTION = "http://schemas.dmtf.org/wbem/wsman/1/wsman/fault"
ANONYMOUS = f"{ADDRESSING}/role/anonymous"

NAMESPACES: dict[str, str] = {
    "s": SOAP,
    "a": ADDRESSING,
    "w": WSMAN,
    "p": WSMAN_MICROSOFT,
    "rsp": SHELL,
    "x": TRANSFER,
    "cfg": CONFIGURATION,
    "wsmid": IDENTITY,
}
_DEFAULT_MAX_ENVELOPE_BYTES = 153600
_DURATION = re.compile(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?")


@dataclass(frozen=True, slots=True)
class Request:
    """One WS-Management request."""

    action: str
    message_id: str
    resource_uri: str
    selectors: Mapping[str, str]
    options: Mapping[str, str]
    timeout_seconds: float | None
    max_envelope_bytes: int
    body: ElementTree.Element

    @property
    def identify(self) -> bool:
        """True for wsmid:Identify, which has no action."""
        return self.body.find("wsmid:Identify", NAMESPACES) is not None


def parse_request(data: bytes) -> Request:
    """Take an envelope apart.

    Raises:
        FaultError: it is not XML, not SOAP, has a document type (WS-Management forbids it), or lacks a header.
    """
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise invalid_body("The envelope has a document type declaration.")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError) as error:
        raise invalid_body("The envelope is not well-formed XML.") from error
    body = root.find("s:Body", NAMESPACES)
    if root.tag != f"{{{SOAP}}}Envelope" or body is None:
        raise invalid_body("The message is not a SOAP envelope with a body.")
    header = root.find("s:Header", NAMESPACES)
    if header is None:
        header = ElementTree.Element(f"{{{SOAP}}}Header")
    timeout = header.findtext("w:OperationTimeout", None, NAMESPACES)
    message_id = (header.findtext("a:MessageID", "", NAMESPACES) or "").strip()
    try:
        timeout_seconds = parse_duration(timeout) if timeout is not None else None
        size = header.findtext("w:MaxEnvelopeSize", None, NAMESPACES)
        max_envelope_bytes = int(size) if size is not None else _DEFAULT_MAX_ENVELOPE_BYTES
    except ValueError as error:
        raise invalid_body(str(error), relates_to=message_id) from error
    return Request(
        action=(header.findtext("a:Action", "", NAMESPACES) or "").strip(),
        message_id=message_id,
        resource_uri=(header.findtext("w:ResourceURI", "", NAMESPACES) or "").strip(),
        selectors=_named(header, "w:SelectorSet/w:Selector"),
        options=_named(header, "w:OptionSet/w:Option"),
        timeout_seconds=timeout_seconds,
        max_envelope_bytes=max_envelope_bytes,
        body=body,
    )


def envelope(action: str, relates_to: str, body: str) -> bytes:
    """A response with a fresh MessageID; `body` is XML that uses the prefixes of `NAMESPACES`."""
    prefixes = " ".join(f"xmlns:{prefix}={quoteattr(uri)}" for prefix, uri in NAMESPACES.items())
    return (
        f'<s:Envelope xml:lang="en-US" {prefixes}><s:Header>'
        f"<a:Action>{escape(action)}</a:Action>"
        f"<a:MessageID>uuid:{str(uuid.uuid4()).upper()}</a:MessageID>"
        f"<a:To>{ANONYMOUS}</a:To><a:RelatesTo>{escape(relates_to)}</a:RelatesTo>"
        f"</s:Header><s:Body>{body}</s:Body></s:Envelope>"
    ).encode()


def fault_envelope(fault: FaultError, relates_to: str, machine: str) -> bytes:
    """A fault as Windows words it: SOAP code and subcode, reason, and the WSManFault detail with the number."""
    body = (
        f"<s:Fault><s:Code><s:Value>s:{'Sender' if fault.sender else 'Receiver'}</s:Value>"
        f"<s:Subcode><s:Value>{escape(fault.subcode)}</s:Value></s:Subcode></s:Code>"
        f'<s:Reason><s:Text xml:lang="en-US">{escape(fault.reason)}</s:Text></s:Reason>'
        f'<s:Detail><f:WSManFault xmlns:f="{FAULT_DETAIL}" Code="{fault.code}" Machine={quoteattr(machine)}>'
        f"<f:Message>{escape(fault.message)}</f:Message></f:WSManFault></s:Detail></s:Fault>"
    )
    return envelope(FAULT_ACTION, relates_to, body)


def identify_envelope(operating_system: str) -> bytes:
    """The answer to wsmid:Identify."""
    return (
        f'<s:Envelope xml:lang="en-US" xmlns:s="{SOAP}"><s:Header/><s:Body>'
        f'<wsmid:IdentifyResponse xmlns:wsmid="{IDENTITY}">'
        f"<wsmid:ProtocolVersion>{WSMAN}</wsmid:ProtocolVersion>"
        "<wsmid:ProductVendor>Microsoft Corporation</wsmid:ProductVendor>"
        f"<wsmid:ProductVersion>OS: {escape(operating_system)} SP: 0.0 Stack: 3.0</wsmid:ProductVersion>"
        "</wsmid:IdentifyResponse></s:Body></s:Envelope>"
    ).encode()


def parse_duration(text: str) -> float:
    """Seconds of an xs:duration without years and months; ValueError for anything else."""
    found = _DURATION.fullmatch(text.strip())
    if not found or not any(found.groups()):
        raise ValueError(f"'{text}' is not a duration.")
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def format_duration(seconds: float) -> str:
    """Seconds as Windows writes them: "PT7200.000S"."""
    return f"PT{seconds:.3f}S"


def child_text(element: ElementTree.Element, path: str) -> str | None:
    """Text of a descendant, "" if it is empty, None if it is not there."""
    found = element.find(path, NAMESPACES)
    return None if found is None else found.text or ""


def _named(header: ElementTree.Element, path: str) -> dict[str, str]:
    return {element.get("Name", ""): element.text or "" for element in header.findall(path, NAMESPACES)}
