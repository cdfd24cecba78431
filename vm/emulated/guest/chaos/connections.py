"""Faults of connections: HTTP under WinRM, logons, seals, and the SSH port."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vm.emulated.guest.chaos.fault import ALWAYS, ONCE, Fault, Interruption, Unit

if TYPE_CHECKING:
    from vm.emulated.guest.settings import GuestSettings


class DropIdle(Fault):
    """http.sys closes connections that are idle (after about 120 s); a sealed session never recovers (windows-lab A.3)."""

    name = "drop-idle"
    unit = Unit.SECONDS
    default = 0.2
    habit = ALWAYS

    def settings(self, settings: GuestSettings) -> GuestSettings:
        return replace(settings, idle_drop_seconds=self.value)

    def dropped_idle(self) -> None:
        self.strikes(f"a connection was idle for {self.value:g} s")


class Latency(Fault):
    """A machine on the other side of a slow network: every request takes longer (windows-lab A.5: 15 ms and more)."""

    name = "latency"
    unit = Unit.SECONDS
    default = 0.05
    maximum = 30
    habit = ALWAYS

    def on_request(self) -> None:
        if self.strikes():
            self.pause(self.value)


class BadSeal(Fault):
    """400 and the end of the connection for a message whose seal does not fit; it was not executed (windows-lab A.3)."""

    name = "bad-seal"

    def breaks_seal(self) -> bool:
        return self.strikes()


class ForgottenLogon(Fault):
    """401 on a connection that had logged on: the NTLM context is gone on the server's side (windows-lab A.7, 1)."""

    name = "http-401"

    def forgets_logon(self) -> bool:
        return self.strikes()


class ServerError(Fault):
    """500 without a body, as http.sys answers when the WinRM service cannot; nothing was executed (windows-lab A.1)."""

    name = "http-500"

    def before(self, operation: str) -> None:
        if self.strikes(operation):
            raise Interruption(status=500)


class ServiceUnavailable(Fault):
    """503 while the WinRM service starts: http.sys answers, nobody serves the URL yet (windows-lab A.2, last row)."""

    name = "http-503"

    def before(self, operation: str) -> None:
        if self.strikes(operation):
            raise Interruption(status=503)


class _ResetBefore(Fault):
    """The connection is reset before one kind of operation was executed."""

    operation = ""

    def before(self, operation: str) -> None:
        if operation == self.operation and self.strikes():
            raise Interruption


class _ResetAfter(Fault):
    """The connection is reset when one kind of operation was executed, before its answer."""

    operation = ""

    def after(self, operation: str) -> None:
        if operation == self.operation and self.strikes():
            raise Interruption


class ResetCommandBefore(_ResetBefore):
    """A reset during Command that was not executed; the client cannot know (windows-lab A.3, retry policy)."""

    name = "reset-command-before"
    operation = "Command"


class ResetCommandAfter(_ResetAfter):
    """A reset during Command that was executed: whoever sends it again runs it twice (windows-lab A.3, retry policy)."""

    name = "reset-command-after"
    operation = "Command"


class ResetSendBefore(_ResetBefore):
    """A reset during Send that did not reach the command (windows-lab A.3, retry policy)."""

    name = "reset-send-before"
    operation = "Send"


class ResetSendAfter(_ResetAfter):
    """A reset during Send that did reach the command: sent again it would be there twice (windows-lab A.3)."""

    name = "reset-send-after"
    operation = "Send"


class ResetCreateAfter(_ResetAfter):
    """A reset after Create: a shell is leaked and counts against MaxShellsPerUser (windows-lab A.2)."""

    name = "reset-create-after"
    operation = "Create"


class ResetSignalAfter(_ResetAfter):
    """A reset after Signal, which may be sent again and then finds no command (windows-lab A.3)."""

    name = "reset-signal-after"
    operation = "Signal"


class ResetReceive(Fault):
    """The connection is reset in the middle of the answer to a Receive; it may be asked again (windows-lab A.3)."""

    name = "reset-receive"

    def after(self, operation: str) -> None:
        if operation == "Receive" and self.strikes():
            raise Interruption(partly=True)


class PasswordRefused(Fault):
    """The right password is refused: it has expired or was changed with another checkpoint (windows-lab D.1, 4)."""

    name = "password-refused"
    habit = ALWAYS

    def refuses_logon(self, server: str) -> bool:
        return server in ("winrm", "ssh") and self.strikes(server)


class LogonRefusedEarly(Fault):
    """Early in a boot logons fail although the password is right ("The credential is invalid", windows-lab D.1, 6)."""

    name = "logon-refused-early"

    def refuses_logon(self, server: str) -> bool:
        return server == "winrm" and self.strikes(server)


class BasicRefused(Fault):
    """AllowUnencrypted is false by policy on newer systems: Basic over HTTP is not taken (windows-lab A.3)."""

    name = "basic-refused"
    habit = ALWAYS

    def settings(self, settings: GuestSettings) -> GuestSettings:
        return replace(settings, unencrypted_basic=False)

    def noticed(self, place: str) -> None:
        if place == "basic refused":
            self.strikes()


class NtlmRefused(Fault):
    """NTLM is off by default in the next Windows: Negotiate refuses every token (windows-lab A.3 and G 7)."""

    name = "ntlm-refused"
    habit = ALWAYS

    def refuses_logon(self, server: str) -> bool:
        return server == "ntlm" and self.strikes()


class WinRmRefused(Fault):
    """Connections to WinRM are closed at once: a Public network profile, or a firewall (windows-lab D.1)."""

    name = "winrm-refused"
    habit = ALWAYS

    def refuses_connection(self, server: str) -> bool:
        return server == "winrm" and self.strikes()


class SftpRefused(Fault):
    """There is no SSH: not installed, or its firewall rule is for Private networks only (windows-lab B)."""

    name = "sftp-refused"
    habit = ALWAYS

    def refuses_connection(self, server: str) -> bool:
        return server == "ssh" and self.strikes()


class HostKeyChanged(Fault):
    """SSH presents another key than the pinned one: the machine was made anew (windows-lab B, last point)."""

    name = "host-key-changed"
    habit = ONCE

    def changes_host_key(self) -> bool:
        return self.strikes()
