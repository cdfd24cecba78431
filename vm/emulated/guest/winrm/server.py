"""HTTP under WinRM: one thread and one authentication state per connection, as http.sys and NTLM have it."""

from __future__ import annotations

import logging
import os
import select
import socket
import socketserver
import ssl
import struct
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from spnego.channel_bindings import GssChannelBindings

from vm.emulated.guest.chaos.fault import Interruption
from vm.emulated.guest.listening import ConnectionServer, Listening
from vm.emulated.guest.settings import GuestSettings
from vm.emulated.guest.winrm import sealing
from vm.emulated.guest.winrm.authentication import (
    ConnectionAuthentication,
    Decision,
    Verdict,
    channel_bindings,
)
from vm.emulated.guest.winrm.service import Reply, Service

log = logging.getLogger(__name__)

_SOAP = "application/soap+xml;charset=UTF-8"
_PATHS = ("/wsman", "/wsman-anon/identify")
_REFUSED_BODY_BYTES = 8 * 1024 * 1024
"""A request above this is not even read; below it is read to keep the sealing in step, then answered by a fault."""
_LINGER = "hh" if os.name == "nt" else "ii"
"""struct linger: u_short on Windows, int elsewhere."""


class WinRmServer(Listening["_Server"]):
    """Listens on 127.0.0.1 from `start` to `stop`."""

    def __init__(self, service: Service, settings: GuestSettings) -> None:
        super().__init__("WinRM", settings.winrm_port)
        self._service = service
        self._settings = settings

    def _bind(self, address: tuple[str, int]) -> _Server:
        return _Server(address, self._service, self._settings)


