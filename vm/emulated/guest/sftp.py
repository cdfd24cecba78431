"""The SSH server of the guest: SFTP only, logon by password or key, a fresh ed25519 host key at every start."""

from __future__ import annotations

import base64
import hmac
import io
import logging
import socket
import socketserver
from pathlib import Path

import paramiko
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from paramiko.common import (
    AUTH_FAILED,
    AUTH_SUCCESSFUL,
    OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED,
    OPEN_SUCCEEDED,
)

from vm.emulated.guest.chaos.plan import Chaos
from vm.emulated.guest.drive import Drive, WindowsPathError
from vm.emulated.guest.listening import ConnectionServer, Listening
from vm.emulated.guest.settings import GuestSettings
from vm.emulated.guest.sftp_files import SftpFiles

log = logging.getLogger(__name__)

_VERSION = "SSH-2.0-OpenSSH_for_Windows_9.5"
ADMINISTRATORS_KEYS = "C:\\ProgramData\\ssh\\administrators_authorized_keys"
_AUTHENTICATION_SECONDS = 60.0


class SftpServer(Listening["_Server"]):
    """Listens on 127.0.0.1 from `start` to `stop`."""

    def __init__(self, drive: Drive, settings: GuestSettings, chaos: Chaos) -> None:
        super().__init__("SSH", settings.ssh_port)
        self._drive = drive
        self._settings = settings
        self._chaos = chaos
        self._key = _host_key(settings.host_key_file)
        self._shown = self._key

    @property
    def host_key(self) -> str:
        """The public host key in OpenSSH form."""
        return f"{self._shown.get_name()} {self._shown.get_base64()}"

    def replace_key(self) -> None:
        """Present a new host key; `host_key` still says the old one, which clients have pinned."""
        self._shown = self._key
        self._key = _new_host_key()
        if self._server:
            self._server.key = self._key

    def _bind(self, address: tuple[str, int]) -> _Server:
        return _Server(address, self._drive, self._settings, self._key, self._chaos)


class _Server(ConnectionServer):
    name = "SSH"
    door = "ssh"

    def __init__(
        self,
        address: tuple[str, int],
        drive: Drive,
        settings: GuestSettings,
        key: paramiko.PKey,
        chaos: Chaos,
    ) -> None:
        self.drive = drive
        self.settings = settings
        self.key = key
        super().__init__(address, _Connection, chaos)


class _Connection(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport = paramiko.Transport(self.request)
        transport.local_version = _VERSION
        transport.auth_timeout = _AUTHENTICATION_SECONDS
        transport.add_server_key(self.server.key)
        home = f"C:\\Users\\{self.server.settings.username}"
        transport.set_subsystem_handler(
            "sftp",
            paramiko.SFTPServer,
            SftpFiles,
            self.server.drive,
            home,
            self.server.chaos,
            transport.close,
        )
        try:
            transport.start_server(server=_Logon(self.server.settings, self.server.chaos, self.server.drive))
            transport.join()
        except (paramiko.SSHException, EOFError, OSError) as error:
            log.debug("an SSH connection ended: %s", error)
        finally:
            transport.close()


class _Logon(paramiko.ServerInterface):
    def __init__(self, settings: GuestSettings, chaos: Chaos, drive: Drive) -> None:
        self._settings = settings
        self._chaos = chaos
        self._drive = drive

    def get_allowed_auths(self, username: str) -> str:
        return "publickey,password"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        if self._is_known(username) and not self._chaos.refuses_logon("ssh") and key in self._authorized():
            return AUTH_SUCCESSFUL
        return AUTH_FAILED

    def check_auth_password(self, username: str, password: str) -> int:
        known = self._is_known(username)
        right = hmac.compare_digest(password.encode(), self._settings.password.encode())
        if known and right and not self._chaos.refuses_logon("ssh"):
            return AUTH_SUCCESSFUL
        return AUTH_FAILED

    def _is_known(self, username: str) -> bool:
        return hmac.compare_digest(username.casefold().encode(), self._settings.username.casefold().encode())

    def _authorized(self) -> list[paramiko.PKey]:
        """Keys of administrators: Win32-OpenSSH looks for them in this one file only (windows-lab.md B)."""
        keys: list[paramiko.PKey] = []
        try:
            text = self._drive.existing(ADMINISTRATORS_KEYS).read_text(encoding="utf-8", errors="replace")
        except (WindowsPathError, OSError):
            return keys
        for line in text.splitlines():
            kind, _, rest = line.strip().partition(" ")
            try:
                keys.append(paramiko.PKey.from_type_string(kind, base64.b64decode(rest.split(" ")[0])))
            except (paramiko.SSHException, paramiko.pkey.UnknownKeyType, ValueError):
                log.debug("a line of '%s' holds no key", ADMINISTRATORS_KEYS)
        return keys

    def check_channel_request(self, kind: str, chanid: int) -> int:
        if kind == "session":
            return OPEN_SUCCEEDED
        return OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED


def _new_host_key() -> paramiko.PKey:
    text = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return paramiko.Ed25519Key(file_obj=io.StringIO(text.decode("ascii")))


def _host_key(file: Path | None) -> paramiko.PKey:
    return _new_host_key() if file is None else paramiko.Ed25519Key(filename=str(file))
