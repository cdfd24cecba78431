"""The SSH connection under SFTP: the host key is pinned, the logon is by key or password."""

from __future__ import annotations

import socket
from typing import Any

import paramiko

from vm.errors import GuestError
from vm.machine import GuestAddress

_RSA_SIGNATURES = ("rsa-sha2-512", "rsa-sha2-256")


def connect(address: GuestAddress, *, seconds: float, machine: str) -> paramiko.Transport:
    """A connection that is logged on.

    Args:
        address: where the guest answers, with the pinned host key.
        seconds: how long each part may take: connecting, the banner, the key exchange, the logon.
        machine: the machine's name, for messages.

    Raises:
        GuestError: there is no SSH, the host key is another one, the private key cannot be used or the logon is refused.
        OSError, paramiko.SSHException, EOFError: the connection does not come about.
    """
    if address.ssh_port is None:
        raise GuestError("the guest has no SFTP", hint="give the machine an ssh_port", machine=machine)
    private_key = _private_key(address, machine)
    sock = socket.create_connection((address.host, address.ssh_port), timeout=seconds)
    # Without it every small request waits for a delayed acknowledgement: 1 MB/s instead of 30 (measured).
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    transport = paramiko.Transport(sock)
    try:
        _log_on(transport, address, private_key, seconds, machine)
    except BaseException:
        transport.close()
        raise
    return transport


def _log_on(
    transport: paramiko.Transport,
    address: GuestAddress,
    private_key: paramiko.PKey | None,
    seconds: float,
    machine: str,
) -> None:
    transport.banner_timeout = transport.auth_timeout = seconds
    kind, _, rest = (address.host_key or "").partition(" ")
    if rest:
        options: Any = transport.get_security_options()
        # An RSA key is one kind of key and signs in several ways; the oldest (SHA-1) is not wanted.
        ways = _RSA_SIGNATURES if kind == "ssh-rsa" else (kind,)
        options.key_types = [way for way in ways if way in options.key_types] or options.key_types
    transport.start_client(timeout=seconds)
    _check_host_key(transport, address, kind, rest.split(" ")[0], machine)
    username = address.credentials.username
    try:
        if private_key is not None:
            transport.auth_publickey(username, private_key)
        else:
            transport.auth_password(username, address.credentials.password)
    except paramiko.AuthenticationException as error:
        raise _refused(address, machine) from error


def _check_host_key(
    transport: paramiko.Transport, address: GuestAddress, kind: str, key: str, machine: str
) -> None:
    shown = transport.get_remote_server_key()
    if key and shown.get_name() == kind and shown.get_base64() == key:
        return
    where = f"{address.host}:{address.ssh_port}"
    if not key:
        raise GuestError(
            f"no SSH host key is pinned for this machine, and {where} shows {shown.fingerprint}",
            hint="compare it in the guest (ssh-keygen -lf C:\\ProgramData\\ssh\\ssh_host_ed25519_key.pub), then:"
            f' host_key = "{shown.get_name()} {shown.get_base64()}"',
            machine=machine,
        )
    raise GuestError(
        f"the SSH host key at {where} is not the one that belongs to this machine ({shown.fingerprint})",
        hint="something else listens there, or the guest was made anew; a machine of ours: ./inv vm.stop, then start it",
        machine=machine,
    )


def _private_key(address: GuestAddress, machine: str) -> paramiko.PKey | None:
    """The key to log on with, None for the password; raises `GuestError` when its file cannot be used."""
    path = address.private_key
    if path is None:
        return None
    try:
        return paramiko.PKey.from_path(path)
    except OSError as error:
        reason = error.strerror or str(error)
    except (paramiko.PasswordRequiredException, TypeError):
        reason = "it is protected by a passphrase"
    except (paramiko.SSHException, paramiko.pkey.UnknownKeyType, ValueError):
        reason = "it holds no private key"
    raise GuestError(
        f"the private key '{path}' cannot be used: {reason}",
        hint="name a key without a passphrase in 'private_key', or leave it out to log on with the password",
        machine=machine,
    )


def _refused(address: GuestAddress, machine: str) -> GuestError:
    where = f"{address.host}:{address.ssh_port}"
    if address.private_key is not None:
        return GuestError(
            f"the guest at {where} refused the key '{address.private_key}' for SFTP",
            hint="the public key of an administrator belongs into"
            r" C:\ProgramData\ssh\administrators_authorized_keys in the guest, which only Administrators and SYSTEM"
            " may access",
            machine=machine,
        )
    return GuestError(
        f"the guest at {where} refused the user name or password for SFTP",
        hint="check the machine's user and password; if the machine is ours, its state may be stale: ./inv vm.stop,"
        " then run the command again",
        machine=machine,
    )