class _Server(ConnectionServer, HTTPServer):
    name = "WinRM"
    door = "winrm"

    def __init__(self, address: tuple[str, int], service: Service, settings: GuestSettings) -> None:
        self.service = service
        self.settings = settings
        self.tls: ssl.SSLContext | None = None
        self.bindings: GssChannelBindings | None = None
        if settings.tls is not None:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(settings.tls.certificate, settings.tls.key)
            self.bindings = channel_bindings(settings.tls.certificate)
        super().__init__(address, _Handler, service.chaos)

    def server_bind(self) -> None:
        # HTTPServer's own looks up the host's name, which can take seconds without a name server.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", int(self.server_address[1])


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def setup(self) -> None:
        self.request.settimeout(self.server.settings.idle_drop_seconds)
        if self.server.tls is not None:
            # The handshake belongs into this thread: a client that stalls must not keep others waiting. Wrapping
            # takes the descriptor away from the plain socket, so the new one has to be known for a drop.
            plain = self.request
            self.request = self.server.tls.wrap_socket(plain, server_side=True)
            self.server.connections.replace(plain, self.request)
        super().setup()
        self._authentication = ConnectionAuthentication(self.server.settings, self.server.bindings)

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            if self.server.tls is not None:
                self.server.connections.remove(self.request)
                self.request.close()

    def version_string(self) -> str:
        return "Microsoft-HTTPAPI/2.0"

    def log_message(self, format: str, *args: object) -> None:
        log.debug("%s", format % args)

    def log_error(self, format: str, *args: object) -> None:
        # The base class drops a connection on a timeout and has no other place that tells.
        if format.startswith("Request timed out"):
            self.server.chaos.dropped_idle()
        super().log_error(format, *args)

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(self.server.service.now() if timestamp is None else timestamp)

    def do_GET(self) -> None:
        self._answer(405)

    def do_POST(self) -> None:
        body = self._body()
        if body is None:
            return
        chaos = self.server.chaos
        chaos.on_request()
        if self.path.split("?")[0].rstrip("/").casefold() not in _PATHS:
            self._answer(404)
            return
        if self.headers.get("Authorization") is None and self._anonymous_identify():
            self._send(self.server.service.identify(authenticated=False), None)
            return
        verdict = self._authentication.examine(self.headers.get("Authorization"))
        basic = (self.headers.get("Authorization") or "").casefold().startswith("basic ")
        if basic and verdict.decision is Decision.ACCEPTED and not self._basic_allowed():
            chaos.noticed("basic refused")
            verdict = Verdict(Decision.REFUSED)
        if self._refused(verdict, basic=basic) or (
            verdict.decision is Decision.ACCEPTED and body and chaos.forgets_logon()
        ):
            self._authentication = ConnectionAuthentication(self.server.settings, self.server.bindings)
            verdict = Verdict(Decision.REFUSED)
        if verdict.decision is not Decision.ACCEPTED:
            self._challenge(verdict)
            return
        if not body:
            # pywinrm finishes the logon with an empty request before it seals the first message.
            self._answer(200, verdict.token)
            return
        self._serve(body, verdict.token, basic=basic)

    def _refused(self, verdict: Verdict, *, basic: bool) -> bool:
        """True if a fault refuses what the credentials would have been accepted for."""
        if self.headers.get("Authorization") is None or verdict.decision is Decision.REFUSED:
            return False
        if not basic and self.server.chaos.refuses_logon("ntlm"):
            return True
        return verdict.decision is Decision.ACCEPTED and self.server.chaos.refuses_logon("winrm")

    def _serve(self, body: bytes, token: str | None, *, basic: bool) -> None:
        context = None if basic else self._authentication.sealing
        if sealing.is_sealed(self.headers.get("Content-Type", "")):
            if context is None or self.server.chaos.breaks_seal():
                self._reject(400)
                return
            try:
                message = sealing.unseal(context, body)
            except sealing.SealingError as error:
                log.info("a sealed request was refused: %s", error)
                self._reject(400)
                return
        elif context is not None and self.server.tls is None:
            # AllowUnencrypted=false
            self._answer(500, token)
            return
        else:
            message, context = body, None
        reply = self.server.service.handle(message, self.server.settings.username)
        self._send(reply, token, context)

    def _send(self, reply: Reply, token: str | None, context: Any = None) -> None:
        if reply.interruption is not None:
            self._interrupt(reply, reply.interruption, context)
            return
        if reply.undelivered and self._client_gone():
            # What a client did not wait for must be there for its next connection.
            reply.undelivered()
            self.close_connection = True
            return
        body, content_type = reply.envelope, _SOAP
        if context is not None:
            body, content_type = sealing.seal(context, reply.envelope), sealing.CONTENT_TYPE
        try:
            self._answer(reply.status, token, body, content_type)
        except OSError:
            if reply.undelivered:
                reply.undelivered()
            raise
        if reply.delivered:
            reply.delivered()

    def _interrupt(self, reply: Reply, how: Interruption, context: Any) -> None:
        """Answer with a bare status, or reset the connection."""
        if reply.undelivered:
            reply.undelivered()
        if how.status is not None:
            self._reject(how.status)
            return
        self.close_connection = True
        if how.partly:
            body = reply.envelope if context is None else sealing.seal(context, reply.envelope)
            self.send_response(reply.status)
            self.send_header("Content-Type", _SOAP if context is None else sealing.CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
        # With a linger time of zero the end of the socket is a reset, not a shutdown.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(_LINGER, 1, 0))
        self.server.connections.remove(self.connection)
        socket.close(self.connection.detach())

    def _client_gone(self) -> bool:
        """True if the client has closed the connection; TLS sockets cannot be asked without reading."""
        if self.server.tls is not None:
            return False
        readable, _, _ = select.select([self.connection], [], [], 0)
        try:
            return bool(readable) and self.connection.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            return True

    def _body(self) -> bytes | None:
        """The whole body; None when the request was refused for its length."""
        text = self.headers.get("Content-Length", "")
        if not text.isdecimal():
            self._reject(411)
            return None
        length = int(text)
        if length > _REFUSED_BODY_BYTES:
            self._reject(413)
            return None
        body = self.rfile.read(length)
        if len(body) != length:
            raise ConnectionError("the connection ended within a request")
        return body

    def _anonymous_identify(self) -> bool:
        return (self.headers.get("WSMANIDENTIFY") or "").strip().casefold() == "unauthenticated"

    def _basic_allowed(self) -> bool:
        return self.server.tls is not None or self.server.settings.unencrypted_basic

    def _challenge(self, verdict: Verdict) -> None:
        self.send_response(401)
        if verdict.decision is Decision.CONTINUE and verdict.token:
            self.send_header("WWW-Authenticate", verdict.token)
        else:
            self.send_header("WWW-Authenticate", "Negotiate")
            if self._basic_allowed():
                self.send_header("WWW-Authenticate", 'Basic realm="WSMAN"')
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.wfile.flush()

    def _reject(self, status: int) -> None:
        self.close_connection = True
        self._answer(status)

    def _answer(
        self, status: int, token: str | None = None, body: bytes = b"", content_type: str | None = None
    ) -> None:
        self.send_response(status)
        if token:
            self.send_header("WWW-Authenticate", token)
        if content_type:
            self.send_header("Content-Type", content_type)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
