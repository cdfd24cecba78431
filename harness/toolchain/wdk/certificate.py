"""The checkout's test certificate where signtool finds it: the personal store of this user, found by its thumbprint.

signtool takes a PFX and its password from a file and its command line only, where others read them. So the identity goes
once, over the standard input of a script of ours, into `Cert:\\CurrentUser\\My`; signtool gets the thumbprint.
"""

from __future__ import annotations

import base64
import logging
import secrets
from pathlib import Path

from harness.signing.identity import SigningIdentity
from vm.deadline import Deadline
from vm.errors import BuildError
from vm.powershell.script import Script, ScriptError, ScriptHost

log = logging.getLogger(__name__)

IMPORT = Script(Path(__file__).resolve().parent / "scripts" / "Import-SigningIdentity.ps1")

_SECONDS = 60.0
"""Windows PowerShell starts in a second, in ten on a machine whose antivirus looks at it for the first time."""


def ensure_in_store(identity: SigningIdentity, host: ScriptHost, deadline: Deadline) -> str:
    """Make signtool able to sign as `identity`; returns the thumbprint to name it by.

    Raises:
        BuildError: the store does not take it.
        DeadlineExceededError: PowerShell did not end in time.
    """
    password = secrets.token_urlsafe(32)
    given = {"pfx": base64.b64encode(identity.pkcs12(password)).decode("ascii"), "password": password}
    try:
        said = host.run(
            IMPORT, {"Thumbprint": identity.thumbprint}, deadline.sooner(seconds=_SECONDS), secret=given
        )
    except ScriptError as error:
        raise BuildError(
            f"the test certificate '{identity.subject}' cannot be put into the store of this user: {error.message}",
            hint="a service account needs a profile of its own: log on once, or run as another user",
        ) from error
    if not isinstance(said, dict) or said.get("thumbprint") != identity.thumbprint:
        raise BuildError(f"'{IMPORT.name}' does not say that the certificate {identity.thumbprint} is there")
    if said.get("imported"):
        log.info("put the test certificate '%s' into Cert:\\CurrentUser\\My", identity.subject)
    return identity.thumbprint
